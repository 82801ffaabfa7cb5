"""Looks at the databases for `make upgrade` (scripts/upgrade.sh), before it and after it went wrong.

`look` says what an upgrade would do and refuses what cannot work. `remember FILE` writes down the shape of
the databases and how many rows each table has; `touched FILE` says whether the version from before could
still work with them, and `verify FILE` fails unless they are equal again. `save FOLDER` and
`put-back FOLDER` are the copy in between, made as `make backup` makes it.
"""

import argparse
import importlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from stackops import schema, settings
from stackops.errors import StackError, one_line
from stackops.saving import manifest
from stackops.saving.place import digest

HELP = "look at the databases before and after an upgrade (make upgrade)"
PATIENCE = 60
SNAPSHOT = "snapshot.json"
SPARE = 64 << 20
"""Bytes of disk that have to be left besides a backup, which is smaller than its database."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument("action", choices=["look", "remember", "touched", "verify", "save", "put-back"])
    parser.add_argument("path", nargs="?", help="the file or folder of the action")
    parser.add_argument("--running", default="", metavar="VERSION", help="the MLflow that runs now")


@dataclass(frozen=True)
class Table:
    """The names of a table's columns, and how many rows it has."""

    columns: tuple[str, ...]
    rows: int


@dataclass(frozen=True)
class Memory:
    """The databases at one moment: revisions by kind, tables by name, and the backend's mark."""

    revisions: dict[str, str | None]
    tables: dict[str, Table]
    mark: str

    def text(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @classmethod
    def read(cls, path: Path) -> "Memory":
        """Return what `text` has written. Raises StackError if the file does not hold it."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            tables = {name: Table(tuple(t["columns"]), t["rows"]) for name, t in found["tables"].items()}
            return cls(found["revisions"], tables, found["mark"])
        except (OSError, ValueError, LookupError, TypeError):
            raise StackError(f"{path} does not say what the databases were like before the upgrade") from None

    @property
    def shape(self) -> tuple[dict[str, str | None], dict[str, tuple[str, ...]]]:
        """The revisions and the columns of every table."""
        return self.revisions, {name: table.columns for name, table in self.tables.items()}

    def rows(self) -> int:
        """Return how many rows there are."""
        return sum(table.rows for table in self.tables.values())


def must_go_back(before: Memory, now: Memory, complete: bool) -> bool:
    """Return whether the data must be restored for the version from before.

    Where the schema is the same and complete, rows that came meanwhile are somebody's and stay. Before it is
    complete no server runs: another mark is then a change that failed half-way.
    """
    return before.shape != now.shape or (not complete and before.mark != now.mark)


def differences(before: Memory, now: Memory) -> list[str]:
    """Return in words how the databases differ, marks apart."""
    found = [
        f"schema of {kind}: {now.revisions.get(kind)} instead of {before.revisions.get(kind)}"
        for kind in sorted({*before.revisions, *now.revisions})
        if before.revisions.get(kind) != now.revisions.get(kind)
    ]
    for name in sorted({*before.tables, *now.tables}):
        old, new = before.tables.get(name), now.tables.get(name)
        if old is None or new is None:
            found.append(f"table {name} is {'new' if old is None else 'gone'}")
        elif old.columns != new.columns:
            found.append(f"table {name} has other columns")
        elif old.rows != new.rows:
            found.append(f"table {name} has {new.rows} rows instead of {old.rows}")
    return found


def saving(env: Mapping[str, str]) -> ModuleType:
    """Return what copies this stack's database."""
    return importlib.import_module(f"stackops.saving.{env['STACK_BACKEND']}")


def save(env: Mapping[str, str], folder: Path) -> None:
    """Copy the database into `folder`; what the copy is like goes there last. Raises StackError."""
    about = folder / SNAPSHOT
    try:
        folder.mkdir(exist_ok=True)
        about.unlink(missing_ok=True)
        made = saving(env).snapshot(env, folder)
        files = {name: digest(folder / name) for name in made.files}
        shape = {"revisions": made.revisions, "tables": made.tables, "sums": made.sums, "schema": made.schema}
        text = manifest.to_text(
            manifest.Manifest(
                project=env.get("STACK_NAME", ""), backend=env["STACK_BACKEND"], files=files, **shape,
                began="", ended="", mlflow="", template="", store={}, artifacts=None,
            )
        )  # fmt: skip
        settings.write_private({str(about): text})
    except OSError as error:
        raise StackError(f"the database cannot be saved: {one_line(error.strerror)}") from None


def saved(folder: Path) -> manifest.Manifest:
    """Return what `save` has written about its copy. Raises StackError unless the copy is still that."""
    try:
        found = manifest.from_text((folder / SNAPSHOT).read_bytes(), folder.name)
        if all(digest(folder / name) == known for name, known in found.files.items()):
            return found
    except OSError:
        pass
    raise StackError(f"the copy of the database in backups/upgrade/{folder.name} is not whole")


def states(env: Mapping[str, str]) -> dict[str, schema.State]:
    """Return the state of each kind of tables that this stack has."""
    backend, accounts = settings.backend(env), settings.accounts(env)
    found = {"runs and models": schema.tracking(backend.uri(env))}
    return found | ({"users": accounts.tables(env)} if accounts else {})


def remember(env: Mapping[str, str]) -> Memory:
    """Return what the databases are like now."""
    import sqlalchemy
    from sqlalchemy.pool import NullPool

    backend, tables = settings.backend(env), {}
    uris = {"": backend.uri(env)}
    if settings.accounts(env) and backend.accounts_uri(env) != backend.uri(env):
        uris["users:"] = backend.accounts_uri(env)
    for prefix, uri in uris.items():
        with sqlalchemy.create_engine(uri, poolclass=NullPool).connect() as connection:
            look = sqlalchemy.inspect(connection)
            for name in look.get_table_names():
                columns = tuple(sorted(column["name"] for column in look.get_columns(name)))
                quoted = connection.dialect.identifier_preparer.quote(name)
                rows = connection.execute(sqlalchemy.text(f"SELECT count(*) FROM {quoted}")).scalar_one()
                tables[prefix + name] = Table(columns, rows)
    return Memory({kind: state.revision for kind, state in states(env).items()}, tables, backend.mark(env))


def look(env: Mapping[str, str], folder: str | None, running: str) -> list[str]:
    """Return what an upgrade would do, line by line. Raises StackError where it must not begin."""
    coming = version("mlflow")
    lines = [f"MLflow: {running or 'unknown'} runs, {coming} is to come"]
    for kind, state in states(env).items():
        try:
            action = schema.decide(state, kind if kind == "users" else "MLflow")
        except StackError as error:
            raise StackError(
                f"MLflow {coming} cannot take over from {running or 'this one'}: {error}"
            ) from None
        what = "stays" if action == "keep" else f"becomes {state.newest}"
        lines.append(f"schema of {kind}: {state.revision or 'none'}, {what}")
    size = settings.backend(env).size(env)
    lines.append(f"database: {size / 1e6:,.1f} MB")
    if folder:
        free = shutil.disk_usage(folder).free
        if free < size + SPARE:
            raise StackError(
                f"the disk of backups/ has {free / 1e6:,.0f} MB left, and a backup of this database may need "
                f"{(size + SPARE) / 1e6:,.0f} MB: make room first"
            )
    return lines


def run(args: argparse.Namespace) -> None:
    """Do one of the actions; raises StackError if it fails."""
    env = settings.adopt()
    backend = settings.backend(env)
    path = Path(args.path or ".")
    if args.action == "put-back":
        return saving(env).load(env, path, saved(path), print)
    backend.wait(env, PATIENCE)
    if args.action == "look":
        print("\n".join(look(env, args.path, args.running)))
    elif args.action == "save":
        save(env, path)
    elif args.action == "remember":
        settings.write_private({str(path): remember(env).text()})
    else:
        before, now = Memory.read(path), remember(env)
        if args.action == "touched":
            complete = all(state.revision == state.newest for state in states(env).values())
            print("touched" if must_go_back(before, now, complete) else "as before")
        elif found := differences(before, now):
            raise StackError(f"the databases are not as before the upgrade: {'; '.join(found[:5])}")
        else:
            print(f"{len(now.tables)} tables with {now.rows():,} rows")
