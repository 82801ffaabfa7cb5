"""Copies what one store has and another has not, many objects at once, and makes sure of each.

What was copied is written down in a journal, so that a run that was interrupted, or one that follows later, skips
it. Without the journal nothing is lost: what is already there is compared instead, byte by byte if need be.
"""

import itertools
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

from stackops.errors import StackError, one_line

from artifacts_move.stores import Count, Digest, Item, Store, part_size

PASSES = 5
"""How often new objects are looked for: a source that clients still write to is never finished."""


class Journal:
    """What was copied and made sure of: name -> (version in the source, version in the target)."""

    def __init__(self, path: Path | str):
        self._db = sqlite3.connect(path)
        self._db.execute("CREATE TABLE IF NOT EXISTS done (name TEXT PRIMARY KEY, source TEXT, target TEXT)")
        self._db.commit()
        self._saved = time.monotonic()

    def all(self) -> dict[str, tuple[str, str]]:
        """Return everything."""
        return {name: (source, target) for name, source, target in self._db.execute("SELECT * FROM done")}

    def add(self, source: Item, target: Item) -> None:
        """Write one object down; at the latest after two seconds it is on disk."""
        row = (source.name, source.version, target.version)
        self._db.execute("INSERT OR REPLACE INTO done VALUES (?, ?, ?)", row)
        if time.monotonic() - self._saved > 2:
            self.save()

    def save(self) -> None:
        """Put everything on disk."""
        self._db.commit()
        self._saved = time.monotonic()


@dataclass
class Report:
    """Numbers of objects and of bytes, and the names of objects that are different in the target."""

    found: int = 0
    found_bytes: int = 0
    copied: int = 0
    copied_bytes: int = 0
    same: int = 0
    kept: int = 0
    different: list[str] = field(default_factory=list)
    seconds: float = 0.0


def decide(source: Item, target: Item | None, done: tuple[str, str] | None) -> str:
    """Return what an object needs: `copy`, `skip`, `compare`, or that it is `different`."""
    if target is None:
        return "copy"
    if done and done[1] == target.version:  # what is there is what this program wrote or compared
        return "skip" if done[0] == source.version else "copy"
    return "compare" if source.size == target.size else "different"


def size_in_words(size: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def objects(number: int) -> str:
    """Return `1 object` or `1,234 objects`."""
    return f"{number:,} object{'' if number == 1 else 's'}"


class Changed(Exception):
    """An object changed while it was copied; the next look at the source finds it again."""


def copy(source: Store, target: Store, item: Item, checked: bool = False) -> Item:
    """Copy one object and return what the target says of it; `checked` is what `target.checks()` said.

    Raises StackError if what the target has is not what was read, and Changed if that was no whole object.
    """
    if checked:
        count = Count()
        there = target.write(item.name, item.size, count.over(source.read(item.name)))
        if count.size != item.size:
            raise Changed(item.name)
        return there
    digest = Digest(target.vouches(item.size), part_size(item.size))
    there = target.write(item.name, item.size, digest.over(source.read(item.name)))
    if digest.size != item.size:
        raise Changed(item.name)
    if there.size == digest.size and there.checksum == digest.checksum:
        return there
    if not digest.matches(target.read(item.name)):
        raise StackError(
            f"{item.name}: {target.where} gave back other bytes than were written; check it, then try again"
        )
    return there


def equal(source: Store, target: Store, item: Item, there: Item, trust: bool = True) -> bool:
    """Return whether an object that is on both sides is the same; without `trust` both are read."""
    digest = Digest(target.vouches(item.size), part_size(item.size))
    for _ in digest.over(source.read(item.name)):
        pass
    if trust and there.checksum == digest.checksum:
        return True
    return digest.matches(target.read(item.name))


def bounded(work: Callable[[Item], object], items: Iterable[Item], jobs: int) -> Iterator[tuple[Item, Future]]:
    """Do the work for all items with `jobs` threads, and yield each when it is done; few wait at a time."""
    waiting = iter(items)
    pending: dict[Future, Item] = {}
    done: SimpleQueue[Future] = SimpleQueue()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while True:
                for item in itertools.islice(waiting, 2 * jobs - len(pending)):
                    future = pool.submit(work, item)
                    pending[future] = item
                    future.add_done_callback(done.put)
                if not pending:
                    return
                future = done.get()
                yield pending.pop(future), future
        finally:
            for future in pending:
                future.cancel()


def look(store: Store) -> dict[str, Item]:
    """Return all objects of a store by name. Raises StackError with the cause if it cannot be listed."""
    try:
        return {item.name: item for item in store.items()}
    except StackError:
        raise
    except Exception as error:
        raise StackError(f"{store.where} cannot be listed: {one_line(error)}") from error


def plan(
    source: dict[str, Item], target: dict[str, Item], journal: dict[str, tuple[str, str]]
) -> dict[str, list[Item]]:
    """Return the objects of the source by what they need (see `decide`)."""
    needs: dict[str, list[Item]] = {"copy": [], "skip": [], "compare": [], "different": []}
    for name, item in source.items():
        needs[decide(item, target.get(name), journal.get(name))].append(item)
    return needs


def move(
    source: Store,
    target: Store,
    journal: Journal,
    say: Callable[[str], None],
    jobs: int = 16,
    keep: str = "",
    distrust: bool = False,
) -> Report:
    """Copy everything that is missing, and return what was done.

    `keep` says which side wins where the two differ: `source`, `target`, or neither: then they are left alone and
    the report names them. `distrust` reads again, on both sides, what
    earlier runs have copied. Raises StackError for the first
    object that cannot be copied.
    """
    report, start, seen = Report(), time.monotonic(), {}
    for _ in range(PASSES):
        found = look(source)
        fresh = {name: item for name, item in found.items() if seen.get(name) != item.version}
        if not fresh:
            break
        there = look(target)
        needs = plan(fresh, there, {} if distrust and not seen else journal.all())
        seen = {name: item.version for name, item in found.items()}
        report.found, report.found_bytes = len(found), sum(item.size for item in found.values())
        report.same += len(needs["skip"])
        _compare(source, target, journal, report, needs, there, jobs, not distrust)
        if needs["different"] and keep == "source":
            needs["copy"] += needs["different"]
        elif keep == "target":
            report.kept += len(needs["different"])
        else:
            report.different += sorted(item.name for item in needs["different"])
        _copy(source, target, journal, report, needs["copy"], seen, jobs, say)
    else:
        say("clients still write to the source: run this again when they are stopped")
    missing = sorted(seen.keys() - look(target).keys())
    if missing:
        raise StackError(f"{objects(len(missing))} did not stay in {target.where} (one is {missing[0]}); try again")
    target.tidy()
    report.seconds = time.monotonic() - start
    return report


def _compare(source, target, journal, report, needs, there, jobs, trust) -> None:
    """Sort the objects to compare into the same and the different."""
    compare = needs["compare"]
    for item, future in bounded(lambda one: equal(source, target, one, there[one.name], trust), compare, jobs):
        try:
            same = future.result()
        except Exception as error:
            raise StackError(f"{item.name} cannot be compared: {one_line(error)}") from error
        if same:
            journal.add(item, there[item.name])
            report.same += 1
        else:
            needs["different"].append(item)
    journal.save()


def _copy(source, target, journal, report, items, seen, jobs, say) -> None:
    """Copy the objects and write them down."""
    total, start, told = sum(item.size for item in items), time.monotonic(), time.monotonic()
    done_bytes = 0
    checked = bool(items) and target.checks()
    try:
        work = bounded(lambda one: copy(source, target, one, checked), items, jobs)
        for number, (item, future) in enumerate(work, 1):
            try:
                journal.add(item, future.result())
                report.copied += 1
                report.copied_bytes += item.size
            except Changed:
                seen.pop(item.name, None)
            except StackError:
                raise
            except Exception as error:
                raise StackError(f"{item.name} cannot be copied to {target.where}: {one_line(error)}") from error
            done_bytes += item.size
            if (now := time.monotonic()) - told >= 5:
                told = now
                rate = done_bytes / (now - start)
                left = f", about {(total - done_bytes) / rate:.0f} s left" if rate else ""
                say(
                    f"{number:,} of {objects(len(items))}, {size_in_words(done_bytes)} of "
                    f"{size_in_words(total)}, {size_in_words(rate)}/s{left}"
                )
    finally:
        journal.save()
