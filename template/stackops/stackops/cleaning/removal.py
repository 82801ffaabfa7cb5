"""Takes rows and their files away, so that an interruption at any moment loses nothing that lives and leaves
nothing that the next run does not finish.

A batch is written down first (`Pending`), then its rows go in one transaction, then the files of those rows
that are really gone. Files never go before their rows: until then, somebody may restore a run, and find it
whole.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from stackops.cleaning import places, rows
from stackops.errors import StackError

if TYPE_CHECKING:
    from sqlalchemy import Engine

AT_ONCE = 1000  # files in one request
RUN, MODEL, EXPERIMENT, TRACE = "runs", "logged_models", "experiments", "trace_info"


@dataclass
class Done:
    """What went: rows by table, files and their bytes, and locations outside the store, which stayed."""

    rows: dict[str, int] = field(default_factory=dict)
    files: int = 0
    bytes: int = 0
    elsewhere: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    def count(self, table: str, number: int) -> None:
        """Add to the rows of a table."""
        self.rows[table] = self.rows.get(table, 0) + number


class Pending:
    """What is being removed, in a file that outlives this process: id -> folder."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, folders: Mapping[str, str]) -> None:
        """Note the folders of a batch, on the disk and not only in its cache."""
        part = self.path.with_name(f"{self.path.name}.part")
        with open(part, "w", encoding="utf-8") as file:
            json.dump(dict(folders), file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path)

    def read(self) -> dict[str, str]:
        """Return what an interrupted run has noted, or {}. Raises StackError if it is damaged."""
        try:
            return json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:
            raise StackError(
                f"{self.path} is damaged; remove it: what it named is found as orphans"
            ) from None

    def forget(self) -> None:
        """The batch is done."""
        self.path.unlink(missing_ok=True)


class Remover:
    """Removes batches of rows and their files."""

    def __init__(
        self, engine: "Engine", store: ModuleType, env: Mapping[str, str], root: str, pending: Pending
    ):
        self.engine, self.store, self.env, self.root, self.pending = engine, store, env, root, pending
        self.done = Done()

    def finish(self) -> None:
        """Remove the files of the rows in the pending batch that are gone."""
        folders = self.pending.read()
        with self.engine.connect() as connection:
            alive = rows.existing(connection, folders)
        for id, folder in folders.items():
            if id not in alive:
                self.files(self.own(self.store.items(self.env, folder), folder))
                self.done.folders = [*self.done.folders[-19:], folder]
        self.pending.forget()

    def own(self, items: Iterable[tuple[str, int, float]], folder: str) -> Iterator[tuple[str, int]]:
        """Yield (path, bytes) of the files below a folder, but for those that belong to something alive."""
        items = iter(items)
        while some := list(itertools.islice(items, AT_ONCE)):
            guests = {id for name, _, _ in some for id in places.ids(name.removeprefix(folder))}
            if guests:
                with self.engine.connect() as connection:
                    guests = rows.existing(connection, guests)
            yield from (
                (name, size)
                for name, size, _ in some
                if not guests & {*places.ids(name.removeprefix(folder))}
            )

    def files(self, found: Iterable[tuple[str, int]]) -> None:
        """Remove files of the store: (path, bytes)."""
        found = iter(found)
        while some := list(itertools.islice(found, AT_ONCE)):
            self.store.remove(self.env, [name for name, _ in some])
            self.done.files += len(some)
            self.done.bytes += sum(size for _, size in some)

    def note(self, locations: Mapping[str, str]) -> None:
        """Write the batch down; of locations outside the store only the places are remembered, to be told."""
        folders = {id: places.folder(location, id, self.root) for id, location in locations.items()}
        self.pending.write({id: folder for id, folder in folders.items() if folder})
        for id, location in locations.items():
            if location and not folders[id] and len(self.done.elsewhere) < 20:
                self.done.elsewhere.append(location)

    def table(
        self, table: str, locations: Mapping, cuts: rows.Cuts, whole: Iterable[int], tell: Callable
    ) -> None:
        """Remove rows of runs, logged_models or experiments: id -> location."""
        for some in rows.in_parts(locations):
            self.note({id: locations[id] for id in some if isinstance(id, str)})
            with self.engine.begin() as connection:
                self.done.count(table, len(rows.delete(connection, table, some, cuts, whole)))
            self.finish()
            tell(table, self.done.rows[table])

    def traces(
        self, delete: Callable, experiment: int | None, cut: int | None, may: Callable, tell: Callable
    ) -> None:
        """Remove traces, oldest first.

        `delete(experiment, ids)` is MLflow's own; `may()` says whether to go on.
        """
        while may():
            with self.engine.connect() as connection:
                _, some = rows.traces(connection, experiment, cut)
            if not some:
                return
            self.note({id: location or "" for _, id, location in some})
            for where, group in itertools.groupby(
                sorted(some, key=lambda one: one[0]), key=lambda one: one[0]
            ):
                self.done.count(TRACE, delete(str(where), [id for _, id, _ in group]))
            with self.engine.connect() as connection:
                stubborn = rows.existing(connection, [id for _, id, _ in some])
            self.finish()
            tell(TRACE, self.done.rows.get(TRACE, 0))
            if stubborn:
                raise StackError(
                    f"MLflow could not remove the trace {min(stubborn)} and {len(stubborn) - 1} others: "
                    "their archived spans are out of reach; see the messages above"
                )


def verdicts(
    engine: "Engine",
    items: Iterable[tuple[str, int, float]],
    going: rows.Going,
    cuts: rows.Cuts,
    named: set[str],
    young: float,
) -> Iterator[tuple[str, int, str]]:
    """Yield (path, bytes, whose) of every file: `runs`, `models`, `traces`, `live`, `orphans`, `young` for an
    orphan that is newer than `young`, so that it may be of an upload that is going on, or `others` for what
    has no folder as MLflow names them.

    `named`: folders and files that rows name in an unusual way. Files are looked at in thousands.
    """
    items = (item for item in items if item[0].split("/", 1)[0] not in places.OURS)
    while some := list(itertools.islice(items, 5000)):
        asked = {id for name, _, _ in some for id in places.ids(name)}
        with engine.connect() as connection:
            alive = rows.existing(connection, asked)
            old = rows.old_traces(connection, cuts.traces, alive) if cuts.traces is not None else set()
        for name, size, modified in some:
            named_ids = places.ids(name)
            ids = [id for id in named_ids if id in alive]
            if any(id in going.runs for id in ids):
                whose = "runs"
            elif any(id in going.models for id in ids):
                whose = "models"
            elif ids and all(id in old for id in ids):
                whose = "traces"
            elif ids or any(above in named for above in places.ancestors(name)):
                whose = "live"
            elif not named_ids:
                whose = "others"
            else:
                whose = "orphans" if modified < young else "young"
            yield name, size, whose
