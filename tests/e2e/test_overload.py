"""More clients than the machine can serve: they wait or are told so, nothing acknowledged is lost, memory is bounded,
and the server is as quick as before once they have gone."""

import json
import re
import time
from base64 import b64encode
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from stacks import Stack, run, stack

pytestmark = pytest.mark.docker

CLIENTS, SECONDS = 200, 25
PATIENCE = 90  # seconds that a client waits for an answer
TOLD = {429, 503}


class Client:
    """One client with a connection of its own."""

    def __init__(self, one: Stack):
        """Of a stack, with its login."""
        self.at = urlsplit(one.url)
        self.headers = {"Content-Type": "application/json"}
        if login := one.login():
            word = f"{login['MLFLOW_TRACKING_USERNAME']}:{login['MLFLOW_TRACKING_PASSWORD']}"
            self.headers["Authorization"] = "Basic " + b64encode(word.encode()).decode()
        self.door = HTTPConnection(self.at.hostname, self.at.port, timeout=PATIENCE)

    def call(self, method: str, path: str, body: dict | None = None) -> tuple[int, dict]:
        """Return status and answer of MLflow's API; an answer that is no JSON is an empty one."""
        self.door.request(method, f"/api/2.0/mlflow/{path}", json.dumps(body) if body else None, self.headers)
        answer = self.door.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if answer.headers.get_content_type() == "application/json" else {}


def killed(one: Stack) -> int:
    """Return how many processes of the server's container the kernel has killed for want of memory."""
    script = "cat /sys/fs/cgroup/memory.events 2>/dev/null || cat /sys/fs/cgroup/memory/memory.oom_control"
    counts = one.compose("exec", "-T", "mlflow", "sh", "-c", script)
    return int(re.search(r"(?m)^oom_kill (\d+)$", counts)[1])


@pytest.mark.parametrize("answers", [{"purpose": "team"}, {"purpose": "solo"}], ids=["team", "solo"])
def test_200_clients(tmp_path: Path, answers: dict[str, str]) -> None:
    """Half log to runs of their own, one value or a batch at a time, half search."""
    with stack(tmp_path, f"overload-{answers['purpose']}", answers) as one:
        one.up()
        first = Client(one)
        experiment = first.call("POST", "experiments/create", {"name": "crowd"})[1]["experiment_id"]
        began = time.monotonic()
        first.call("POST", "runs/create", {"experiment_id": experiment})
        usual = time.monotonic() - began
        until = time.monotonic() + SECONDS

        unexpected: list[str] = []

        def crowd(number: int) -> tuple[Counter, str, int]:
            client, seen, run_id, logged = Client(one), Counter(), "", 0
            while time.monotonic() < until:
                try:
                    if number % 2:
                        status, told = client.call("POST", "runs/search", {"experiment_ids": [experiment]})
                    elif not run_id:
                        status, told = client.call("POST", "runs/create", {"experiment_id": experiment})
                        run_id = told["run"]["info"]["run_id"] if status == 200 else ""
                    else:
                        value = {"key": "m", "value": logged, "step": logged, "timestamp": 1}
                        if number % 4:
                            status, told = client.call("POST", "runs/log-metric", {"run_id": run_id, **value})
                        else:
                            # MLflow takes a second connection for it while it has one.
                            batch = {"run_id": run_id, "metrics": [value], "tags": [{"key": "t", "value": str(logged)}]}
                            status, told = client.call("POST", "runs/log-batch", batch)
                        logged += status == 200
                    seen[status] += 1
                    if status not in {200, *TOLD}:
                        unexpected.append(f"{status} {told}")
                except (OSError, HTTPException) as error:
                    seen[type(error).__name__] += 1
                    client = Client(one)
            return seen, run_id, logged

        with ThreadPoolExecutor(CLIENTS) as pool:
            results = list(pool.map(crowd, range(CLIENTS)))
        seen = sum((result[0] for result in results), Counter())
        assert set(seen) <= {200, *TOLD}, f"{seen} {unexpected[:3]}"
        assert seen[200] >= CLIENTS, seen

        # It is as quick as before, with the same processes: none was killed for want of memory.
        last = Client(one)
        began = time.monotonic()
        assert last.call("POST", "runs/create", {"experiment_id": experiment})[0] == 200
        assert time.monotonic() - began < max(10 * usual, 5)
        restarts = run("docker", "inspect", "--format", "{{.RestartCount}}", one.container("mlflow")).stdout.strip()
        assert (restarts, killed(one)) == ("0", 0)
        # What was acknowledged is there.
        for _, run_id, logged in results:
            if logged:
                found = last.call("GET", f"metrics/get-history?run_id={run_id}&metric_key=m&max_results=25000")[1]
                assert len(found["metrics"]) >= logged
