"""Removes for good what was deleted: runs, experiments and logged models, and their files in the store.

MLflow only marks them. Shows what would go; --apply does it. Traces go when they are older than
--traces-older-than, and files of runs, models and traces that the database does not know with --orphans.
Nothing goes that a live model version, a live run or a trace still names. Safe to interrupt, and to run
again.
"""

import argparse
import logging
import re
import socket
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from stackops import settings
from stackops.cleaning import places, rows
from stackops.cleaning.removal import EXPERIMENT, MODEL, RUN, TRACE, Done, Pending, Remover, verdicts
from stackops.errors import StackError, one_line
from stackops.saving import journal, lock
from stackops.words import ago, human

HELP = "remove for good what was deleted, with its files (a dry run unless --apply)"
UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}
UPLOAD = 86400
"""Seconds that an upload may last: an orphan that is younger may be a part of one."""
PENDING = "stackops-gc.pending"
NAMES = {RUN: "runs", MODEL: "models", EXPERIMENT: "experiments", TRACE: "traces"}


def seconds(text: str, name: str) -> int:
    """Return the seconds of `30d`, `12h`, `2w` or `90m`. Raises StackError for anything else."""
    match = re.fullmatch(r"(\d{1,6})([mhdw])", text.strip())
    if not match:
        raise StackError(f"{name} is {text!r}; use a number with m, h, d or w behind it, such as 30d")
    return int(match[1]) * UNITS[match[2]]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument(
        "--older-than", default="30d", metavar="TIME", help="deleted before that (default: 30d)"
    )
    parser.add_argument(
        "--traces-older-than", default="", metavar="TIME", help="remove traces that began before that"
    )
    parser.add_argument("--orphans", action="store_true", help="remove files of unknown runs")
    parser.add_argument("--apply", action="store_true", help="do it; without, only show what would go")
    parser.add_argument("--server", metavar="HOST:PORT", help="only while the server answers there")
    parser.add_argument("--last", action="store_true", help="only say how the last one ended")


@dataclass(frozen=True)
class Order:
    """What was asked for."""

    cuts: rows.Cuts
    young: float
    orphans: bool
    older_than: str
    traces_older_than: str


def order(args: argparse.Namespace, now: float) -> Order:
    """Return what the options mean at this moment. Raises StackError for a time that is none."""
    age = seconds(args.older_than, "OLDER_THAN")
    cut = int((now - age) * 1000)
    traces = None
    if args.traces_older_than:
        traces = int((now - seconds(args.traces_older_than, "TRACES_OLDER_THAN")) * 1000)
    return Order(
        rows.Cuts(cut, traces, not age),
        now - max(age, UPLOAD),
        args.orphans,
        args.older_than,
        args.traces_older_than,
    )


def run(args: argparse.Namespace) -> None:
    """Look, tell, and with --apply remove and write down how that ended. Raises StackError."""
    if args.last:
        if found := journal.read(journal.CLEANUP):
            print(last(found, time.time()), flush=True)
        return
    wanted = order(args, time.time())
    env = settings.adopt()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    pending = Pending(Path(tempfile.gettempdir(), PENDING))
    # A look disturbs nobody, but a backup that is being made must find what the database names.
    with (
        lock.alone("make gc") if args.apply else nullcontext(),
        noted() if args.apply else nullcontext({}) as record,
    ):
        if args.server:
            answers(args.server)
        done = clean(env, wanted, args.apply, pending, lambda text: print(text, flush=True))
        record["done"] = summary(done).splitlines()[0]


def answers(server: str) -> None:
    """Raise StackError if the server rests: something else may be changing the database then."""
    host, _, port = server.partition(":")
    try:
        socket.create_connection((host, int(port)), 10).close()
    except OSError:
        raise StackError(
            "the server does not run, so nothing was removed; the next one tries again"
        ) from None


@contextmanager
def noted() -> Iterator[dict]:
    """Write down how it ended, also where it fails; what is put into the dictionary goes with it."""
    record: dict = {"began": datetime.now(UTC).isoformat(), "ok": False, "error": "interrupted"}
    try:
        yield record
        record |= {"ok": True, "error": ""}
    except StackError as error:
        record["error"] = one_line(error)
        raise
    except Exception as error:
        record["error"] = f"{type(error).__name__}: {one_line(error)}"
        raise
    finally:
        record["ended"] = datetime.now(UTC).isoformat()
        with suppress(OSError):  # on a full disk what went wrong is said all the same
            journal.write(journal.text(record), journal.CLEANUP)


def last(found: Mapping, now: float) -> str:
    """Return how the last one ended, in one line."""
    when = ago(now - datetime.fromisoformat(found["ended"]).timestamp())
    if not found["ok"]:
        return f"clean-up: FAILED {when}: {found['error']}"
    return f"clean-up: {found['done']}, {when}"


def clean(
    env: Mapping[str, str], wanted: Order, apply: bool, pending: Pending, say: Callable[[str], None]
) -> Done:
    """Do the work, and return what was removed."""
    backend = settings.backend(env)
    engine, store, root = backend.engine(env), settings.store(env), settings.artifact_uri(env)
    remover = Remover(engine, store, env, root, pending)
    if pending.read():
        if apply:
            say("finishing what an interrupted clean-up has begun")
            remover.finish()
        else:
            say("a clean-up was interrupted: the next one with APPLY=1 finishes it")
    with engine.connect() as connection:
        facts = rows.look(connection, wanted.cuts, backend.REUSES_NUMBERS)
        going = rows.settle(facts)
        number = rows.traces(connection, None, wanted.cuts.traces)[0] if wanted.traces_older_than else 0
        number += sum(rows.traces(connection, one, None)[0] for one in sorted(going.experiments))
    named = {path for text in facts.unusual if (path := places.inside(text, root))}
    say("looking through the store")
    found, examples = look_through(engine, store.items(env), going, wanted, named, say)
    say(table(going, number, found, wanted, examples))
    if not apply:
        say("nothing was removed: this was a look; APPLY=1 removes what goes")
        return remover.done
    remove(env, remover, facts, going, wanted, named, say)
    check(remover, going, say)
    say(summary(remover.done))
    return remover.done


def look_through(engine, items, going, wanted, named, say) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Return files and bytes by whose they are, and some folders with orphans."""
    files, sizes, examples, last = Counter(), Counter(), {}, time.monotonic()
    for name, size, whose in verdicts(engine, items, going, wanted.cuts, named, wanted.young):
        files[whose] += 1
        sizes[whose] += size
        if whose == "orphans" and len(examples) < 5:
            examples["/".join(name.split("/")[:-1]) or name] = None
        if time.monotonic() - last > 10:
            last = time.monotonic()
            say(f"  {sum(files.values()):,} files so far")
    return {whose: (files[whose], sizes[whose]) for whose in files}, list(examples)


def remove(env, remover: Remover, facts: rows.Facts, going: rows.Going, wanted: Order, named, say) -> None:
    """Remove traces, models, runs and experiments in that order, then orphans if asked to."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    last = [time.monotonic()]

    def tell(table: str, number: int) -> None:
        if time.monotonic() - last[0] > 5:
            last[0] = time.monotonic()
            say(f"  {number:,} {NAMES[table]} removed")

    def delete(experiment: str, ids: list[str]) -> int:
        return theirs._delete_traces(experiment, trace_ids=ids)

    def still(experiment: int) -> Callable[[], bool]:
        def deleted() -> bool:
            with remover.engine.connect() as connection:
                return experiment in rows.look_experiments(connection, wanted.cuts, [experiment])

        return deleted

    if wanted.cuts.traces is not None or going.experiments:
        theirs = SqlAlchemyStore(settings.backend(env).uri(env), settings.artifact_uri(env))
    if wanted.cuts.traces is not None:
        remover.traces(delete, None, wanted.cuts.traces, lambda: True, tell)
    for experiment in sorted(going.experiments):
        remover.traces(delete, experiment, wanted.cuts.deleted, still(experiment), tell)
    models = {id: facts.models[id][1] for id in going.models}
    remover.table(MODEL, models, wanted.cuts, going.experiments, tell)
    remover.table(RUN, {id: facts.runs[id][1] for id in going.runs}, wanted.cuts, (), tell)
    remover.table(EXPERIMENT, dict.fromkeys(going.experiments, ""), wanted.cuts, (), tell)
    if going.experiments and (users := settings.accounts(env)):
        users.forget_experiments(env, going.experiments)
    if wanted.orphans:
        found = verdicts(remover.engine, remover.store.items(env), going, wanted.cuts, named, wanted.young)
        remover.files((name, size) for name, size, whose in found if whose == "orphans")


def check(remover: Remover, going: rows.Going, say: Callable[[str], None]) -> None:
    """Look whether what was removed is gone. Raises StackError if it is not."""
    for folder in remover.done.folders:
        if next(iter(remover.store.items(remover.env, folder)), None):
            raise StackError(
                f"{folder} is still in the store after it was removed; is somebody writing there?"
            )
    with remover.engine.connect() as connection:
        stay = rows.existing(connection, {*going.runs, *going.models})
    if stay:
        say(f"{len(stay):,} were restored meanwhile, and stay")


def table(going: rows.Going, traces: int, found: Mapping, wanted: Order, examples: list[str]) -> str:
    """Return the table of what goes and what stays."""
    lines = [f"{'':<13}{'go':>9}{'files':>11}{'bytes':>12}   stay"]
    stays: dict[str, list[str]] = {}
    for (what, reason), number in sorted(going.stays.items()):
        stays.setdefault(what, []).append(f"{number:,}: {reason}")
    numbers = {"runs": len(going.runs), "models": len(going.models), "experiments": len(going.experiments)}
    numbers["traces"] = traces
    for what, number in numbers.items():
        files, size = found.get(what, (0, 0))
        why = "; ".join(stays.get(what, ()))
        if what == "traces" and not wanted.traces_older_than:
            why = "those of live experiments: TRACES_OLDER_THAN is not set"
        lines.append(f"{what:<13}{number:>9,}{files:>11,}{human(size):>12}   {why}".rstrip())
    files, size = found.get("orphans", (0, 0))
    why = "" if wanted.orphans or not files else "all: ORPHANS=1 removes them"
    lines.append(f"{'orphans':<13}{'':>9}{files:>11,}{human(size):>12}   {why}".rstrip())
    if young := found.get("young"):
        lines.append(
            f"{'young orphans':<13}{'':>9}{young[0]:>11,}{human(young[1]):>12}   all: perhaps of an upload"
        )
    files, size = found.get("live", (0, 0))
    lines.append(f"{'live':<13}{'':>9}{files:>11,}{human(size):>12}   all")
    if others := found.get("others"):
        lines.append(f"{'not MLflow':<13}{'':>9}{others[0]:>11,}{human(others[1]):>12}   all")
    lines += [f"  orphans in {folder}" for folder in examples]
    return "\n".join(lines)


def summary(done: Done) -> str:
    """Return what was removed, in a sentence, and what stayed elsewhere."""
    counts = [f"{number:,} {NAMES[table]}" for table, number in done.rows.items() if number]
    text = ", ".join(counts) or "no rows"
    lines = [f"removed: {text}; {done.files:,} files, {human(done.bytes)}"]
    lines += [f"not in this stack's store, left there: {location}" for location in done.elsewhere]
    return "\n".join(lines)
