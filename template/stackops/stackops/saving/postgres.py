"""PostgreSQL, with its own pg_dump, pg_restore and psql in the version of the image (transfer/Dockerfile).

See __init__.py. The password is in libpq's passfile: no command line and no environment has it.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

from stackops.backends import postgres
from stackops.errors import StackError, one_line
from stackops.saving.manifest import Manifest, Snapshot
from stackops.settings import need

DUMP = "database.dump"
CLIENT = "/opt/postgres/bin"
PATIENCE = 20  # seconds for the sessions of a server that has just been stopped to end
VERSION_TABLES = {"tracking": "alembic_version", "users": "alembic_version_auth"}
SEEDED = {"experiments": "experiment_id = 0", "workspaces": "name = 'default'", "users": "username = 'admin'"}
TABLES = (
    "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') "
    "AND relnamespace = to_regnamespace(current_schema())"
)
# How values become text, so that a checksum of it is the same everywhere.
TEXTS = (
    "SET LOCAL extra_float_digits = 1",
    "SET LOCAL bytea_output = 'hex'",
    "SET LOCAL DateStyle = 'ISO'",
    "SET LOCAL IntervalStyle = 'postgres'",
    "SET LOCAL TimeZone = 'UTC'",
)
QUIET = ("SET LOCAL statement_timeout = 0", "SET LOCAL idle_in_transaction_session_timeout = 0")
# Everything of the schema that a dump brings back; what depends on a table goes with it.
CLEAR = """
SELECT format('DROP %s IF EXISTS %s CASCADE', kind, name) FROM (
    SELECT CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
        ELSE 'TABLE' END, c.oid::regclass::text,
        CASE WHEN relkind IN ('v', 'm') THEN 0 WHEN relkind = 'S' THEN 2 ELSE 1 END,
        c.oid, 'pg_class'::regclass
    FROM pg_class c
    WHERE relkind IN ('r', 'p', 'v', 'm', 'S') AND relnamespace = to_regnamespace(current_schema())
    UNION ALL
    SELECT 'ROUTINE', p.oid::regprocedure::text, 3, p.oid, 'pg_proc'::regclass
    FROM pg_proc p WHERE pronamespace = to_regnamespace(current_schema())
    UNION ALL
    SELECT 'TYPE', t.oid::regtype::text, 4, t.oid, 'pg_type'::regclass
    FROM pg_type t WHERE typtype = 'e' AND typnamespace = to_regnamespace(current_schema())
) AS found (kind, name, number, object, class)
WHERE NOT EXISTS (SELECT FROM pg_depend WHERE classid = class AND objid = object AND deptype = 'e')
ORDER BY number, name
"""


def tool(name: str) -> str:
    """Return the path of one of PostgreSQL's programs. Raises StackError where there is none."""
    if path := shutil.which(name, path=f"{CLIENT}{os.pathsep}{os.environ.get('PATH', '')}"):
        return path
    raise StackError(
        f"{name} is not in this image; use make backup and make restore, which build one that has it"
    )


def address(env: Mapping[str, str]) -> str:
    """Return how libpq finds the database; without the password."""
    words = {
        "host": need(env, "DB_HOST"),
        "port": env.get("DB_PORT") or "5432",
        "dbname": need(env, "DB_NAME"),
        "user": need(env, "DB_USER"),
        **postgres.parameters(env),
    }
    return " ".join(
        "{}='{}'".format(k, v.replace("\\", "\\\\").replace("'", "\\'")) for k, v in words.items()
    )


def quoted(name: str) -> str:
    """Return an SQL identifier."""
    return '"{}"'.format(name.replace('"', '""'))


def _where(env: Mapping[str, str]) -> str:
    return f"database {env['DB_NAME']} on {env['DB_HOST']}"


def _connected(env: Mapping[str, str]):
    import psycopg2

    try:
        return postgres.connect(env)
    except psycopg2.Error as error:
        raise StackError(f"the {_where(env)} refuses the connection: {postgres.gist(str(error))}") from None


def _cause(text: str) -> str:
    """Return the line of a program's messages that says what is wrong."""
    lines = [line for line in text.splitlines() if line.strip()]
    told = [line for line in lines if "error:" in line.lower()]
    return one_line((told or lines or ["no message"])[0])


def snapshot(env: Mapping[str, str], folder: Path) -> Snapshot:
    """Write a dump in the custom format. Meanwhile the rows are summed up, in the very state that it has."""
    path = folder / DUMP
    with closing(_connected(env)) as connection, connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for statement in (*QUIET, *TEXTS):
            cursor.execute(statement)
        cursor.execute("SELECT pg_export_snapshot(), current_schema()")
        exported, schema = cursor.fetchone()
        with subprocess.Popen(
            [
                tool("pg_dump"), "--format=custom", "--compress=zstd:3", "--no-owner", "--no-privileges",
                "--exclude-extension=*", "--lock-wait-timeout=60s", f"--snapshot={exported}",
                f"--file={path}",
                f"--dbname={address(env)}",
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        ) as dump:  # fmt: skip
            try:
                cursor.execute(TABLES)
                names = sorted(name for (name,) in cursor.fetchall())
                tables, sums, revisions = {}, {}, {}
                for name in names:
                    cursor.execute(summed(quoted(name)))
                    tables[name], sums[name] = cursor.fetchone()
                for part, table in VERSION_TABLES.items():
                    sums.pop(table, None)
                    if tables.pop(table, 0):
                        cursor.execute(f"SELECT version_num FROM {table}")
                        (revisions[part],) = cursor.fetchone()
                said = dump.stderr.read()
            except BaseException:
                dump.kill()
                raise
    if dump.returncode:
        if "No space left" in said:
            raise OSError(28, "No space left on device")
        raise StackError(f"pg_dump of the {_where(env)} failed: {_cause(said)}")
    if "tracking" not in revisions:
        raise StackError(f"the {_where(env)} has no tables of MLflow's yet; run make up first")
    return Snapshot([DUMP], revisions, tables, sums, schema)


def occupied(env: Mapping[str, str]) -> dict[str, int]:
    """Return the tables that hold more than a fresh stack's rows, with the number of those rows."""
    found = {}
    with closing(_connected(env)) as connection, connection.cursor() as cursor:
        cursor.execute(TABLES)
        for name in sorted(name for (name,) in cursor.fetchall()):
            if name.startswith("alembic_"):
                continue
            only = f" WHERE NOT ({SEEDED[name]})" if name in SEEDED else ""
            cursor.execute(f"SELECT count(*) FROM {quoted(name)}{only}")
            if count := cursor.fetchone()[0]:
                found[name] = count
    return found


def _silence(env: Mapping[str, str]) -> None:
    """Return when nobody else uses the database. Raises StackError if somebody still does after PATIENCE."""
    until = time.monotonic() + PATIENCE
    with closing(_connected(env)) as connection:
        connection.autocommit = True
        while True:
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT count(*), min(application_name) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid() "
                    "AND usename = current_user AND application_name = 'mlflow'"
                )
                count, name = cursor.fetchone()
            if not count:
                return
            if time.monotonic() > until:
                raise StackError(
                    f"{count} other sessions use the {_where(env)} (one is {name!r}); stop the server first"
                )
            time.sleep(0.5)


def _prelude(env: Mapping[str, str], schema: str) -> str:
    """Return the beginning of the transaction: it takes away everything that is there. Raises StackError."""
    with closing(_connected(env)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT current_schema()")
        (own,) = cursor.fetchone()
        if own != schema:
            raise StackError(
                f"the backup's tables are in the schema {schema}, and the role's in the {_where(env)} is "
                f"{own}; give it the same search_path"
            )
        cursor.execute(CLEAR)
        away = [f"{statement};" for (statement,) in cursor.fetchall()]
    begin = ["BEGIN;", *(f"{statement};" for statement in QUIET), "SET LOCAL lock_timeout = '30s';"]
    begin.append(f"SELECT pg_catalog.pg_advisory_xact_lock({postgres.LOCK});")
    return "\n".join(["\\set ON_ERROR_STOP on", *begin, *away, ""])


def epilogue(found: Manifest) -> str:
    """Return the end of the transaction: it counts and compares every table, and only then it holds."""
    set_texts = [f"{statement};" for statement in TEXTS]
    checks = [
        f"IF ({summed(f'{quoted(found.schema)}.{quoted(name)}', as_row=True)}) IS DISTINCT FROM "
        f"ROW({int(rows)}::bigint, {_literal(found.sums[name])}::text) THEN RAISE EXCEPTION "
        f"'the table % came out with other rows than the backup has', {_literal(name)}; END IF;"
        for name, rows in sorted(found.tables.items())
    ]
    return "\n".join(["", *set_texts, "DO $check$ BEGIN", *checks, "END $check$;", "COMMIT;", ""])


def summed(table: str, as_row: bool = False) -> str:
    """Return the query for the number of rows of a table, and a checksum that their order does not change."""
    row = "('x' || left(md5(this_row::text), 16))::bit(64)::bigint"
    both = f"count(*), coalesce(sum({row}), 0)::text"
    return f"SELECT {f'ROW({both})' if as_row else both} FROM {table} AS this_row"


def _literal(text: str) -> str:
    return "'{}'".format(text.replace("'", "''"))


def load(env: Mapping[str, str], folder: Path, found: Manifest, say: Callable[[str], None]) -> None:
    """Replace everything in one transaction, which ends only after every row was counted.

    psql is told to commit by the last words it gets: if this program, or pg_restore, ends early, nothing
    holds.
    """
    _silence(env)
    prelude = _prelude(env, found.schema)
    into = subprocess.Popen(
        [tool("psql"), "--no-psqlrc", "--quiet", "--output=/dev/null", f"--dbname={address(env)}"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PGCLIENTENCODING": "UTF8"},
    )  # fmt: skip
    unpacked = None
    try:
        into.stdin.write(prelude)
        into.stdin.flush()
        unpacked = subprocess.run(
            [tool("pg_restore"), "--no-owner", "--no-privileges", "--file=-", str(folder / DUMP)],
            stdin=subprocess.DEVNULL, stdout=into.stdin, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        if unpacked.returncode == 0:
            into.stdin.write(epilogue(found))
            into.stdin.close()
        else:
            into.kill()
    except BrokenPipeError:
        pass  # psql has said why
    except BaseException:
        into.kill()
        raise
    said = into.stderr.read()
    if into.wait() == 0 and unpacked is not None and unpacked.returncode == 0:
        return
    cause = said if said.strip() else unpacked.stderr if unpacked else ""
    raise StackError(f"the {_where(env)} did not take the backup: {_cause(cause)}; nothing was changed in it")
