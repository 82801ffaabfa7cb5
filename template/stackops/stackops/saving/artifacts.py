"""The artifacts of a backup: from the stack's own store into the pool, checked there, and back."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from stackops import settings
from stackops.errors import StackError, one_line
from stackops.saving.listing import Entry
from stackops.saving.place import Place, absent, pool_name
from stackops.saving.sealing import Opener, Seal

SMALL = 1 << 20
JOBS = 8


@dataclass
class Saved:
    """What was done: the artifacts of the backup, and which objects came new into the pool."""

    entries: list[Entry]
    added: list[str]
    added_bytes: int = 0


@dataclass
class Back:
    """What was brought back, and how many artifacts were left that are there and differ."""

    count: int = 0
    bytes: int = 0
    left: int = 0


def own_store(env: Mapping[str, str]):
    """Return the stack's own store."""
    from artifacts_move import stores

    here = settings.artifact_uri(env)
    return stores.open_store(here, here, str(settings.secrets(env).folder), env)


def save(
    store,
    place: Place,
    seal: Seal,
    known: Mapping[str, Entry],
    trusted: set[str],
    there: Mapping[str, int],
    undo: list[str],
) -> Saved:
    """Copy what the pool does not have yet.

    `known` is what the last backup says of the objects of this very store: what has the same version is not
    read again. `trusted` are the objects of the pool that a whole backup stands for, `there` are all; names
    of new ones go to `undo` at once. Raises StackError for the first artifact that cannot be copied.
    """
    from artifacts_move import copying

    found = copying.look(store)
    saved, fresh = Saved([], []), []
    claimed, claiming = set(), threading.Lock()  # two artifacts of one content are copied once
    for item in found.values():
        last = known.get(item.name)
        same = last and (last.version, last.size) == (item.version, item.size)
        if same and pool_name(last.sha256, seal.recipient) in trusted:
            saved.entries.append(last)
            continue
        fresh.append(item)

    def work(item) -> tuple[Entry, str | None]:
        content, size, sha256 = read(store, item.name, place.stage())
        name = pool_name(sha256, seal.recipient)
        entry = Entry(item.name, size, sha256, item.version)
        with claiming:
            needed = name not in trusted and name not in claimed
            claimed.add(name)
        if not needed:
            if isinstance(content, Path):
                content.unlink()
            return entry, None
        if name not in there:
            undo.append(name)
        content = seal.data(content) if isinstance(content, bytes) else seal.file(content)
        length = len(content) if isinstance(content, bytes) else content.stat().st_size
        place.add(name, length, content)
        return entry, name

    for item, future in copying.bounded(work, fresh, JOBS):
        try:
            entry, name = future.result()
        except (StackError, OSError) as error:
            if absent(error):
                continue  # its owner has deleted it since
            raise
        except Exception as error:
            if absent(error):
                continue
            raise StackError(f"the artifact {item.name} cannot be copied: {one_line(error)}") from error
        saved.entries.append(entry)
        if name:
            saved.added.append(name)
            saved.added_bytes += entry.size
    return saved


def read(store, name: str, stage: Path) -> tuple[bytes | Path, int, str]:
    """Read an object once: into memory, or into the file `stage` if it is large.

    Return the one or the other, its size and its SHA-256.
    """
    digest, size, held, file = hashlib.sha256(), 0, [], None
    try:
        for piece in store.read(name):
            digest.update(piece)
            size += len(piece)
            if file is None and size > SMALL:
                file = open(stage, "wb")  # noqa: SIM115 # closed below
                file.writelines(held)
                held.clear()
            if file:
                file.write(piece)
            else:
                held.append(piece)
    finally:
        if file:
            file.close()
    return (stage if file else b"".join(held)), size, digest.hexdigest()


class Pool:
    """The pool as a store to copy from: artifacts under their own names, as they were, checked on the way."""

    def __init__(self, place: Place, entries: Mapping[str, Entry], opener: Opener, age: str):
        self.place, self.entries, self.opener, self.age = place, entries, opener, age

    def read(self, name: str) -> Iterator[bytes]:
        """Yield an artifact. Raises StackError at its end if it is not what was saved."""
        entry = self.entries[name]
        digest, size = hashlib.sha256(), 0
        for piece in self._pieces(pool_name(entry.sha256, self.age)):
            digest.update(piece)
            size += len(piece)
            yield piece
        if (size, digest.hexdigest()) != (entry.size, entry.sha256):
            raise StackError(f"the backup is damaged: the artifact {name} is not what was saved")

    def _pieces(self, pooled: str) -> Iterator[bytes]:
        if not self.age:
            yield from self.place.take(pooled)
            return
        stage = self.place.stage()
        stage.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        content, _, _ = read(self.place.pool, pooled, stage)
        if isinstance(content, bytes):
            yield self.opener.data(content, pooled)
            return
        plain = stage.with_name(f"{stage.name}.plain")
        try:
            self.opener.file(content, plain)
            with open(plain, "rb") as file:
                while piece := file.read(SMALL):
                    yield piece
        finally:
            content.unlink()
            plain.unlink(missing_ok=True)


def check(place: Place, entries: list[Entry], opener: Opener, age: str) -> None:
    """Read every object once. Raises StackError for the first that is missing or is not what was saved."""
    from artifacts_move import copying

    distinct = {entry.sha256: entry for entry in entries}
    there = place.pooled()
    for entry in distinct.values():
        if pool_name(entry.sha256, age) not in there:
            raise StackError(f"the backup is damaged: the artifact {entry.name} is missing in {place.called}")
    pool = Pool(place, {entry.name: entry for entry in distinct.values()}, opener, age)

    def work(entry: Entry) -> None:
        for _ in pool.read(entry.name):
            pass

    for entry, future in copying.bounded(work, distinct.values(), JOBS):
        try:
            future.result()
        except StackError:
            raise
        except Exception as error:
            raise StackError(
                f"the artifact {entry.name} cannot be read from the backup: {one_line(error)}"
            ) from error


def bring_back(
    store,
    place: Place,
    entries: list[Entry],
    opener: Opener,
    age: str,
    same: bool,
    replacing: bool,
    say: Callable[[str], None],
) -> Back:
    """Copy into the stack's own store what it does not have; return how much that was.

    `same` says that it is the store that the backup was made of: an object whose version is the same is not
    read. What is there and different is replaced if `replacing`; what is there besides stays. Raises
    StackError.
    """
    from artifacts_move import copying, stores

    there = copying.look(store)
    pool = Pool(place, {entry.name: entry for entry in entries}, opener, age)

    def work(entry: Entry) -> bool | None:
        held = there.get(entry.name)
        if held and same and (held.version, held.size) == (entry.version, entry.size):
            return False
        if held and held.size == entry.size:
            digest = hashlib.sha256()
            for piece in store.read(entry.name):
                digest.update(piece)
            if digest.hexdigest() == entry.sha256:
                return False
        if held and not replacing:
            return None
        copying.copy(pool, store, stores.Item(entry.name, entry.size, ""))
        return True

    back = Back()
    for entry, future in copying.bounded(work, entries, JOBS):
        try:
            copied = future.result()
        except StackError:
            raise
        except Exception as error:
            raise StackError(
                f"the artifact {entry.name} cannot be brought back: {one_line(error)}"
            ) from error
        if copied is None:
            back.left += 1
        elif copied:
            back.count, back.bytes = back.count + 1, back.bytes + entry.size
            if back.count % 1000 == 0:
                say(f"artifacts: {back.count:,} of {len(entries):,}")
    store.tidy()
    return back
