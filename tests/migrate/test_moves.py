"""What must arrive: every row of every table, in a schema that is as good as new."""

import json
import sqlite3
from contextlib import closing

import moving
import oracle
import psycopg2
import pytest


def test_every_row_of_every_table_arrives(mover, rich_store):
    before = rich_store.read_bytes()
    said = mover.run(rich_store)
    assert "64 tables, count and checksum of every one equal" in said
    assert rich_store.read_bytes() == before and [p.name for p in rich_store.parent.iterdir()] == ["mlflow.db"]
    assert oracle.differences(rich_store, mover.dsn) == []
    counts = {table: rows for table, (rows, _) in oracle.content(mover.dsn).items()}
    assert len(counts) == 65 and min(counts.values()) > 0
    assert oracle.schema(mover.server.container, mover.database) == oracle.fresh(mover.server.container)


def test_new_rows_do_not_collide(mover, rich_store):
    mover.run(rich_store)
    with closing(psycopg2.connect(mover.dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT max(experiment_id) FROM experiments")
        highest = cursor.fetchone()[0]
        cursor.execute("INSERT INTO experiments (name, workspace) VALUES ('new', 'default') RETURNING experiment_id")
        assert cursor.fetchone()[0] == highest + 1
        for table in ("sql_trace_metric", "sql_span_cost", "sql_assessment"):
            cursor.execute(f"SELECT max(id) FROM {table}_daily_rollups")
            highest = cursor.fetchone()[0]
            cursor.execute(
                f"INSERT INTO {table}_daily_rollups "
                "(experiment_id, rollup_day, metric_name, grouping_set, sample_count)"
                " VALUES (1, '2026-01-01', 'm', 'g', 1) RETURNING id"
            )
            assert cursor.fetchone()[0] == highest + 1


def test_statistics_are_there_for_the_planner(mover, rich_store):
    mover.run(rich_store)
    with closing(psycopg2.connect(mover.dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(DISTINCT tablename) FROM pg_stats WHERE schemaname = 'public'")
        assert cursor.fetchone()[0] >= 64


def test_big_tables_are_taken_apart_and_put_together(mover, empty_store, tmp_path):
    rows = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 30000) "
    store = moving.copy(
        empty_store, tmp_path,
        "INSERT INTO runs (run_uuid, experiment_id, lifecycle_stage) VALUES ('r', 0, 'active')",
        rows + "INSERT INTO metrics SELECT 'm', i / 7.0, i, 'r', i, 0 FROM n",
    )  # fmt: skip
    mover.run(store)
    assert oracle.differences(store, mover.dsn) == []
    assert oracle.schema(mover.server.container, mover.database) == oracle.fresh(mover.server.container)


def test_a_store_in_use_is_copied_with_its_write_ahead_log(mover, rich_store, tmp_path):
    store = moving.copy(rich_store, tmp_path, "PRAGMA journal_mode=WAL")
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("UPDATE tags SET value = 'only in the log' WHERE key = 't'")
        connection.commit()
        log = store.with_name("source.db-wal").read_bytes()
        assert b"only in the log" in log
        mover.run(store)
        assert store.with_name("source.db-wal").read_bytes() == log
        assert oracle.differences(store, mover.dsn) == []


def test_a_closed_store_in_wal_mode_gets_no_files_beside_it(mover, rich_store, tmp_path):
    store = moving.copy(rich_store, tmp_path, "PRAGMA journal_mode=WAL")
    mover.run(store)
    assert not [p.name for p in tmp_path.glob("source.db-*")]
    assert oracle.differences(store, mover.dsn) == []


def test_check_only_looks(mover, rich_store):
    before = oracle.content(mover.dsn)
    said = mover.run(rich_store, "--check")
    assert "in the way: nothing" in said and "target: empty" in said
    assert oracle.content(mover.dsn) == before


def test_check_as_json(mover, rich_store, tmp_path):
    store = moving.copy(rich_store, tmp_path, "UPDATE params SET value = 'a' || char(0) || 'b' WHERE key = 'p'")
    said = mover.run(store, "--check", "--json", fails=True)
    found = json.loads(said[: said.rindex("}") + 1])
    assert found["ok"] is False and found["rows"]["params"] > 0
    (hazard,) = found["found"]
    assert (hazard["code"], hazard["table"], hazard["column"], hazard["count"]) == ("nul", "params", "value", 6)
    assert json.loads(mover.run(rich_store, "--check", "--json"))["ok"] is True


def test_rows_that_are_there_are_kept_unless_they_may_be_replaced(mover, rich_store, empty_store):
    mover.run(rich_store)
    before = oracle.content(mover.dsn)
    assert "REPLACE=1" in mover.run(empty_store, fails=True)
    assert oracle.content(mover.dsn) == before
    said = mover.run(empty_store, "--replace")
    assert "the old server had" not in said
    assert oracle.differences(empty_store, mover.dsn) == []
    (backup,) = (mover.folder / "backups").iterdir()
    assert f"FROM=backups/{backup.name} REPLACE=1" in said
    mover.run(backup, "--replace")
    assert oracle.content(mover.dsn) == before
    assert oracle.differences(rich_store, mover.dsn) == []


def test_a_damaged_backup_is_not_taken(mover, rich_store, empty_store):
    mover.run(rich_store)
    mover.run(empty_store, "--replace")
    (backup,) = (mover.folder / "backups").iterdir()
    (backup / "metrics.copy.gz").write_bytes((backup / "params.copy.gz").read_bytes())
    before = oracle.content(mover.dsn)
    mover.run(backup, "--replace", fails=True)
    assert oracle.content(mover.dsn) == before
    (backup / "manifest.json").unlink()
    assert "no mlflow.db" in mover.run(backup, "--replace", fails=True)


def test_from_one_postgres_to_another(mover, another, rich_store):
    mover.run(rich_store)
    before, other = oracle.content(mover.dsn), another()
    uri = f"postgresql+psycopg2://mlflow@127.0.0.1:{mover.server.port}/{mover.database}"
    said = other.run(uri, "--password-stdin", stdin=moving.PASSWORD + "\n")
    assert "64 tables, count and checksum of every one equal" in said
    assert oracle.content(other.dsn) == before == oracle.content(mover.dsn)
    assert oracle.schema(mover.server.container, other.database) == oracle.fresh(mover.server.container)


def test_a_passfile_in_place_of_the_password(mover, another):
    other, password = another(), moving.PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
    uri = f"postgresql+psycopg2://mlflow@127.0.0.1:{mover.server.port}/{other.database}"
    lines = f"elsewhere:*:*:mlflow:wrong\n127.0.0.1:{mover.server.port}:{other.database}:mlflow:{password}\n"
    assert "PostgreSQL, schema" in mover.run(uri, "--check", "--passfile-stdin", stdin=lines)
    said = mover.run(uri, "--check", "--passfile-stdin", stdin="elsewhere:*:*:mlflow:wrong\n", fails=True)
    assert "no password supplied" in said


def test_a_password_in_the_address_is_refused(mover):
    said = mover.run("postgresql+psycopg2://mlflow:geheim@127.0.0.1/x", fails=True)
    assert "PASSWORD_FILE" in said and "geheim" not in said


@pytest.mark.parametrize("uri", ["postgresql+psycopg2://nobody@127.0.0.1:1/x", "mysql+pymysql://a@b/c", "://"])
def test_a_database_that_cannot_be_read(mover, uri):
    mover.run(uri, fails=True)


def test_artifact_locations_are_rewritten(mover, rich_store):
    said = mover.run(
        rich_store, "--artifacts", "/laptop/mlruns=mlflow-artifacts:,file:///laptop/mlruns=mlflow-artifacts:"
    )
    assert "/laptop/mlruns -> mlflow-artifacts:/" in said
    with closing(psycopg2.connect(mover.dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT DISTINCT artifact_location FROM experiments WHERE name LIKE 'by the client%'")
        assert cursor.fetchall() == [("mlflow-artifacts:/1",)]
        cursor.execute("SELECT source FROM model_versions WHERE name = 'a model'")
        assert cursor.fetchall() == [("mlflow-artifacts:/1/x/artifacts/model",)]
        cursor.execute("SELECT count(*) FROM runs WHERE artifact_uri LIKE '/laptop/%'")
        assert cursor.fetchall() == [(0,)]
    (different,) = {line.split(":")[0] for line in oracle.differences(rich_store, mover.dsn)} - {
        "runs",
        "experiments",
        "trace_tags",
        "logged_models",
    }
    assert different == "model_versions"


@pytest.fixture
def reporting(mover):
    """A role that only reads, and may do some things more: in a replaced table too."""
    role = f"reporting_{mover.database}"
    mover.server.sql(f"CREATE ROLE {role}")
    for grant in (
        f"SELECT ON ALL TABLES IN SCHEMA public TO {role}",
        f"UPDATE (name), INSERT (name) ON experiments TO {role}",
        f"DELETE ON runs TO {role} WITH GRANT OPTION",
        f"USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}",
        "SELECT ON metrics TO PUBLIC",
    ):
        mover.server.sql(f"GRANT {grant}", mover.database, "mlflow")
    yield role
    mover.server.sql(f"DROP OWNED BY {role}", mover.database)
    mover.server.sql(f"DROP ROLE {role}")


def allowed(mover) -> list[tuple]:
    """Return what PostgreSQL itself says of who may do what with each table, column and sequence."""
    return mover.server.sql(
        "SELECT 'table', grantee, table_name, privilege_type, is_grantable FROM information_schema.table_privileges "
        "WHERE table_schema = 'public' UNION ALL "
        "SELECT column_name, grantee, table_name, privilege_type, is_grantable "
        "FROM information_schema.column_privileges "
        "WHERE table_schema = 'public' UNION ALL "
        "SELECT 'sequence', g.grantee::regrole::text, relname, privilege_type, is_grantable::text "
        "FROM pg_class, aclexplode(relacl) g WHERE relkind = 'S' AND relnamespace = 'public'::regnamespace "
        "ORDER BY 1, 2, 3, 4",
        mover.database,
    )


@pytest.mark.parametrize("engine", ["copy", "pgloader"])
def test_what_other_roles_may_do_stays(mover, reporting, empty_store, engine):
    before = allowed(mover)
    assert {row[1] for row in before} == {"PUBLIC", "mlflow", reporting}
    mover.load(empty_store, engine=engine)
    assert allowed(mover) == before
