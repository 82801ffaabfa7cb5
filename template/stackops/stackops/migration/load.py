"""Loads every table in one transaction: what fails, or is killed, leaves the target as it was.

Foreign keys are taken away first and brought back, checked, at the end, so that tables may come in any order
and no superuser is needed. Tables with many rows lose their indexes too: building one at the end is faster
than keeping it up to date, and gives a smaller one.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from stackops.errors import StackError, one_line
from stackops.migration import catalogue, verify
from stackops.migration.files import quoted
from stackops.migration.target import Target

Say = Callable[[str], None]

MANY = 20_000


class Progress:
    """Prints how far the load is: over and over on one line of a terminal, or now and then on lines of
    their own."""

    def __init__(self, total: int, stream=None):
        self.total, self.stream = total, stream or sys.stderr
        self.done, self.started = 0, time.monotonic()
        self.terminal = self.stream.isatty()
        self.every = 0.2 if self.terminal else 10.0
        self.next = self.started + self.every

    def add(self, rows: int) -> None:
        """Count rows that are loaded."""
        self.done += rows
        if (now := time.monotonic()) >= self.next:
            self.next = now + self.every
            self._print(now)

    def _print(self, now: float) -> None:
        speed = self.done / max(now - self.started, 1e-9)
        left = (self.total - self.done) / speed if speed else 0
        text = f"{self.done:,} of {self.total:,} rows, {speed:,.0f} rows/s, {left:.0f} s left"
        if self.terminal:
            bar = "#" * int(20 * self.done / max(self.total, 1))
            print(f"\r\x1b[K[{bar:<20}] {text}", end="", file=self.stream, flush=True)
        else:
            print(text, file=self.stream, flush=True)

    def end(self) -> float:
        """Clear the line; return the seconds since the start."""
        if self.terminal:
            print("\r\x1b[K", end="", file=self.stream, flush=True)
        return time.monotonic() - self.started


class Stream:
    """What psycopg2 reads from: it takes chunks of any size.

    Keeps the exception that a chunk ended with, because psycopg2 only passes its text on.
    """

    def __init__(self, chunks: Iterator[bytes], progress: Progress):
        self.chunks, self.progress = chunks, progress
        self.failed: BaseException | None = None

    def read(self, size: int) -> bytes:
        """Return the next chunk, or nothing at the end."""
        try:
            chunk = next(self.chunks, b"")
        except BaseException as error:
            self.failed = error
            raise
        self.progress.add(chunk.count(b"\n"))
        return chunk


def load(target: Target, source, names: Sequence[str], say: Say) -> None:
    """Replace the rows of the tables `names` by the source's, verify, and commit.

    The caller holds the locks, and explains (see `explained`) what the database raises.
    """
    before = verify.shape(target)
    replace_rows(target, source, names, say)
    verify.same_rows(target, source, names)
    say(f"verified: {len(names)} tables, count and checksum of every one equal on both sides")
    verify.same_shape(target, before)
    say("verified: foreign keys, indexes, checks, triggers and sequences are those of a fresh schema")
    try:
        target.connection.commit()
    except Exception as error:
        raise StackError(
            f"the connection to the {target.called} was lost at the very end ({one_line(error)}): the rows "
            "are there "
            "or none is; run the same command again, it will say so"
        ) from None


def replace_rows(target: Target, source, names: Sequence[str], say: Say) -> None:
    """Empty the tables and fill them from the source, without foreign keys and, where it pays, without
    indexes."""
    totals = {name: source.total(name) for name in names}
    tables = [target.tables[name] for name in names]
    many = [table for table in tables if totals[table.name] > MANY]
    cursor = target.cursor()
    # Foreign keys go first and come back last: they stand on the others' keys.
    away, back = [], []
    for table, only_keys in [*((t, True) for t in tables), *((t, False) for t in many)]:
        gone, restored = catalogue.take_apart(table, only_keys)
        away, back = away + gone, restored + back
    for statement in away:
        cursor.execute(statement)
    cursor.execute(f"TRUNCATE {', '.join(quoted(name) for name in names)}")
    progress = Progress(sum(totals.values()))
    for table in tables:
        if totals[table.name]:
            copy_in(cursor, table, source, progress)
    seconds = progress.end()
    say(
        f"loaded: {progress.done:,} rows in {seconds:.1f} s ({progress.done / max(seconds, 1e-9):,.0f} "
        "rows/s)"
    )
    started = time.monotonic()
    for statement in back:
        cursor.execute(statement)
    count = catalogue.restart_sequences(cursor)
    cursor.execute(f"ANALYZE {', '.join(quoted(name) for name in names)}")
    say(
        f"indexes and foreign keys rebuilt, {count} sequences set, analysed in "
        f"{time.monotonic() - started:.1f} s"
    )


def copy_in(cursor, table: catalogue.Table, source, progress: Progress) -> None:
    """Load one table. FREEZE: nobody else can see the table, so its rows need no vacuum later."""
    columns = ", ".join(quoted(column.name) for column in table.columns)
    stream = Stream(source.chunks(table.name, table.kinds), progress)
    try:
        cursor.copy_expert(f"COPY {quoted(table.name)} ({columns}) FROM STDIN WITH (FREEZE)", stream)
    except Exception:
        if stream.failed:
            raise stream.failed from None
        raise
    finally:
        stream.chunks.close()


@contextmanager
def explained(target: Target) -> Iterator[None]:
    """Turn what the database, or SQLite, says into one sentence; the transaction is never committed then."""
    import sqlite3

    import psycopg2

    try:
        yield
    except psycopg2.errors.DiskFull as error:
        raise StackError(
            f"the {target.called} is full ({_gist(error)}); make room there, nothing was changed"
        ) from None
    except (
        psycopg2.errors.ForeignKeyViolation,
        psycopg2.errors.UniqueViolation,
        psycopg2.errors.CheckViolation,
    ) as error:
        detail = f": {one_line(error.diag.message_detail)}" if error.diag.message_detail else ""
        raise StackError(
            f"the rows break a rule of the database: {_gist(error)}{detail}; nothing was changed"
        ) from None
    except psycopg2.DataError as error:
        where = (error.diag.context or "").split(": ")[0]
        raise StackError(
            f"PostgreSQL refuses a value: {_gist(error)} ({one_line(where)}); nothing was changed"
        ) from None
    except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
        raise StackError(
            f"the connection to the {target.called} was lost: {_gist(error)}; nothing was changed, run the "
            "same command again"
        ) from None
    except psycopg2.Error as error:
        raise StackError(f"the {target.called} refuses: {_gist(error)}; nothing was changed") from None
    except sqlite3.Error as error:
        raise StackError(
            f"the copy of the source cannot be read: {one_line(error)}; nothing was changed"
        ) from None


def _gist(error) -> str:
    """Return the database's own words on one line."""
    return one_line(error.diag.message_primary or error)
