"""What the benchmarks of a running server share: a server behind its door, what is asked of it, and what that took."""

import base64
import http.client
import itertools
import json
import random
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from measuring import Numbers

PSS = """
import os, pathlib
total = count = 0
for file in pathlib.Path("/proc").glob("[0-9]*/smaps_rollup"):
    try:
        if file.parent.name == str(os.getpid()) or b"ready" in (file.parent / "cmdline").read_bytes():
            continue
        total += next(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith("Pss:"))
        count += 1
    except (OSError, StopIteration):
        pass
print(total, count)
"""


def docker(*words: str, **more) -> str:
    """Run docker and return what it prints; RuntimeError has what it complains about."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, **more)
    if done.returncode:
        raise RuntimeError(f"docker {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


def cpu(container: str) -> float:
    """Return the seconds of processor time that a container has taken since its start."""
    two = "cat /sys/fs/cgroup/cpu.stat 2>/dev/null || cat /sys/fs/cgroup/cpuacct/cpuacct.usage"
    words = docker("exec", container, "sh", "-c", two).split()
    return int(words[1]) / 1e6 if words[0] == "usage_usec" else int(words[0]) / 1e9


@dataclass
class Server:
    """One way to run MLflow: its server's container, and the door that clients use."""

    name: str
    containers: list[str]  # the server, then its proxy
    port: int
    database: str
    password: str = ""
    user: str = "admin"
    started: bool = False
    paused: bool = False
    errors: int = 0

    @property
    def headers(self) -> dict[str, str]:
        """What signs a request in."""
        pair = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        return {"Authorization": f"Basic {pair}"} if self.password else {}

    def call(self, door: http.client.HTTPConnection, method: str, path: str, body: dict | bytes | None = None) -> bytes:
        """Send a request and return the answer's body; what is not answered with 200 is sent again, and counted."""
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        headers = {**self.headers, **({"Content-Type": "application/json"} if isinstance(body, dict) else {})}
        for wait in (0.2, 1, 3, None):
            try:
                door.request(method, path, data, headers)
                answer = door.getresponse()
                found = answer.read()
                if answer.status == 200:
                    return found
                error = RuntimeError(f"{self.name}: {method} {path}: {answer.status} {found[:200]!r}")
            except (OSError, http.client.HTTPException) as lost:
                door.close()
                error = lost
            if wait is None or not self.started:
                raise error
            self.errors += 1
            time.sleep(wait)
        raise AssertionError

    def api(self, method: str, path: str, body: dict | None = None) -> dict:
        """Call MLflow's REST API once."""
        return json.loads(self.call(self.door(), method, f"/api/2.0/mlflow/{path}", body))

    def door(self) -> http.client.HTTPConnection:
        """Return a new connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def start(self) -> float:
        """Start the server; return the seconds until its API answers."""
        begin = time.monotonic()
        docker("start", self.containers[0])
        if self.name == "article":  # its nginx looks a name up once, and the server may have another address now
            docker("restart", "--timeout", "5", self.containers[1])
        while True:
            try:
                self.api("GET", "experiments/search?max_results=1")
                self.started = True
                return time.monotonic() - begin
            except (OSError, RuntimeError, http.client.HTTPException):
                if time.monotonic() - begin > 180:
                    raise
                time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server."""
        self.started = False
        docker("stop", "--timeout", "30", self.containers[0])

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let the server, which is paused at other times, run: what it does by itself costs the others nothing."""
        if self.paused:
            docker("unpause", self.containers[0])
            self.paused = False
            time.sleep(1)  # what was due meanwhile
        yield
        if self.started:
            self.pause()

    def pause(self) -> None:
        """Pause the server; one that is starting many processes just now can be "unable to freeze" for some seconds."""
        for wait in (1, 5, 20, None):
            try:
                docker("pause", self.containers[0])
                self.paused = True
                return
            except RuntimeError:
                if wait is None:
                    raise
                time.sleep(wait)

    def memory(self) -> tuple[float, int]:
        """Return MiB of memory, shared pages counted once (PSS), and the number of processes."""
        total, count = docker("exec", "-i", self.containers[0], "python", "-", input=PSS).split()
        return int(total) / 1024, int(count)

    def cpu(self) -> float:
        """Return the seconds of processor time that the server and its proxy have taken since their start."""
        return sum(map(cpu, self.containers))


class Load:
    """What is asked of every server."""

    def __init__(self, server: Server, runs: int):
        self.server = server
        name = f"load {server.name}"
        self.experiment = server.api("POST", "experiments/create", {"name": name})["experiment_id"]
        doors = Doors(server)

        def one(number: int) -> str:
            api = doors.api
            run = api("POST", "runs/create", {"experiment_id": self.experiment, "start_time": number})
            run = json.loads(run)["run"]["info"]["run_id"]
            metrics = [
                {"key": f"m{key}", "value": (number * 7919 + key) % 1000, "timestamp": number, "step": 0}
                for key in range(10)
            ]
            params = [{"key": f"p{key}", "value": str(number + key)} for key in range(5)]
            api("POST", "runs/log-batch", {"run_id": run, "metrics": metrics, "params": params})
            return run

        with ThreadPoolExecutor(8) as pool:
            self.runs = list(pool.map(one, range(runs)))
            list(pool.map(lambda n: server.api("POST", "experiments/create", {"name": f"{name} {n}"}), range(100)))
            list(
                pool.map(lambda n: server.api("POST", "registered-models/create", {"name": f"{name} {n}"}), range(100))
            )
        points = [{"key": "long", "value": n / 7, "timestamp": n, "step": n} for n in range(10_000)]
        for start in range(0, len(points), 1000):
            batch = {"run_id": self.runs[0], "metrics": points[start : start + 1000]}
            server.api("POST", "runs/log-batch", batch)
        top = {"experiment_id": self.experiment, "run_name": "shown", "start_time": 4_000_000_000_000}
        server.api("POST", "runs/create", top)
        self.new = server.api("POST", "runs/create", {"experiment_id": self.experiment})["run"]["info"]["run_id"]
        self.steps, self.turn = itertools.count(), itertools.count()

    def write(self, api: Callable) -> None:
        """Log one metric."""
        step = next(self.steps)
        api("POST", "runs/log-metric", {"run_id": self.new, "key": "w", "value": step, "timestamp": step, "step": step})

    def batch(self, api: Callable) -> None:
        """Create a run and log 30 metrics at once."""
        run = json.loads(api("POST", "runs/create", {"experiment_id": self.experiment, "start_time": 1}))
        values = [{"key": f"m{n}", "value": n, "timestamp": 1, "step": n} for n in range(30)]
        api("POST", "runs/log-batch", {"run_id": run["run"]["info"]["run_id"], "metrics": values})

    def search(self, api: Callable) -> None:
        """One page of 100 runs, ordered by a metric."""
        body = {"experiment_ids": [self.experiment], "order_by": ["metrics.m1 DESC"], "max_results": 100}
        api("POST", "runs/search", body)

    def history(self, api: Callable) -> None:
        """10,000 points of a metric."""
        api("GET", f"metrics/get-history?run_id={self.runs[0]}&metric_key=long&max_results=25000")

    def experiments(self, api: Callable) -> None:
        """100 experiments."""
        api("GET", "experiments/search?max_results=100")

    def models(self, api: Callable) -> None:
        """100 registered models."""
        api("GET", "registered-models/search?max_results=100")

    def run(self, api: Callable) -> None:
        """One run."""
        api("GET", f"runs/get?run_id={random.choice(self.runs)}")

    def mixed(self, api: Callable) -> None:
        """Some of all: mostly writes and single runs, and in every 800 calls the same ones."""
        kinds = (self.write, self.batch, self.run, self.search, self.experiments, self.models)
        random.Random(next(self.turn) % 800).choices(kinds, (40, 15, 30, 5, 5, 5))[0](api)


KINDS = {
    # name -> (method of Load, clients at once, requests)
    "write": (Load.write, 8, 800),
    "create a run, 30 metrics": (Load.batch, 8, 320),
    "search by metric": (Load.search, 4, 60),
    "history of 10,000 points": (Load.history, 2, 24),
    "experiments": (Load.experiments, 4, 160),
    "models": (Load.models, 4, 80),
    "one run": (Load.run, 8, 800),
    "mixed": (Load.mixed, 16, 800),
}
FILES = {"4 x 64 MiB": (4, 64 << 20), "200 x 4 KiB": (200, 4 << 10)}


class Doors:
    """One connection for each thread."""

    def __init__(self, server: Server):
        self.server, self.own = server, threading.local()

    def call(self, method: str, path: str, body: dict | bytes | None = None) -> bytes:
        """Send a request on this thread's connection."""
        if not hasattr(self.own, "door"):
            self.own.door = self.server.door()
        return self.server.call(self.own.door, method, path, body)

    def api(self, method: str, path: str, body: dict | None = None) -> bytes:
        """Call MLflow's REST API on this thread's connection."""
        return self.call(method, f"/api/2.0/mlflow/{path}", body)


def timed(server: Server, work: Callable[[int], object], clients: int, count: int) -> Numbers:
    """Do `work` count times, so many at once; return what it took."""

    def one(number: int) -> float:
        begin = time.monotonic()
        work(number)
        return time.monotonic() - begin

    cpu, begin = server.cpu(), time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        took = sorted(pool.map(one, range(count)))
    wall, cpu = time.monotonic() - begin, server.cpu() - cpu
    return {
        "CPU ms": 1000 * cpu / count,
        "per s": count / wall,
        "p50 ms": 1000 * statistics.median(took),
        "p95 ms": 1000 * took[int(len(took) * 0.95)],
    }
