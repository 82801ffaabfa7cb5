"""Jobs switched on: they run, in processes of their own, with what the server's image has; and users see their end."""

import json
import time
import urllib.request
from pathlib import Path

import pytest
from stacks import stack

pytestmark = pytest.mark.docker

JOBS = "/ajax-api/3.0/jobs/"


def test_a_job_runs_to_its_end(tmp_path: Path) -> None:
    """The one that scores new traces imports most of what jobs import; without scorers it has nothing to do."""
    with stack(tmp_path, "jobs", {"purpose": "solo"}, {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "true"}) as one:
        one.up()
        one.make("check")

        def ask(path: str, body: dict | None = None) -> dict:
            data = json.dumps(body).encode() if body else None
            request = urllib.request.Request(one.url + path, data, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)

        params = {"experiment_id": "0", "online_scorers": []}
        job = ask(JOBS, {"job_name": "run_online_trace_scorer", "params": params})
        until = time.monotonic() + 120
        while (job := ask(JOBS + job["job_id"]))["status"] in ("PENDING", "RUNNING") and time.monotonic() < until:
            time.sleep(1)
        logs = one.compose("logs", "--no-log-prefix", "mlflow")
        assert job["status"] == "SUCCEEDED", f"{job}\n{logs[-3000:]}"
        assert "ModuleNotFoundError" not in logs
