"""SQLite: one file, one server process by default."""

import fcntl
import hashlib
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from stackops.errors import StackError, one_line
from stackops.settings import Secrets, data_dir

REUSES_NUMBERS = True
RESTORED = ".restored"
MANY = 5_000_000
"""Rows of metrics with which one should have another database."""


def database(env: Mapping[str, str]) -> Path:
    """Return the database file."""
    return data_dir(env) / "mlflow.db"


def uri(env: Mapping[str, str]) -> str:
    """Return the tracking database's URI."""
    return f"sqlite:///{database(env)}"


def accounts_uri(env: Mapping[str, str]) -> str:
    """Return the URI of the database of users: a file of its own."""
    return f"sqlite:///{data_dir(env) / 'auth.db'}"


def files(env: Mapping[str, str], secrets: Secrets) -> dict[str, str]:
    """Nothing is needed."""
    return {}


def max_workers(env: Mapping[str, str], engines: int) -> int:
    """One writer at a time: more processes would only wait for each other."""
    return 1


def environment(env: Mapping[str, str], workers: int, engines: int) -> dict[str, str]:
    """Nothing is needed."""
    return {}


def sync(path: Path) -> None:
    """Return when the disk has a file, or what a folder lists."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def settle(env: Mapping[str, str]) -> None:
    """Put database files that a restore has made ready in the places of the stack's own, if there are any.

    A folder of that name is complete; so this may be interrupted at any moment, and is done again.
    """
    home = data_dir(env)
    ready = home / RESTORED
    if not ready.is_dir():
        return
    for file in sorted(ready.iterdir()):
        # What the old file still has in its log must not be taken for the new one's.
        for log in (f"{file.name}-wal", f"{file.name}-shm"):
            (home / log).unlink(missing_ok=True)
        file.replace(home / file.name)
    sync(home)
    ready.rmdir()


def unusable(path: Path, error: Exception) -> StackError:
    """Return what to say about a file that cannot be used."""
    return StackError(
        f"the database file {path} cannot be used: {one_line(error)}; check that the folder belongs to "
        "the user that runs the stack, that the disk is not full, and that the file is an SQLite database"
    )


def wait(env: Mapping[str, str], seconds: float) -> None:
    """Open (or create) the file and switch it to write-ahead logging: readers then work beside a writer.

    The mode is a property of the file and stays. Raises StackError if the file cannot be used.
    """
    path = database(env)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        settle(env)
        with closing(sqlite3.connect(path, timeout=max(1.0, seconds))) as connection:
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
    except (OSError, sqlite3.Error) as error:
        raise unusable(path, error) from None
    if mode != "wal":
        raise StackError(f"{path.parent} cannot hold an SQLite database in WAL mode; use a local disk")


def vital_signs(env: Mapping[str, str]) -> dict[str, float]:
    """Return the size of the file in bytes."""
    return {"file": database(env).stat().st_size}


def databases(env: Mapping[str, str]) -> list[Path]:
    """Return the database files that there are."""
    return [path for path in (database(env), data_dir(env) / "auth.db") if path.exists()]


def size(env: Mapping[str, str]) -> int:
    """Return the size of the files in bytes."""
    return sum(path.stat().st_size for path in databases(env))


def mark(env: Mapping[str, str]) -> str:
    """Return the checksum of the files: a schema change that fails leaves what it has done until then."""
    digest = hashlib.sha256()
    for path in databases(env):
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def engine(env: Mapping[str, str]):
    """Return a SQLAlchemy engine. SQLite keeps foreign keys only when each connection asks for it."""
    import sqlalchemy
    from sqlalchemy.pool import NullPool

    made = sqlalchemy.create_engine(uri(env), poolclass=NullPool, connect_args={"timeout": 60})
    sqlalchemy.event.listen(made, "connect", lambda one, _: one.execute("PRAGMA foreign_keys=ON"))
    return made


def outgrown(rows: Mapping[str, int]) -> str:
    """Return what to do about a database with so many rows in its tables, or nothing."""
    if rows["metrics"] <= MANY:
        return ""
    return (
        f"SQLite holds {rows['metrics']:,} metric points: a database server serves several people better. "
        "The template's docs/choosing.md has the way: 'scripts/update.sh --data backend=...'."
    )


@contextmanager
def exclusive(env: Mapping[str, str]) -> Iterator[None]:
    """Hold a lock file while the schema changes; others wait. Raises StackError if it cannot be written.

    SQLite lets whoever may only read begin to write, as long as a server has left its log behind.
    """
    try:
        lock = open(data_dir(env) / ".prepare.lock", "w")  # noqa: SIM115 # it is closed below
    except OSError as error:
        raise unusable(database(env), error) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
