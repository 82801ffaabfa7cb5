"""What the workers of all servers count (counting.py): their files, put together. Each has its own series."""

import time
from collections.abc import Mapping
from pathlib import Path

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from stackops.counting import FOLDER
from stackops.serve import SPOOL
from stackops.watching import Figures, gauge

SILENT = 20
"""Seconds without a new file after which a worker is taken for gone."""


Worker = tuple[str, str]
"""The name of a server's container, and the number of a process in there."""


def files(spool: Path, now: float) -> dict[Worker, Path]:
    """Return the file of each worker that is alive: the newest, when a server follows another."""
    found: dict[Worker, tuple[float, Path]] = {}
    for path in spool.glob(f"{SPOOL}*/{FOLDER}/*.prom"):
        try:
            written = path.stat().st_mtime
        except FileNotFoundError:
            continue
        if now - written <= SILENT:
            server = path.parent.parent.name.removeprefix(SPOOL).rpartition("-")[0]
            worker = server, path.stem
            found[worker] = max((written, path), found.get(worker, (0.0, path)))
    return {worker: path for worker, (_, path) in sorted(found.items())}


def merged(texts: Mapping[Worker, str]) -> dict[str, Metric]:
    """Return the metrics of all workers, each sample with its server's name and its worker's number."""
    together: dict[str, Metric] = {}
    for (server, worker), text in texts.items():
        whose = {"server": server, "worker": worker}
        for metric in text_string_to_metric_families(text):
            into = together.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                # When a counter began is of no use to Prometheus, and would be a series of its own.
                if not sample.name.endswith("_created"):
                    into.add_sample(sample.name, {**sample.labels, **whose}, sample.value)
    return together


def figures(env: Mapping[str, str]) -> Figures:
    """Yield what the workers count, how many there are, and when the youngest was started."""
    texts = {}
    for worker, path in files(Path(env.get("TMPDIR") or "/var/tmp"), time.time()).items():
        try:
            texts[worker] = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
    together = merged(texts)
    yield from (metric for metric in together.values() if metric.samples)
    yield gauge("stack_workers", "Workers of all servers that are alive.", len(texts))
    if started := together.get("process_start_time_seconds"):
        newest = max(sample.value for sample in started.samples)
        yield gauge("stack_worker_started_seconds", "When the youngest worker was started.", newest)
