"""`make migrate` into somebody else's PostgreSQL: TLS only, an authority of its own, a role that owns one database.

Both engines from the same SQLite file, through the stack's own command.
"""

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import moving
import needs
import oracle
import psycopg2
import pytest

sys.path.insert(0, str(moving.ROOT / "tests" / "e2e"))
import outside  # noqa: E402
from stacks import Stack, stack  # noqa: E402


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, str]]:
    """A running stack on such a database, and libpq's address of it."""
    needs.engine()
    folder = tmp_path_factory.mktemp("cloud")
    answers = {"backend": "managed", "artifact_store": "local", "artifact_access": "proxied"}
    with outside.managed_postgres() as database, stack(folder, "a-managed", answers) as made:
        database.fill(made)
        made.up()
        own = {key.removeprefix("DB_").lower(): value for key, value in database.settings.items()}
        yield made, psycopg2.extensions.make_dsn(
            host=own["host"], port=own["port"], dbname=own["name"], user=own["user"],
            password=database.secrets["db_password"], sslmode="verify-full",
            sslrootcert=str(made.folder / "secrets" / "db_ca.pem"),
        )  # fmt: skip


@pytest.fixture(scope="module")
def store(rich_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rich store, where the user that runs the stack may read it; MLflow's server starts over its rows.

    It refuses to with workspaces or rollups, unless it is told to use them. And it cannot list what it would never
    write itself, such as a run without a user: so the experiments with such rows are deleted ones, which nobody lists.
    """
    folder = tmp_path_factory.mktemp("managed")
    folder.chmod(0o755)
    with closing(sqlite3.connect(rich_store)) as connection:
        scoped = connection.execute(
            "SELECT t.name FROM sqlite_schema t, pragma_table_info(t.name) c "
            "WHERE t.type = 'table' AND c.name = 'workspace'"
        ).fetchall()
    plain = ["DELETE FROM workspaces WHERE name <> 'default'"]
    plain += ["UPDATE experiments SET lifecycle_stage = 'deleted' WHERE experiment_id >= 1000"]
    plain += [f"UPDATE \"{table}\" SET workspace = 'default'" for (table,) in scoped]
    rollups = ("sql_trace_metric_daily_rollups", "sql_span_cost_daily_rollups", "sql_assessment_daily_rollups")
    path = moving.copy(rich_store, folder, *plain, *(f"DELETE FROM {name}" for name in rollups))
    path.chmod(0o644)
    return path


@pytest.fixture(scope="module")
def finite_store(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without infinities and JSON that is one float, which pgloader cannot load: see test_pgloader.py."""
    folder = tmp_path_factory.mktemp("finite")
    folder.chmod(0o755)
    with closing(sqlite3.connect(store)) as connection:
        columns = connection.execute(
            "SELECT t.name, c.name, c.type FROM sqlite_schema t, pragma_table_info(t.name) c "
            "WHERE t.type = 'table' AND c.type IN ('FLOAT', 'REAL', 'DOUBLE', 'JSON')"
        ).fetchall()
    finite = (
        f'UPDATE "{table}" SET "{name}" = 7 WHERE typeof("{name}") = \'real\' AND '
        + ("1" if kind == "JSON" else f'abs("{name}") = 9e999')
        for table, name, kind in columns
    )
    path = moving.copy(store, folder, *finite)
    path.chmod(0o644)
    return path


def prove_leaves(store: Path, dsn: str) -> list[str]:
    """Return what differs besides what `make migrate` itself and the server add: an experiment that it deletes."""
    with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM experiments WHERE name LIKE 'prove-%'")
        connection.commit()
    return oracle.differences(store, dsn)


def test_the_database_is_what_it_should_be(cloud):
    _, dsn = cloud
    with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        assert cursor.fetchone() == (True,)
        cursor.execute("SELECT rolsuper OR rolcreatedb OR rolcreaterole FROM pg_roles WHERE rolname = current_user")
        assert cursor.fetchone() == (False,)
    with pytest.raises(psycopg2.OperationalError, match="no pg_hba.conf entry"):
        psycopg2.connect(dsn, sslmode="disable")


@pytest.mark.parametrize("engine", ["copy", "pgloader"])
def test_every_row_arrives(cloud, request, engine):
    made, dsn = cloud
    store = request.getfixturevalue("store" if engine == "copy" else "finite_store")
    said = made.make("migrate", f"FROM={store}", f"ENGINE={engine}", "REPLACE=1")
    assert "64 tables, count and checksum of every one equal on both sides" in said
    assert "proved: an experiment can be created and deleted" in said
    assert prove_leaves(store, dsn) == []
    with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'mlflow%'")
        assert cursor.fetchone() == (0,)
