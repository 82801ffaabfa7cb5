"""The other engine: pgloader, wrapped so that the result is right or nothing was changed.

pgloader runs in a container of its own between two commands of this one. `prepare` makes a schema with fresh
tables, pgloader fills them, and `finish` compares them with the prepared copy. Only then do they take the
place of the old tables, in one transaction. Whatever happens before leaves those as they were.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from stackops.backends import postgres
from stackops.errors import StackError, one_line
from stackops.migration import catalogue, load, verify
from stackops.migration.source import SQLite
from stackops.migration.target import Target
from stackops.migration.values import quoted

Say = Callable[[str], None]

SCHEMA = "mlflow_incoming"
STATE = "state.json"


def make_schema(target: Target, env: Mapping[str, str]) -> None:
    """Make the schema anew, with the tables of this MLflow version. Raises StackError."""
    drop_schema(target)
    with target.cursor() as cursor:
        cursor.execute(f"CREATE SCHEMA {SCHEMA}")
    target.connection.commit()
    uri = f"{postgres.uri(env)}&options=-csearch_path%3D{SCHEMA}"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mlflow", "db", "upgrade", uri], text=True, capture_output=True
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise StackError(
            f"the tables for pgloader cannot be made: {one_line(lines[-1])}; nothing was changed"
        )


def drop_schema(target: Target) -> None:
    """Remove the schema, also one that a killed run left."""
    with target.cursor() as cursor:
        cursor.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")


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

    The caller holds the locks. Raises StackError; then the old tables are there and the schema is gone.
    """
    try:
        with load.explained(target):
            before = verify.shape(target)
            for name in names:
                for _ in source.chunks(name, target.tables[name].kinds):
                    pass  # sums the rows of the copy
            with target.cursor() as cursor:
                cursor.execute("SET LOCAL search_path TO " + SCHEMA)
                count = catalogue.restart_sequences(cursor)
                cursor.execute(f"ANALYZE {', '.join(quoted(name) for name in names)}")
            say(f"pgloader: done; {count} sequences set, analysed")
            verify.same_rows(target, source, names)
            say(f"verified: {len(names)} tables, count and checksum of every one equal on both sides")
            verify.same_shape(target, before)
            _replace(target)
            verify.same_shape(target, before)
            say("verified: foreign keys, indexes, checks, triggers and sequences are those of a fresh schema")
            target.connection.commit()
    except StackError as error:
        target.connection.rollback()
        drop_schema(target)
        target.connection.commit()
        raise StackError(f"pgloader: {error}; ENGINE=copy can do it") from None


def _replace(target: Target) -> None:
    """Put every table and function of the schema in the place of the old one."""
    with target.cursor() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace AND relkind = 'r'", (SCHEMA,)
        )
        tables = [name for (name,) in cursor.fetchall()]
        cursor.execute(
            "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = %s::regnamespace", (SCHEMA,)
        )
        functions = [name for (name,) in cursor.fetchall()]
        cursor.execute("SET LOCAL search_path TO DEFAULT")
        cursor.execute("SELECT quote_ident(current_schema())")
        (schema,) = cursor.fetchone()
        cursor.execute(f"DROP TABLE {', '.join(f'{schema}.{quoted(name)}' for name in tables)}")
        for name in functions:
            plain = name.removeprefix(f"{SCHEMA}.")
            cursor.execute(f"DROP FUNCTION {schema}.{plain}")
            cursor.execute(f"ALTER FUNCTION {SCHEMA}.{plain} SET SCHEMA {schema}")
        for name in tables:
            cursor.execute(f"ALTER TABLE {SCHEMA}.{quoted(name)} SET SCHEMA {schema}")
        cursor.execute(f"DROP SCHEMA {SCHEMA}")
