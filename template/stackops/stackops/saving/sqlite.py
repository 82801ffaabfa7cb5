"""SQLite: each database is one file. See __init__.py."""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

from stackops.backends import sqlite
from stackops.errors import StackError, one_line
from stackops.saving.manifest import Manifest, Snapshot
from stackops.saving.place import digest

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
                    f"the database {path.name} is damaged ({one_line(said, 120)}); 'make restore REPLACE=1 "
                    "BACKUP=no' loads the last backup"
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
    sqlite.settle(env)
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
    """Return what the database holds besides a fresh stack's rows. Of a damaged one nothing can be kept."""
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
    """Put the files in the places of the stack's own, all or none. The server must not run.

    Complete copies are made in a folder beside, and compared. From the moment at which that folder gets its
    final name they hold: if this is interrupted then, the next start puts them in their places.
    """
    sqlite.settle(env)
    home = sqlite.database(env).parent
    part = home / f"{sqlite.RESTORED}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(mode=0o700, parents=True)
    try:
        _copy(env, folder, found, part, say)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sqlite.sync(part)
    part.rename(home / sqlite.RESTORED)
    sqlite.sync(home)
    sqlite.settle(env)


def _copy(
    env: Mapping[str, str], folder: Path, found: Manifest, part: Path, say: Callable[[str], None]
) -> None:
    """Copy the files that this stack uses into `part`. Raises StackError if one is not as it was saved."""
    for name in (TRACKING, USERS):
        if name not in found.files:
            continue
        if name == USERS and env.get("STACK_AUTH") != "mlflow":
            say("MLflow's users stay behind: this stack does not use them")
            continue
        with open(folder / name, "rb") as old, open(part / name, "wb") as new:
            shutil.copyfileobj(old, new, 1 << 20)
            new.flush()
            os.fsync(new.fileno())
        if digest(part / name) != found.files[name]:
            raise StackError(f"{name} was not written as the backup has it; nothing was changed")
        for table, rows in look(part / name).tables.items():
            if rows != found.tables.get(table):
                raise StackError(
                    f"{name} has {rows} rows in {table} instead of {found.tables.get(table)}; "
                    "nothing was changed"
                )
