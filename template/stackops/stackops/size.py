"""Measures what the stack holds and how fast it grows, and says which lines of .env would fit the machine.

Reads the advice of scripts/sizing.sh from standard input: `KEY=VALUE`, what it is now, and why, with tabs
between them. Counts every row, and looks through the store for at most half a minute. Changes nothing.
"""

import argparse
import re
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stackops import settings, sizing
from stackops.errors import StackError
from stackops.words import human

HELP = "measure the data and the machine, and advise settings"
DAY = 86400
WINDOW = 30
"""Days over which growth is measured."""
PATIENCE = 30.0
"""Seconds for the look through the store."""
CLOSE = 1.1
"""A setting that is within this factor of the advised one is left as it is."""
RUNS = ("runs", "metrics", "latest_metrics", "params", "tags", "logged_models", "inputs", "datasets")
TRACES = ("trace_info", "trace_tags", "trace_request_metadata", "spans", "assessments")
SHOWN = {
    "experiments": "experiments",
    "runs": "runs",
    "metrics": "metric points",
    "logged_models": "logged models",
    "model_versions": "model versions",
    "trace_info": "traces",
    "spans": "spans",
}
UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True)
class Advice:
    """A setting: what it should be, what it is, and why."""

    key: str
    value: str
    now: str
    why: str


@dataclass(frozen=True)
class Measure:
    """A size in bytes and how many are added in a day; `whole`: all was looked at."""

    bytes: int
    growth: float
    whole: bool = True


@dataclass(frozen=True)
class Disk:
    """The kernel's number of a disk, its free bytes and its size."""

    device: int
    free: int
    total: int


@dataclass(frozen=True)
class Use:
    """A disk, what of the stack grows on it, and by how many bytes in a day."""

    disk: Disk
    of: str
    growth: float

    @property
    def lasts(self) -> float:
        """The days until it is full."""
        return days_left(self.disk.free, self.growth)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument("--cpus", type=int, required=True, help="CPUs of the machine")
    parser.add_argument("--memory", type=int, required=True, help="bytes of memory of the machine")
    for what in ("database", "artifacts"):
        parser.add_argument(
            f"--{what}-disk",
            type=disk_given,
            metavar="'DEVICE BLOCK FREE TOTAL'",
            help=f"the disk of this machine that has the {what}, as stat describes it where they are",
        )


def run(args: argparse.Namespace) -> None:
    """Measure and print. Raises StackError."""
    advised = parse(sys.stdin)
    env = settings.adopt()
    now = time.time()
    rows, database = measure_database(env, now)
    artifacts = measure_artifacts(settings.store(env).items(env), now, time.monotonic)
    homes = {"database": args.database_disk, "artifacts": args.artifacts_disk}
    used = uses(homes, {"database": database.growth, "artifacts": artifacts.growth})
    print(machine(args.cpus, args.memory, used))
    print(
        "rows       "
        + ", ".join(f"{number:,} {SHOWN[name]}" for name, number in rows.items() if name in SHOWN)
    )
    print(f"database   {told(database)}")
    print(f"artifacts  {told(artifacts)}")
    for line in prospects(used):
        print(f"disk       {line}")
    if (limit := limit_of(env)) is not None:
        advised.append(limit)
    print(pools(env))
    for sentence in warnings(env, rows, used):
        print(f"\n{sentence}")
    print(f"\n{block(advised)}")


def parse(lines: Iterable[str]) -> list[Advice]:
    """Return the advice of scripts/sizing.sh. Raises StackError for a line of another form."""
    found = []
    for line in lines:
        parts = line.rstrip("\n").split("\t")
        key, equals, value = parts[0].partition("=")
        if len(parts) != 3 or not equals:
            raise StackError(f"{line.strip()!r} is no advice: 'make size' is how to call this")
        found.append(Advice(key, value, parts[1], parts[2]))
    return found


def measure_database(env: Mapping[str, str], now: float) -> tuple[dict[str, int], Measure]:
    """Return the number of rows by table, and the size with its growth."""
    import sqlalchemy as sa

    from stackops.cleaning.rows import metadata

    tables = metadata().tables
    recent = int((now - WINDOW * DAY) * 1000)
    backend = settings.backend(env)
    with backend.engine(env).connect() as connection:

        def count(name: str, *conditions) -> int:
            return connection.scalar(sa.select(sa.func.count()).select_from(tables[name]).where(*conditions))

        rows = {name: count(name) for name in (*SHOWN, *RUNS, *TRACES) if name in tables}
        started, began = tables["runs"].c.start_time, tables["trace_info"].c.timestamp_ms
        new = {"runs": count("runs", started > recent), "trace_info": count("trace_info", began > recent)}
        oldest = [
            connection.scalar(sa.select(sa.func.min(time_of)).where(time_of > 0))
            for time_of in (started, began)
        ]
    first = min((value / 1000 for value in oldest if value), default=now)
    size = backend.size(env)
    return rows, Measure(size, growth(size, rows, new, span(first, now)))


def span(first: float, now: float) -> float:
    """Return over how many days growth is measured: as long as there is data, between one and WINDOW."""
    return min(float(WINDOW), max(1.0, (now - first) / DAY))


def growth(size: int, rows: Mapping[str, int], new: Mapping[str, int], days: float) -> float:
    """Return about how many bytes the database gains in a day.

    Metrics have no index on their time, so what hangs on runs is taken to grow as the runs do, and what hangs
    on traces as the traces do; every row counts the same.
    """
    total = sum(rows.get(name, 0) for name in {*RUNS, *TRACES})
    if not total:
        return 0.0
    found = 0.0
    for owner, group in (("runs", RUNS), ("trace_info", TRACES)):
        if rows.get(owner):
            share = sum(rows.get(name, 0) for name in group) / total
            found += size * share * new[owner] / rows[owner]
    return found / days


def measure_artifacts(items: Iterable[tuple[str, int, float]], now: float, clock) -> Measure:
    """Return the size of what is in the store, and what was written lately; ends after PATIENCE seconds."""
    size, new, first, until = 0, 0, now, clock() + PATIENCE
    for number, (_, one, written) in enumerate(items):
        size, first = size + one, min(first, written)
        new += one if written > now - WINDOW * DAY else 0
        if number % 1000 == 999 and clock() > until:
            return Measure(size, new / span(first, now), whole=False)
    return Measure(size, new / span(first, now))


def disk_given(text: str) -> Disk:
    """Return the disk that the four numbers of scripts/size.sh stand for. Raises ValueError."""
    device, block, free, total = (int(word) for word in text.split())
    return Disk(device, block * free, block * total)


def uses(homes: Mapping[str, Disk | None], growths: Mapping[str, float]) -> list[Use]:
    """Return every disk once; what grows on the same one, grows together."""
    found: dict[int, Use] = {}
    for what, disk in homes.items():
        if disk is None:
            continue  # it is not on this machine
        before = found.get(disk.device, Use(disk, "", 0.0))
        of = " and ".join(filter(None, (before.of, f"the {what}")))
        found[disk.device] = Use(disk, of, before.growth + growths[what])
    return list(found.values())


def machine(cpus: int, memory: int, used: list[Use]) -> str:
    """Return what the machine has; where there are two disks, each has a line of its own."""
    text = f"machine    {cpus} CPUs, {human(memory)} of memory"
    return f"{text}, {human(used[0].disk.free)} of the disk free" if len(used) == 1 else text


def prospects(used: list[Use]) -> list[str]:
    """Return how long each disk lasts."""
    if len(used) == 1:
        return [duration(used[0].lasts) if used[0].growth else "nothing grows on it"]
    return [f"of {one.of}: {human(one.disk.free)} free, {duration(one.lasts)}" for one in used] or [
        "nothing that grows is on one of this machine"
    ]


def days_left(free: int, growth: float) -> float:
    """Return in how many days the disk is full."""
    return free / growth if growth > 0 else float("inf")


def duration(days: float) -> str:
    """Return how long the disk lasts, as a person says it."""
    if days > 3650:
        return "lasts for more than ten years at this pace"
    return f"full in about {days:,.0f} days at this pace" if days >= 1 else "full today at this pace"


def told(one: Measure) -> str:
    """Return size and growth as text."""
    text = f"{'' if one.whole else 'at least '}{human(one.bytes)}"
    return f"{text}, {'about ' if one.growth else ''}{human(one.growth)} more a day"


def pools(env: Mapping[str, str]) -> str:
    """Return how the server uses its connections now."""
    workers = env["MLFLOW_WORKERS"]
    size, overflow = (env.get(f"MLFLOW_SQLALCHEMYSTORE_{name}") for name in ("POOL_SIZE", "MAX_OVERFLOW"))
    if not size or not overflow:
        return f"server     {workers} workers"
    each, servers = settings.engines(env), settings.servers(env)
    most = servers * int(workers) * each * (int(size) + int(overflow))
    return (
        f"{f'servers    {servers}, each' if servers > 1 else 'server    '} "
        f"{workers} workers with {each} pools of {size} + {overflow} connections: "
        f"at most {most} of {env.get('DB_MAX_CONNECTIONS') or '100'}"
    )


def limit_of(env: Mapping[str, str]) -> Advice | None:
    """Return how many connections the server may hold at a database that is not the stack's own."""
    look = getattr(settings.backend(env), "server_limit", None)
    if not look or "DB_SSLMODE" not in env:
        return None
    limit, workers = look(env), int(env["MLFLOW_WORKERS"]) * settings.servers_at_once(env)
    value = sizing.connections(workers, settings.engines(env), limit)
    why = f"The database lets in {limit}; ten of yours are kept free, and twenty of its own for others."
    return Advice("DB_MAX_CONNECTIONS", str(value), env.get("DB_MAX_CONNECTIONS") or "50", why)


def warnings(env: Mapping[str, str], rows: Mapping[str, int], used: Iterable[Use]) -> list[str]:
    """Return what no setting mends."""
    found = []
    if (outgrown := getattr(settings.backend(env), "outgrown", None)) and (sentence := outgrown(rows)):
        found.append(sentence)
    for one in used:
        if one.disk.free < one.disk.total / 10 or one.lasts < 90:
            found.append(
                f"The disk of {one.of}: 'make gc' shows what users have deleted; or move to a bigger one."
            )
    return found


def number(text: str) -> float | None:
    """Return the bytes of `2g`, `512MB` or `1500MiB`, the number of `100`, or None for anything else."""
    match = re.fullmatch(r"(\d+)\s*([kmgt]?)i?(b?)", text.strip().lower())
    return float(match[1]) * UNITS[match[2]] if match else None


def fits(one: Advice) -> bool:
    """Whether what is set is as advised, or close enough. Workers and the like must be the same."""
    value, now = number(one.value), number(one.now)
    if not value or not now:
        return one.value == one.now
    return value == now if value < 1 << 20 else max(value, now) / min(value, now) < CLOSE


def block(advised: Iterable[Advice]) -> str:
    """Return the lines for .env, or that there are none."""
    lines = []
    for one in advised:
        if not fits(one):
            lines += [f"# Now {one.now or 'not set'}. {one.why}", f"{one.key}={one.value}"]
    if not lines:
        return "The settings in .env fit this machine."
    return "\n".join(["# For .env; then 'make up'.", *lines])
