"""SQLite: each database is one file. See __init__.py."""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

from stackops.backends import sqlite
from stackops.errors import StackError, one_line
from stackops.saving.manifest import Manifest, Snapshot

TRACKING, USERS = "mlflow.db", "auth.db"
VERSION_TABLES = {"tracking": "alembic_version", "users": "alembic_version_auth"}
SEEDED = {"experiments": "experiment_id = 0", "workspaces": "name = 'default'", "users": "username = 'admin'"}


def look(path: Path) -> Snapshot:
    """Return what a file holds. Raises StackError if it is damaged."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if said != "ok":
                raise StackError(
                    f"the database {path.name} is damaged ({one_line(said, 120)}); restore an older backup"
                )
            found = connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
            )
            tables = {
                name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]
                for (name,) in found.fetchall()
            }
            revisions = {}
            for part, table in VERSION_TABLES.items():
                if tables.pop(table, 0):
                    (revisions[part],) = connection.execute(f"SELECT version_num FROM {table}").fetchone()
    except sqlite3.Error as error:
        raise StackError(
            f"the database {path.name} cannot be read: {one_line(error)}; restore a backup"
        ) from None
    return Snapshot([path.name], revisions, tables)


def snapshot(env: Mapping[str, str], folder: Path) -> Snapshot:
    """Write copies of the files into `folder`, each as it was at one moment; writers go on meanwhile."""
    source = sqlite.database(env)
    if not source.is_file():
        raise StackError("there is no database yet, so there is nothing to back up; run make up first")
    whole = Snapshot([], {}, {})
    for path in (source, source.with_name(USERS)):
        if not path.is_file():
            continue
        copy = folder / path.name
        copy.unlink(missing_ok=True)
        try:
            with closing(sqlite3.connect(path, timeout=30)) as old, closing(sqlite3.connect(copy)) as new:
                old.backup(new, pages=-1)
                new.execute("PRAGMA journal_mode=DELETE")
        except sqlite3.Error as error:
            if "full" in str(error):
                raise OSError(28, "No space left on device") from None
            raise StackError(
                f"the database {path} cannot be copied: {one_line(error)}; restore a backup"
            ) from None
        one = look(copy)
        whole.files += one.files
        whole.revisions |= one.revisions
        whole.tables |= one.tables
    return whole


def occupied(env: Mapping[str, str]) -> dict[str, int]:
    """Return what the database holds besides a fresh stack's rows; a damaged one holds nothing that can be
    kept."""
    found: dict[str, int] = {}
    for path in (sqlite.database(env), sqlite.database(env).with_name(USERS)):
        if not path.is_file():
            continue
        with contextlib.suppress(sqlite3.Error), closing(sqlite3.connect(path)) as connection:
            names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            for (name,) in names:
                if name.startswith(("alembic_", "sqlite_")):
                    continue
                only = f" WHERE NOT ({SEEDED[name]})" if name in SEEDED else ""
                if count := connection.execute(f'SELECT count(*) FROM "{name}"{only}').fetchone()[0]:
                    found[name] = count
    return found


def load(env: Mapping[str, str], folder: Path, found: Manifest, say: Callable[[str], None]) -> None:
    """Put the files in the places of the stack's own, each in one step. The server must not run."""
    ready = []
    for name in (TRACKING, USERS):
        if name not in found.files:
            continue
        if name == USERS and env.get("STACK_AUTH") != "mlflow":
            say("MLflow's users stay behind: this stack does not use them")
            continue
        target = sqlite.database(env).with_name(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{name}.restored")
        part.unlink(missing_ok=True)
        with open(folder / name, "rb") as old, open(part, "wb") as new:
            while piece := old.read(1 << 20):
                new.write(piece)
            new.flush()
            os.fsync(new.fileno())
        held = look(part)
        for table, rows in held.tables.items():
            if rows != found.tables.get(table):
                part.unlink()
                raise StackError(
                    f"{name} has {rows} rows in {table} instead of {found.tables.get(table)}; nothing "
                    f"was changed"
                )
        ready.append((part, target))
    for part, target in ready:
        # What the old file still has in its log must not be taken for the new one's.
        for log in (f"{target.name}-wal", f"{target.name}-shm"):
            target.with_name(log).unlink(missing_ok=True)
        part.replace(target)
        folder_handle = os.open(target.parent, os.O_RDONLY)
        os.fsync(folder_handle)
        os.close(folder_handle)
