"""The other engine: pgloader, wrapped so that the result is right or nothing was changed.

pgloader runs in a container of its own between two commands of this one. `prepare` makes a schema with fresh
tables, pgloader fills them, and `finish` compares them with the prepared copy. Only then do they take the
place of the old tables, in one transaction. Whatever happens before leaves those as they were.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from stackops.errors import StackError
from stackops.migration import load, staging, verify
from stackops.migration.source import SQLite
from stackops.migration.target import Target

Say = Callable[[str], None]

STATE = "state.json"


def save(work: Path, names: Sequence[str]) -> None:
    """Remember between the two commands which tables are to be moved."""
    (work / STATE).write_text(json.dumps({"names": list(names)}), encoding="utf-8")


def remembered(work: Path) -> list[str]:
    """Return the tables. Raises StackError if nothing was prepared."""
    try:
        return json.loads((work / STATE).read_text(encoding="utf-8"))["names"]
    except OSError:
        raise StackError("nothing is prepared; run make migrate FROM=… ENGINE=pgloader") from None


def finish(target: Target, source: SQLite, names: Sequence[str], say: Say) -> None:
    """Compare what pgloader has loaded with the copy, and put it in the place of the old tables; commit.

    The caller holds the locks. Raises StackError; then the old tables are there.
    """
    try:
        with load.explained(target):
            before = verify.shape(target)
            for name in names:
                for _ in source.chunks(name, target.tables[name].kinds):
                    pass  # sums the rows of the copy
            say(f"pgloader: done; {staging.ready(target, names)} sequences set, analysed")
            verify.same_rows(target, source, names)
            say(f"verified: {len(names)} tables, count and checksum of every one equal on both sides")
        staging.take_over(target, before, say)
        with load.explained(target):
            target.connection.commit()
    except StackError as error:
        raise StackError(f"pgloader: {error}; ENGINE=copy can do it") from None
