"""Measures a running stack as its clients see it: with MLflow's own client, four at once, in one experiment.

Every part ends after its share of the seconds, or earlier once it has made LIMIT calls or moved MOST bytes.
"""

import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from stackops.benching.advice import BATCH, Figure
from stackops.errors import StackError, one_line

CLIENTS = 4
LIMIT = 1000
"""Calls of one part: at most that many runs, and BATCH times as many values."""
CURVE = 1000
"""Values of the metric whose history is read; MLflow takes as many in one request."""
PIECE, MOST = 8 << 20, 256 << 20
"""Bytes of one file, and of all that are uploaded."""
SHARES = {
    "create run": 6,
    "log_batch": 8,
    "log_metric": 8,
    "log_metric, one client": 4,
    "search by metric": 8,
    "metric history": 6,
    "artifacts up": 10,
    "artifacts down": 10,
}
"""How the time is divided."""


class Measuring:
    """Runs the parts one after the other; `stop` ends the one that runs once its calls have returned."""

    def __init__(self, client, experiment: str, seconds: float, folder: Path):
        self.client, self.experiment, self.folder = client, experiment, folder
        self.unit = seconds / sum(SHARES.values())
        self.stop = threading.Event()
        self.runs: list[str] = []
        self.sent = 0

    def figures(self) -> Iterator[Figure]:
        """Yield one row of the table after the other. Raises StackError that names the part that failed."""
        parts = {
            "create run": self.create,
            "log_batch": self.batch,
            "log_metric": self.metric,
            "log_metric, one client": self.metric,
            "search by metric": self.search,
            "metric history": self.history,
            "artifacts up": self.upload,
            "artifacts down": self.download,
        }
        for name, call in parts.items():
            if name == "metric history":
                self.draw()
            clients, limit, size = CLIENTS, LIMIT, 0
            if name == "log_metric, one client":
                clients = 1
            elif name == "artifacts up":
                (self.folder / "data.bin").write_bytes(os.urandom(PIECE))
                limit, size = MOST // PIECE, PIECE
            elif name == "artifacts down":
                size = PIECE
            yield self.part(name, call, clients, limit, size)

    def part(self, name: str, call: Callable[[int], object], clients: int, limit: int, size: int) -> Figure:
        """Call `call(number)` from several threads until its time or the limit is over; return the row."""
        times: list[float] = []
        numbers, lock = iter(range(limit)), threading.Lock()
        before, start = processors(), time.monotonic()
        until = start + SHARES[name] * self.unit

        def work() -> None:
            while not self.stop.is_set() and time.monotonic() < until:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                began = time.monotonic()
                call(number)
                times.append(time.monotonic() - began)

        with ThreadPoolExecutor(clients) as pool:
            try:
                for one in [pool.submit(work) for _ in range(clients)]:
                    one.result()
            except Exception as error:
                self.stop.set()
                raise (
                    error if isinstance(error, StackError) else StackError(f"{name}: {one_line(error)}")
                ) from error
            except BaseException:
                self.stop.set()
                raise
        took = time.monotonic() - start
        rate = len(times) * (size / (1 << 20) if size else 1) / took
        unit = "MiB/s" if size else "/s"
        return Figure(name, rate, unit, *middle(times), len(times), busy(before, processors()))

    def create(self, number: int) -> None:
        """Make a run."""
        self.runs.append(self.client.create_run(self.experiment).info.run_id)

    def batch(self, number: int) -> None:
        """Give a run BATCH values, the first of which is looked for later."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = [Metric("score", number / LIMIT, now, number)]
        values += [Metric("loss", 1 / step, now, number * BATCH + step) for step in range(1, BATCH)]
        self.client.log_batch(self.runs[number % len(self.runs)], values)

    def metric(self, number: int) -> None:
        """Give a run one value."""
        self.client.log_metric(self.runs[number % len(self.runs)], "single", 0.5, step=number)

    def search(self, number: int) -> None:
        """Find the best hundred runs."""
        best = "metrics.score DESC"
        self.client.search_runs([self.experiment], "metrics.score >= 0", max_results=100, order_by=[best])

    def draw(self) -> None:
        """Write the curve that `history` reads."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric("curve", 1 / (step + 1), now, step) for step in range(CURVE)]
        self.client.log_batch(self.runs[0], points)

    def history(self, number: int) -> None:
        """Read the whole curve."""
        found = len(self.client.get_metric_history(self.runs[0], "curve"))
        if found != CURVE:
            raise StackError(f"metric history: {found} of {CURVE} values came back")

    def upload(self, number: int) -> None:
        """Upload the file under a name of its own."""
        self.client.log_artifact(self.runs[0], str(self.folder / "data.bin"), str(number))
        self.sent = max(self.sent, number + 1)

    def download(self, number: int) -> None:
        """Download one of the files, and throw it away."""
        place = tempfile.mkdtemp(dir=self.folder)
        try:
            path = self.client.download_artifacts(self.runs[0], f"{number % self.sent}/data.bin", place)
            if (found := os.path.getsize(path)) != PIECE:
                raise StackError(f"artifacts down: {found} of {PIECE} bytes came back")
        finally:
            shutil.rmtree(place)


def middle(times: list[float]) -> tuple[float, float]:
    """Return what half of the times, and 95 of 100, are not above; zeros without any."""
    if len(times) < 2:
        return (times[0], times[0]) if times else (0.0, 0.0)
    cuts = statistics.quantiles(times, n=20, method="inclusive")
    return cuts[9], cuts[18]


def processors() -> tuple[int, int] | None:
    """Return how long the machine's processors have worked and rested; None where no kernel says it."""
    with suppress(OSError, ValueError), open("/proc/stat") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
        rested = ticks[3] + ticks[4]
        return sum(ticks) - rested, rested
    return None


def usual(seconds: float = 2.0) -> float | None:
    """Return how much of the processors is in use while nothing is measured."""
    before = processors()
    time.sleep(seconds)
    return busy(before, processors())


def busy(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    """Return how much of the processors was in use in between."""
    if not before or not after or not (whole := sum(after) - sum(before)):
        return None
    return (after[0] - before[0]) / whole
