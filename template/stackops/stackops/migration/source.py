"""What can be moved. Each source gives the rows of a table as chunks of COPY text, and counts and sums them.

A source has:

`called`                   how messages name it
`parts`                    the schemas that it holds: part name -> revision (see `PARTS`)
`tables`                   table -> the columns that it has
`chunks(table, columns)`   the rows as COPY text
`total(table)`             how many rows there are
`sums(table, columns)`     count and checksum; for SQLite only after `chunks` has been read to its end
"""

import gzip
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stackops.errors import StackError, one_line
from stackops.migration import catalogue, values
from stackops.migration.files import PARTS, VERSION_TABLES, File, quoted

Kinds = Sequence[tuple[str, str]]  # of a table's columns: (name, kind)

BATCH_ROWS = 2000
BATCH_BYTES = 1 << 20
WIDE = {"text", "json", "bytes"}


@dataclass(frozen=True)
class Sums:
    """Of all rows of a table: how many, and the sum of their hashes."""

    rows: int
    checksum: int


def by_column(rows: Sequence[tuple], columns: Kinds) -> list[Sequence]:
    """Return rows as columns; JSON is text from here on."""
    return [
        values.json_text(column) if kind == "json" else column
        for (_, kind), column in zip(columns, zip(*rows, strict=True), strict=True)
    ]


class SQLite(File):
    """The prepared copy of a SQLite file."""

    def __init__(self, path: Path, called: str):
        """Open the copy at `path`."""
        super().__init__(path, called)
        self._sums: dict[str, Sums] = {}

    def batches(self, table: str, columns: Kinds) -> Iterator[list[Sequence]]:
        """Yield the rows in batches of at most BATCH_ROWS rows and about BATCH_BYTES bytes, each as its
        columns."""
        wide = [number for number, (_, kind) in enumerate(columns) if kind in WIDE]
        wanted = ", ".join(values.SQLITE[kind].format(quoted(name)) for name, kind in columns)
        reader = self.connection.cursor()
        self.connection.text_factory = bytes
        try:
            rows, size = [], 0
            for row in reader.execute(f"SELECT {wanted} FROM {quoted(table)}"):
                rows.append(row)
                for number in wide:
                    if isinstance(row[number], bytes):
                        size += len(row[number])
                if size >= BATCH_BYTES or len(rows) >= BATCH_ROWS:
                    yield by_column(rows, columns)
                    rows, size = [], 0
            if rows:
                yield by_column(rows, columns)
        finally:
            self.connection.text_factory = str
            reader.close()

    def chunks(self, table: str, columns: Kinds) -> Iterator[bytes]:
        """Yield the rows as COPY text, and sum them on the way."""
        kinds = [kind for _, kind in columns]
        count = total = 0
        for batch in self.batches(table, columns):
            count += len(batch[0])
            total += values.checksum(kinds, batch)
            yield values.rows_copied(kinds, batch)
        self._sums[table] = Sums(count, total)

    def sums(self, table: str, columns: Kinds) -> Sums:
        """Return count and checksum of the rows that `chunks` gave."""
        return self._sums[table]


class Postgres:
    """Another PostgreSQL database, seen in one read-only snapshot."""

    def __init__(self, uri: str, passfile: str | None):
        """Connect to `uri`, which holds no password. Raises StackError with the cause."""
        import psycopg2
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(uri)
        except ArgumentError:
            raise StackError(
                "FROM is no address of a database; write postgresql+psycopg2://USER@HOST:5432/NAME"
            ) from None
        if url.password is not None:
            raise StackError(
                "FROM holds a password, and command lines are no secret; leave it out and name a file that "
                "holds it with PASSWORD_FILE="
            )
        if url.get_backend_name() != "postgresql":
            raise StackError(
                f"FROM is a {url.get_backend_name()} database; only SQLite and PostgreSQL can be moved"
            )
        self.called = f"{url.database} on {url.host}"
        options = {"connect_timeout": 10, "application_name": "stackops migrate", **url.query}
        if passfile:
            options["passfile"] = passfile
        try:
            self.connection = psycopg2.connect(
                host=url.host, port=url.port or 5432, user=url.username, dbname=url.database, **options
            )
        except psycopg2.Error as error:
            from stackops.backends.postgres import gist

            raise StackError(
                f"the database {self.called} refuses the connection: {gist(str(error))}; check FROM and "
                "PASSWORD_FILE"
            ) from None
        self.connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
        self.connection.set_client_encoding("UTF8")
        with self.connection.cursor() as cursor:
            cursor.execute("SET LOCAL statement_timeout = 0")
            cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            found = catalogue.tables(cursor)
            self.parts = {}
            for part in PARTS.values():
                if part.version_table in found:
                    cursor.execute(f"SELECT version_num FROM {part.version_table}")
                    if row := cursor.fetchone():
                        self.parts[part.name] = row[0]
        self.tables = {
            name: [column.name for column in table.columns]
            for name, table in found.items()
            if name not in VERSION_TABLES
        }

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Say that it is the source that failed."""
        import psycopg2

        try:
            yield
        except psycopg2.Error as error:
            raise StackError(
                f"the source {self.called} cannot be read: {one_line(error.diag.message_primary or error)}; "
                "nothing was changed"
            ) from None

    def total(self, table: str, only: str = "1 = 1") -> int:
        """Return the number of rows for which `only` holds."""
        with self._named(), self.connection.cursor() as cursor:
            cursor.execute(f"SELECT count(*) FROM {quoted(table)} WHERE {only}")
            return cursor.fetchone()[0]

    def chunks(self, table: str, columns: Kinds) -> Iterator[bytes]:
        """Yield the rows as COPY text. A thread writes them into a pipe, because psycopg2 only pushes."""
        names = ", ".join(quoted(name) for name, _ in columns)
        with self._named():
            yield from copy_out(self.connection, f"COPY (SELECT {names} FROM {quoted(table)}) TO STDOUT")

    def sums(self, table: str, columns: Kinds) -> Sums:
        """Return count and checksum, computed by the source's server."""
        with self._named(), self.connection.cursor() as cursor:
            cursor.execute(values.checksum_sql(quoted(table), columns))
            count, total = cursor.fetchone()
            return Sums(count, int(total))


def copy_out(connection, statement: str) -> Iterator[bytes]:
    """Yield what COPY … TO STDOUT writes. Raises what the statement raises."""
    read_end, write_end = os.pipe()
    failed: list[BaseException] = []

    def push() -> None:
        try:
            with os.fdopen(write_end, "wb") as file, connection.cursor() as cursor:
                cursor.copy_expert(statement, file)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=push, daemon=True)
    thread.start()
    with os.fdopen(read_end, "rb") as file:
        while chunk := file.read(1 << 16):
            yield chunk
    thread.join()
    if failed:
        raise failed[0]


class Backup:
    """A folder that `write_backup` made."""

    MANIFEST = "manifest.json"

    def __init__(self, folder: Path, called: str):
        """Read the folder's list. Raises StackError if it is none of ours or not whole."""
        self.folder, self.called = folder, called
        try:
            self.manifest = json.loads((folder / self.MANIFEST).read_text(encoding="utf-8"))
            self.parts = self.manifest["parts"]
            self.tables = {name: table["columns"] for name, table in self.manifest["tables"].items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StackError(f"{called} is no whole backup of this tool: {one_line(error)}") from None

    def close(self) -> None:
        """Nothing is open."""

    def total(self, table: str) -> int:
        """Return the number of rows."""
        return self.manifest["tables"][table]["rows"]

    def chunks(self, table: str, columns: Kinds) -> Iterator[bytes]:
        """Yield the rows as COPY text."""
        if [name for name, _ in columns] != self.tables[table]:
            raise StackError(f"{self.called}: table {table} has other columns than this MLflow version")
        with gzip.open(self.folder / f"{table}.copy.gz") as file:
            while chunk := file.read(1 << 16):
                yield chunk

    def sums(self, table: str, columns: Kinds) -> Sums:
        """Return what was counted and summed when the backup was made."""
        found = self.manifest["tables"][table]
        return Sums(found["rows"], int(found["checksum"]))


def write_backup(connection, tables: dict[str, catalogue.Table], parts: dict[str, str], folder: Path) -> None:
    """Write the tables into a new folder, from the transaction that `connection` is in. Raises StackError.

    The list comes last: a folder without it is not whole.
    """
    listed = {}
    try:
        folder.mkdir(mode=0o700, parents=True)
        for name, table in tables.items():
            columns = ", ".join(quoted(column.name) for column in table.columns)
            with connection.cursor() as cursor:
                cursor.execute(values.checksum_sql(quoted(name), table.kinds))
                count, total = cursor.fetchone()
                with gzip.open(folder / f"{name}.copy.gz", "wb", compresslevel=1) as file:
                    cursor.copy_expert(f"COPY {quoted(name)} ({columns}) TO STDOUT", file, 1 << 16)
            listed[name] = {"columns": [c.name for c in table.columns], "rows": count, "checksum": total}
        text = json.dumps({"parts": parts, "tables": listed}, indent=1)
        (folder / f".{Backup.MANIFEST}").write_text(text, encoding="utf-8")
        (folder / f".{Backup.MANIFEST}").replace(folder / Backup.MANIFEST)
    except OSError as error:
        raise StackError(
            f"the backup {folder} cannot be written: {error.strerror}; nothing was changed in the database"
        ) from None
