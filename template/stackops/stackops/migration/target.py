"""The database of this stack, as the place where rows go."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from stackops.backends import postgres
from stackops.errors import StackError, one_line
from stackops.migration import catalogue, files
from stackops.migration.files import SEEDED, quoted

PATIENCE = (
    20  # seconds for the sessions of a server that has just been stopped, or of a killed migration, to end
)

SETTINGS = (
    "SET LOCAL statement_timeout = 0",
    "SET LOCAL idle_in_transaction_session_timeout = 0",
    "SET LOCAL lock_timeout = '30s'",
    "SET LOCAL maintenance_work_mem = '128MB'",
    # The server notices within seconds that this program is gone, even while it builds an index.
    "SET LOCAL client_connection_check_interval = '2s'",
)


@dataclass
class Target:
    """An open transaction on this stack's database, and what its tables are made of."""

    connection: object
    tables: dict[str, catalogue.Table]
    parts: dict[str, str]
    called: str

    def cursor(self):
        """Return a new cursor."""
        return self.connection.cursor()

    def mlflow_tables(self, part: str) -> set[str]:
        """Return the tables of a part that MLflow itself has made: not the version table, not the owner's
        own."""
        return files.own_tables(part) & set(self.tables)


@contextmanager
def opened(env: Mapping[str, str]) -> Iterator[Target]:
    """Connect, begin a transaction and look at the tables; roll back unless the caller has committed.

    Raises StackError if the database cannot be used or does not have this MLflow version's schema.
    """
    called = f"database {env['DB_NAME']} on {env['DB_HOST']}"
    import psycopg2

    try:
        connection = postgres.connect(env)
    except psycopg2.Error as error:
        raise StackError(f"{called} refuses the connection: {postgres.gist(str(error))}") from None
    try:
        connection.set_client_encoding("UTF8")
        with connection.cursor() as cursor:
            settle(cursor)
            cursor.execute("SHOW server_encoding")
            if cursor.fetchone()[0] != "UTF8":
                raise StackError(
                    f"{called} does not keep text in UTF8; make a new database with ENCODING 'UTF8'"
                )
            tables = catalogue.tables(cursor)
            parts = {}
            for part in files.PARTS.values():
                if part.version_table in tables:
                    cursor.execute(f"SELECT version_num FROM {part.version_table}")
                    if row := cursor.fetchone():
                        parts[part.name] = row[0]
        for name in files.VERSION_TABLES:
            tables.pop(name, None)
        if parts.get("tracking") != files.history("tracking").newest:
            raise StackError(
                f"{called} does not have the tables of this MLflow version yet; run make up first"
            )
        yield Target(connection, tables, parts, called)
    finally:
        connection.close()


def settle(cursor) -> None:
    """Give the transaction the settings of a move; each transaction needs them anew."""
    for statement in SETTINGS:
        _try(cursor, statement)


def _try(cursor, statement: str) -> None:
    """Execute a setting that an older server, or a managed one, may not have."""
    import psycopg2

    cursor.execute("SAVEPOINT setting")
    try:
        cursor.execute(statement)
    except psycopg2.Error:
        cursor.execute("ROLLBACK TO SAVEPOINT setting")
    cursor.execute("RELEASE SAVEPOINT setting")


def wait_for_silence(target: Target) -> None:
    """Return when no other session of this role is left. Raises StackError if one still is after PATIENCE."""
    until = time.monotonic() + PATIENCE
    while True:
        with target.cursor() as cursor:
            cursor.execute("SELECT pg_stat_clear_snapshot()")
            cursor.execute(
                "SELECT count(*), min(application_name) FROM pg_stat_activity WHERE datname = "
                "current_database() "
                "AND pid <> pg_backend_pid() AND usename = current_user"
            )
            count, name = cursor.fetchone()
        if not count:
            return
        if time.monotonic() > until:
            raise StackError(
                f"{count} other sessions use the {target.called} (one is {name or 'unnamed'!r}); stop the "
                "server first: "
                "docker compose stop mlflow"
            )
        time.sleep(0.5)


def lock(target: Target, names: list[str]) -> None:
    """Keep everybody else away from the tables until the transaction ends. Raises StackError."""
    import psycopg2

    with target.cursor() as cursor:
        try:
            cursor.execute(f"LOCK TABLE {', '.join(map(quoted, names))} IN ACCESS EXCLUSIVE MODE")
        except psycopg2.errors.LockNotAvailable:
            raise StackError(
                f"the {target.called} is in use; stop the server first: docker compose stop mlflow"
            ) from None
        except psycopg2.errors.InsufficientPrivilege as error:
            raise StackError(
                f"the {target.called}: {one_line(error.diag.message_primary)}; the role must own the tables"
            ) from None


def occupied(target: Target, names: list[str]) -> dict[str, int]:
    """Return the tables that hold more than a fresh stack's rows, with the number of those rows."""
    found = {}
    with target.cursor() as cursor:
        for name in names:
            only = f" WHERE NOT ({SEEDED[name]})" if name in SEEDED else ""
            cursor.execute(f"SELECT count(*) FROM {quoted(name)}{only}")
            if count := cursor.fetchone()[0]:
                found[name] = count
    return found
