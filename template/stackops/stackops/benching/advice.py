"""What the figures mean, in plain words. Decides from what it is given alone.

The limits are generous. Seen on two cores with everything on them, and other work: 50 to 60 metrics a second
one by one, artifacts up at 40 and down at 50 MiB/s, a disk that has what was written after 0.1 to 0.5 ms.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BATCH = 50
"""Values in one log_batch."""
BUSY = 0.9
"""Of the machine's processors: above that they are what everything waits for."""
DISTURBED = 0.5
"""Of them, before anything is measured: then the figures are not the stack's."""
SLOW_SYNC = 0.005
SLOW_ROUND = 0.003
"""Seconds for a disk to have what was written, and for a question to the database and back."""
SLOW_STORE = 25.0
"""MiB/s."""
SLOW_WRITES = 20.0
"""log_metric a second, of four clients at once and for each worker."""
UNEVEN, LONG = 5.0, 0.5
"""The slowest of twenty against the middle, and seconds: beyond both something gets in between."""


@dataclass(frozen=True)
class Figure:
    """One row of the table: `rate` in calls or MiB a second, half of the calls took at most `p50` seconds.

    `busy`: how much of the machine's processors was in use, from 0 to 1, or None where nobody knows.
    """

    name: str
    rate: float
    unit: str
    p50: float
    p95: float
    calls: int
    busy: float | None = None


@dataclass(frozen=True)
class Facts:
    """What is known of the stack. `fitting`: workers that fit this machine; `one_writer`: more cannot help.

    `sync` and `round`: seconds, see SLOW_SYNC. `database_here`: it is on this disk. `through`: artifacts pass
    through the server on their way to a store that clients could reach, too.
    """

    workers: int
    fitting: int
    cpus: int
    one_writer: bool = False
    sync: float = 0.0
    round: float = 0.0
    database_here: bool = True
    through: bool = False


def milliseconds(seconds: float) -> str:
    """Return a time for people: 0.25 ms, 8.1 ms, 120 ms."""
    value = seconds * 1000
    return f"{value:.2f} ms" if value < 1 else f"{value:.1f} ms" if value < 10 else f"{value:,.0f} ms"


def advise(
    figures: Sequence[Figure], facts: Facts, client: float | None = None, before: float | None = None
) -> list[str]:
    """Return sentences, the one that matters most first; at least one.

    `client`: how much of one processor the measuring client itself took, and `before`: how much of all of
    them was in use when nothing was measured yet, from 0 to 1.
    """
    by = {figure.name: figure for figure in figures}
    found = _disturbed(before)
    found += [*_workers(facts), *_waiting(facts), *_store(by, facts), *_busy(by, facts, client, before)]
    metric = by.get("log_metric")
    if not found and metric and metric.rate < SLOW_WRITES * max(1, min(facts.workers, facts.cpus)):
        found.append(
            f"{metric.rate:.0f} writes a second are few, and neither disk, database nor processors say why: "
            "'make doctor', then 'make logs SERVICE=mlflow'."
        )
    found += _uneven(figures)
    if not found:
        found.append("Nothing holds this stack up: the settings fit the machine.")
    return found + _batches(by)


def _disturbed(before: float | None) -> list[str]:
    if (before or 0) < DISTURBED:
        return []
    return [
        f"Something else kept the processors busy ({before:.0%} before this began): the stack does more when "
        "it has ended; measure again then."
    ]


def _workers(facts: Facts) -> list[str]:
    if facts.one_writer or facts.workers == facts.fitting:
        return []
    if facts.workers < facts.fitting:
        return [
            f"The server has {_many(facts.workers, 'worker')} and {facts.fitting} fit this machine: 'make "
            "size' prints the lines for .env."
        ]
    return [
        f"The server has {_many(facts.workers, 'worker')} and {facts.fitting} fit this machine: more only "
        "take memory; 'make size' prints the lines for .env."
    ]


def _waiting(facts: Facts) -> list[str]:
    found = []
    if facts.database_here and facts.sync > SLOW_SYNC:
        found.append(
            f"The disk takes {milliseconds(facts.sync)} until it has what was written, and every write waits "
            "for that: put Docker's data on an SSD, or log in batches."
        )
    if facts.round > SLOW_ROUND:
        where = "the machine has too much to do" if facts.database_here else "it is far away"
        found.append(
            f"A question to the database takes {milliseconds(facts.round)}, and each request asks several: "
            f"{where}."
        )
    return found


def _store(by: Mapping[str, Figure], facts: Facts) -> list[str]:
    found = []
    for name, doing in (("artifacts up", "take"), ("artifacts down", "give")):
        if (one := by.get(name)) and one.rate < SLOW_STORE:
            if (one.busy or 0) >= BUSY:
                why = "the processors are the reason"
            elif name == "artifacts up" and facts.sync > SLOW_SYNC:
                why = "the disk is slow, see above"
            else:
                why = "look at its disk, or at the way to it"
            found.append(f"The artifact store can {doing} {one.rate:.0f} MiB/s, which is little: {why}.")
    carried = [by[name] for name in ("artifacts up", "artifacts down") if name in by]
    if facts.through and any((one.busy or 0) >= BUSY for one in carried):
        found.append(
            "Artifacts pass through the server, which costs processor time: with artifact_access=direct "
            "clients reach the store themselves."
        )
    return found


def _busy(by: Mapping[str, Figure], facts: Facts, client: float | None, before: float | None) -> list[str]:
    """The processors as the limit: no setting mends that."""
    names = [name for name in ("log_metric", "log_batch", "search by metric") if name in by]
    most = max((by[name].busy or 0 for name in names), default=0)
    if most < BUSY or (before or 0) >= DISTURBED:
        return []
    text = f"The {_many(facts.cpus, 'processor')} here were busy ({most:.0%}): more speed takes more."
    if client and client > 0.2:
        text += f" This client took {client:.0%} of one, so with clients elsewhere the stack does more."
    return [text]


def _uneven(figures: Sequence[Figure]) -> list[str]:
    worst = max(figures, key=lambda one: one.p95 / one.p50 if one.p50 else 0, default=None)
    if not worst or worst.p95 < LONG or worst.p95 < UNEVEN * worst.p50:
        return []
    return [
        f"{worst.name} mostly takes {milliseconds(worst.p50)}, but one in twenty {milliseconds(worst.p95)} "
        "or more: something else works on this machine, or there is too little memory; 'make doctor' looks."
    ]


def _batches(by: Mapping[str, Figure]) -> list[str]:
    metric, batch = by.get("log_metric"), by.get("log_batch")
    if not metric or not batch or not metric.rate or batch.rate * BATCH < 3 * metric.rate:
        return []
    return [
        f"Clients that log {BATCH} values at once (log_metrics, log_batch) write {batch.rate * BATCH:,.0f} "
        f"values a second, one by one {metric.rate:,.0f}."
    ]


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
