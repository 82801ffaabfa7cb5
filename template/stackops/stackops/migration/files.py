"""MLflow's databases as files: what is in them, and what belongs to MLflow."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from stackops import schema
from stackops.errors import StackError, one_line


@dataclass(frozen=True)
class Part:
    """A schema with revisions of its own inside a database: where its revision is, and MLflow's scripts
    for it."""

    name: str
    version_table: str
    scripts: tuple[str, ...]


PARTS = {
    "tracking": Part("tracking", "alembic_version", ("store", "db_migrations")),
    "users": Part("users", "alembic_version_auth", ("server", "auth", "db", "migrations")),
}
VERSION_TABLES = {part.version_table for part in PARTS.values()}


@dataclass(frozen=True)
class History:
    """The schema revisions that the installed MLflow knows, and the newest of them."""

    known: frozenset[str]
    newest: str


def history(part: str) -> History:
    """Return a part's revisions, read from MLflow's scripts as text.

    To import them is to import all of MLflow, which takes seconds and twice the memory of everything here.
    """
    texts = [
        file.read_text(encoding="utf-8")
        for file in schema.migrations(*PARTS[part].scripts, "versions").glob("*.py")
    ]
    known = {name for text in texts for name in re.findall(r'^revision = ["\'](\w+)', text, re.M)}
    older = {
        name
        for text in texts
        for line in re.findall(r"^down_revision = (.*)$", text, re.M)
        for name in re.findall(r"\w+", line)
    }
    (newest,) = known - older
    return History(frozenset(known), newest)


def quoted(name: str) -> str:
    """Return an identifier for SQL."""
    return '"' + name.replace('"', '""') + '"'


def own_tables(part: str) -> set[str]:
    """Return the names of a part's tables, read from the installed MLflow's files (see `history`)."""
    if part == "users":
        files = schema.migrations("server", "auth", "db", "migrations", "versions").glob("*.py")
        pattern = r'create_table\(\s*["\'](\w+)'
    else:
        files = schema.migrations("store").glob("*/dbmodels/models.py")
        pattern = r'__tablename__ = "(\w+)"'
    return {name for file in files for name in re.findall(pattern, file.read_text(encoding="utf-8"))}


SEEDED = {"experiments": "experiment_id = 0", "workspaces": "name = 'default'", "users": "username = 'admin'"}
"""What a fresh stack already has: it may be replaced without a word."""


@contextmanager
def sqlite_file(path: Path, called: str) -> Iterator[sqlite3.Connection]:
    """Open somebody else's SQLite file without writing anything, not even beside it. Raises StackError.

    With a write-ahead log beside it, the file may be in use, and SQLite reads both. Without one nobody has it
    open, and `immutable` keeps SQLite from making one.
    """
    wal = Path(f"{path}-wal")
    try:
        with path.open("rb") as file:
            header = file.read(100)
        if header and not header.startswith(b"SQLite format 3\0"):
            raise StackError(
                f"{called} is no SQLite file; FROM wants MLflow's database, for example mlflow.db"
            )
        if not header and not wal.exists():
            raise StackError(f"{called} is empty: there is nothing to move, look for the right file")
        write_ahead = header[18:19] == b"\2"
        mode = "immutable=1" if write_ahead and not wal.exists() else "mode=ro"
        with closing(
            sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True, timeout=30)
        ) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            yield connection
    except OSError as error:
        raise StackError(
            f"{called} cannot be read: {error.strerror}; look at the path and its permissions"
        ) from None
    except sqlite3.Error as error:
        raise StackError(
            f"{called} cannot be read: {one_line(error)}; stop what uses it and check it with "
            "PRAGMA integrity_check"
        ) from None


def revisions(connection: sqlite3.Connection) -> dict[str, str]:
    """Return part -> revision of the schemas in a SQLite database; {} if it is not MLflow's."""
    found = {}
    for part in PARTS.values():
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (part.version_table,)).fetchone():
            row = connection.execute(f"SELECT version_num FROM {part.version_table}").fetchone()
            if row:
                found[part.name] = str(row[0])
    return found


class File:
    """A SQLite file that this program may write to."""

    def __init__(self, path: Path, called: str):
        """Open the file at `path`, which messages call `called`."""
        self.called = called
        self.path = path
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.parts = revisions(self.connection)
        self.tables = {
            name: [column[1] for column in self.connection.execute(f"PRAGMA table_xinfo({quoted(name)})")]
            for (name,) in self.connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY "
                "name"
            ).fetchall()
            if name not in VERSION_TABLES
        }

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    def total(self, table: str, only: str = "1 = 1") -> int:
        """Return the number of rows for which `only` holds."""
        return self.connection.execute(f"SELECT count(*) FROM {quoted(table)} WHERE {only}").fetchone()[0]
