"""How many server processes and database connections fit. Arithmetic only, apart from `machine()`.

Measured with MLflow 3.17 and workers that share their memory, without job processes: with 1, 2 and 4 workers
the server has 200, 330 and 370 MiB at rest, and at most 460, 630 and 820 while 16 clients at once read long
histories or send files of 32 MiB. More workers than CPUs bring nothing.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from stackops.errors import StackError

MAX_WORKERS = 4
BASE_MEMORY = 320 << 20
WORKER_MEMORY = 180 << 20
MAX_POOL, MAX_OVERFLOW = 10, 5
ENOUGH = 5
"""Connections of a pool with which a worker does what it can: it works on one request at a time."""
RESERVED_CONNECTIONS = 10


@dataclass(frozen=True)
class Machine:
    """What this process may use: whole CPUs, and memory in bytes (None: no limit)."""

    cpus: int
    memory: int | None = None


def machine(cgroup: Path = Path("/sys/fs/cgroup")) -> Machine:
    """Return the CPUs and the memory of this container (cgroup v2) or machine."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _text(cgroup / "cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        cpus = min(cpus, max(1, int(quota) // int(period)))
    memory = _text(cgroup / "memory.max")
    return Machine(cpus, int(memory) if memory.isdigit() else None)


def share(here: Machine, servers: int) -> Machine:
    """Return what one of several servers has: its part of the CPUs, rounded up. Its memory is its own."""
    return replace(here, cpus=max(1, -(-here.cpus // servers)))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def workers(wanted: str | None, here: Machine, limit: int) -> int:
    """Return the number of server processes.

    `wanted` is the user's MLFLOW_WORKERS and wins; without it as many as there are CPUs, at most MAX_WORKERS,
    and no more than memory and the database (`limit`) can carry. Raises StackError for a `wanted` that is no
    number above 0.
    """
    if wanted:
        if not wanted.isdecimal() or int(wanted) < 1:
            raise StackError(f"MLFLOW_WORKERS is {wanted!r}; use a whole number above 0, or leave it empty")
        return int(wanted)
    fits = MAX_WORKERS if here.memory is None else (here.memory - BASE_MEMORY) // WORKER_MEMORY
    return max(1, min(here.cpus, MAX_WORKERS, limit, fits))


def connections_per_pool(limit: int, processes: int, engines: int) -> int:
    """Return how many connections each engine of each process may hold, so that all together stay below
    `limit` - RESERVED_CONNECTIONS (the rest is for other tools, backups and the parent process)."""
    return (limit - RESERVED_CONNECTIONS) // (processes * engines)


def connections(processes: int, engines: int, limit: int) -> int:
    """Return how many connections the server should have at a database that lets in `limit`: enough for full
    pools, and twenty stay for others; but never fewer than it needs at least."""
    wish = processes * engines * (MAX_POOL + MAX_OVERFLOW) + RESERVED_CONNECTIONS
    return max(2 * engines * processes + RESERVED_CONNECTIONS, min(wish, limit - 20))


def processes(limit: int, workers: int, engines: int, servers: int, at_once: int) -> int:
    """Return for how many processes the pools are made: for all that there may be while servers are replaced
    one after the other, if that leaves ENOUGH to each pool; otherwise for those that there are as a rule."""
    most = workers * at_once
    return most if connections_per_pool(limit, most, engines) >= ENOUGH else workers * servers


def pool(limit: int, processes: int, engines: int) -> tuple[int, int]:
    """Return (pool size, overflow) for each engine.

    Both are at least 1: MLflow takes a pool size or an overflow of 0 as "not set" and SQLAlchemy's defaults,
    5 and 10, apply (mlflow/store/db/utils.py, create_sqlalchemy_engine). Raises StackError if not even two
    connections per engine fit.
    """
    each = connections_per_pool(limit, processes, engines)
    if each < 2:
        raise StackError(
            f"{processes} workers do not fit into {limit} database connections (each needs {2 * engines}, "
            f"and {RESERVED_CONNECTIONS} are kept free); lower MLFLOW_WORKERS or raise DB_MAX_CONNECTIONS"
        )
    overflow = max(1, min(MAX_OVERFLOW, each // 3))
    return min(MAX_POOL, each - overflow), overflow
