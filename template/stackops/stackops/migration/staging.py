"""A schema of its own inside the target's database, in which rows wait until they are right.

Its tables then take the place of the old ones in one transaction. Until that is final, those are as they
were.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace

from stackops.backends import postgres
from stackops.errors import StackError, one_line
from stackops.migration import catalogue, load, verify
from stackops.migration.files import VERSION_TABLES, quoted
from stackops.migration.target import Target, settle

Say = Callable[[str], None]

SCHEMA = "mlflow_incoming"

# MLflow makes an empty database in these two steps; here the second one ends where the source is.
AT_REVISION = """
import sys
from alembic import command
from mlflow.store.db.utils import _get_alembic_config
from mlflow.store.tracking.dbmodels.initial_models import Base
from sqlalchemy import create_engine
uri, revision = sys.argv[1:]
Base.metadata.create_all(create_engine(uri))
command.upgrade(_get_alembic_config(uri), revision)
"""


def make(target: Target, env: Mapping[str, str], revision: str | None = None) -> None:
    """Make the schema anew, with the tables of this MLflow version or of an older revision; commit.

    Raises StackError; then the schema is gone.
    """
    drop(target)
    with target.cursor() as cursor:
        cursor.execute(f"CREATE SCHEMA {SCHEMA}")
    target.connection.commit()
    with undone(env):
        if revision:
            _run(env, "cannot be made", "-c", AT_REVISION, revision=revision)
        else:
            upgrade(env, "cannot be made")


def upgrade(env: Mapping[str, str], failed: str = "cannot be upgraded") -> None:
    """Bring the schema's tables to this MLflow version with MLflow's own command. Raises StackError."""
    _run(env, failed, "-m", "mlflow", "db", "upgrade")


def _run(env: Mapping[str, str], failed: str, *words: str, revision: str | None = None) -> None:
    uri = f"{postgres.uri(env)}&options=-csearch_path%3D{SCHEMA}"
    done = subprocess.run(
        [sys.executable, "-P", *words, uri, *([revision] if revision else [])], text=True, capture_output=True
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        cause = next((line for line in reversed(lines) if "Error" in line), lines[-1])
        raise StackError(f"the tables in which rows wait {failed}: {one_line(cause)}; nothing was changed")


def drop(target: Target) -> None:
    """Remove the schema, also one that a killed run left."""
    with target.cursor() as cursor:
        cursor.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")


@contextmanager
def undone(env: Mapping[str, str], target: Target | None = None) -> Iterator[None]:
    """Remove the schema if the block fails, over a connection of its own: the target's may be the failure."""
    import psycopg2

    try:
        yield
    except BaseException:
        with suppress(psycopg2.Error):
            if target:
                target.connection.close()
            with closing(postgres.connect(env)) as connection, connection, connection.cursor() as cursor:
                cursor.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
        raise


def entered(target: Target) -> Target:
    """Return the target, which looks at the schema until the transaction ends."""
    with target.cursor() as cursor:
        settle(cursor)
        cursor.execute(f"SET LOCAL search_path TO {SCHEMA}")
        tables = catalogue.tables(cursor)
    for name in VERSION_TABLES:
        tables.pop(name, None)
    return replace(target, tables=tables)


def ready(target: Target, names: Sequence[str]) -> int:
    """Set the sequences of the schema's tables and analyse them; return how many sequences there are."""
    with target.cursor() as cursor:
        cursor.execute(f"SET LOCAL search_path TO {SCHEMA}")
        count = catalogue.restart_sequences(cursor)
        cursor.execute(f"ANALYZE {', '.join(quoted(name) for name in names)}")
    return count


def take_over(target: Target, before: Sequence[str], say: Say) -> None:
    """Put the schema's tables in the place of the old ones, whose shape was `before`. Raises StackError.

    The caller holds the locks and commits.
    """
    with load.explained(target):
        verify.same_shape(target, before)
        _replace(target)
        verify.same_shape(target, before)
    say("verified: foreign keys, indexes, checks, triggers and sequences are those of a fresh schema")


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
        granted = catalogue.grants(cursor)
        cursor.execute(f"DROP TABLE {', '.join(f'{schema}.{quoted(name)}' for name in tables)}")
        for name in functions:
            plain = name.removeprefix(f"{SCHEMA}.")
            cursor.execute(f"DROP FUNCTION {schema}.{plain}")
            cursor.execute(f"ALTER FUNCTION {SCHEMA}.{plain} SET SCHEMA {schema}")
        for name in tables:
            cursor.execute(f"ALTER TABLE {SCHEMA}.{quoted(name)} SET SCHEMA {schema}")
        cursor.execute(f"DROP SCHEMA {SCHEMA}")
        for statement in granted:  # the new tables have none
            cursor.execute(statement)
        if catalogue.grants(cursor) != granted:
            raise StackError(
                f"what other roles may do in the {target.called} came out different; nothing was changed, "
                "please report this"
            )
