"""Where rows come from besides a SQLite file of this version: folders, older schemas, the file of MLflow's users."""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import moving
import oracle
import psycopg2
import pytest
from test_sqlite_target import own

__all__ = ["own"]  # a fixture

FOLDER = """
import mlflow, sys
from mlflow.tracking import MlflowClient
client = MlflowClient()
mlflow.set_experiment("from a folder")
for number in range(2):
    with mlflow.start_run(run_name=f"run {number}") as run:
        for step in range(5):
            mlflow.log_metric("loss", step / 7, step=step)
        mlflow.log_params({"depth": number, "artifacts": "kept"})
        mlflow.set_tag("metrics/x", "same\\nsame")
        mlflow.log_text("hello", "greeting.txt")
        mlflow.pyfunc.log_model(name="model", python_model=lambda model_input: model_input, pip_requirements=[])
client.delete_experiment(client.create_experiment("deleted"))
client.create_registered_model("registered")
"""
# What MLflow 2.22 and 3.7 left behind, and the newest but one.
OLDER = {"2.22": "0584bdc529eb", "3.7": "bf29a5ff90ea", "newest but one": "75868b020152"}
OLD_SCHEMA = """
import sys
from alembic import command
from sqlalchemy import create_engine
from mlflow.store.db.utils import _get_alembic_config
from mlflow.store.tracking.dbmodels.initial_models import Base
uri, revision = sys.argv[1:]
Base.metadata.create_all(create_engine(uri))
command.upgrade(_get_alembic_config(uri), revision)
"""
USERS = """
import sys
from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore
store = SqlAlchemyStore()
store.init_db(sys.argv[1])
for name in ("admin", "é \\\\N", "carol"):
    store.create_user(name, "a long password", is_admin=name == "admin")
"""


@pytest.fixture(scope="module")
def mlruns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ordinary ./mlruns folder; MLflow's own migrate-filestore fails on it."""
    folder = tmp_path_factory.mktemp("folder")
    done = moving.run(sys.executable, "-c", FOLDER, cwd=folder, env={"MLFLOW_ALLOW_FILE_STORE": "true",
                      "MLFLOW_TRACKING_URI": f"file://{folder}/mlruns"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "mlruns"


def test_an_ordinary_folder(mover, mlruns):
    before = {path: path.stat().st_mtime_ns for path in mlruns.rglob("*")}
    said = mover.run(mlruns, "--artifacts", f"file://{mlruns}=mlflow-artifacts:,{mlruns}=mlflow-artifacts:")
    assert "repeated metric lines taken once" in said and " -> 1\n" in said
    assert {path: path.stat().st_mtime_ns for path in mlruns.rglob("*")} == before
    with closing(psycopg2.connect(mover.dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT name, lifecycle_stage FROM experiments ORDER BY 1")
        assert cursor.fetchall() == [("Default", "active"), ("deleted", "deleted"), ("from a folder", "active")]
        cursor.execute("SELECT max(experiment_id) FROM experiments")
        assert cursor.fetchone()[0] < 10
        cursor.execute("SELECT count(*), count(DISTINCT (run_uuid, step)) FROM metrics WHERE key = 'loss'")
        assert cursor.fetchone() == (10, 10)
        cursor.execute("SELECT count(*) FROM params WHERE value = 'kept'")
        assert cursor.fetchone()[0] == 2
        cursor.execute("SELECT DISTINCT value FROM tags WHERE key = 'metrics/x'")
        assert cursor.fetchall() == [("same\nsame",)]
        cursor.execute("SELECT count(*) FROM logged_models WHERE artifact_location LIKE 'mlflow-artifacts:/%'")
        assert cursor.fetchone()[0] == 2
        cursor.execute("SELECT count(*) FROM runs WHERE artifact_uri LIKE 'mlflow-artifacts:/%/artifacts'")
        assert cursor.fetchone()[0] == 2
    assert oracle.schema(mover.server.container, mover.database) == oracle.fresh(mover.server.container)


def test_a_folder_by_way_of_sqlite(mover, another, own, mlruns):
    """From a folder into a stack with SQLite, and later from there into PostgreSQL: as if it had come at once."""
    words = ("--artifacts", f"file://{mlruns}=mlflow-artifacts:,{mlruns}=mlflow-artifacts:")
    own.run(mlruns, *words)
    # SQLite has room for a folder's long numbers, PostgreSQL has not, and says so.
    assert "FIX=renumber" in mover.run(own.database, fails=True)
    assert "verified: 64 tables" in mover.run(own.database, "--fix", "renumber")
    at_once = another()
    at_once.run(mlruns, *words)
    # MLflow numbers a model's input of a run by lot.
    unnumber = "UPDATE inputs SET input_uuid = md5(source_id || destination_id)"
    for one in (mover, at_once):
        one.server.sql(unnumber, one.database)
    assert oracle.content(mover.dsn) == oracle.content(at_once.dsn)
    assert oracle.schema(mover.server.container, mover.database) == oracle.fresh(mover.server.container)


def test_the_folder_above_mlruns_will_do(mover, mlruns):
    assert "in the way: nothing" in mover.run(mlruns.parent, "--check")


@pytest.mark.parametrize("version", OLDER)
def test_an_older_schema_is_upgraded_on_a_copy(mover, tmp_path, version):
    store = tmp_path / "old.db"
    done = moving.run(sys.executable, "-c", OLD_SCHEMA, f"sqlite:///{store}", OLDER[version])
    assert done.returncode == 0, done.stderr
    with closing(sqlite3.connect(store)) as connection:
        connection.execute(
            "INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (0, 'Default', 'active')"
        )
        connection.execute("INSERT INTO runs (run_uuid, experiment_id, lifecycle_stage) VALUES ('r', 0, 'active')")
        connection.execute(
            "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan) VALUES ('m', 0.1, 1, 'r', 0, 0)"
        )
        connection.commit()
    original = store.read_bytes()
    assert f"the copy goes from {OLDER[version]} to" in mover.run(store)
    assert store.read_bytes() == original
    with closing(psycopg2.connect(mover.dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT value, run_uuid FROM metrics")
        assert cursor.fetchall() == [(0.1, "r")]
    assert oracle.schema(mover.server.container, mover.database) == oracle.fresh(mover.server.container)


def test_mlflows_users(mover, tmp_path):
    path = tmp_path / "auth.db"
    done = moving.run(sys.executable, "-c", USERS, f"sqlite:///{path}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "does not use them" in mover.run(path, fails=True)
    moving.make_schema(mover.server, mover.database, users=True)
    shape = oracle.schema(mover.server.container, mover.database)
    said = mover.run(path)
    assert "11 tables, count and checksum of every one equal" in said
    with closing(sqlite3.connect(path)) as connection:
        names = {n for (n,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert oracle.differences(path, mover.dsn, {n for n in names if not n.startswith("sqlite_")}) == []
    assert oracle.schema(mover.server.container, mover.database) == shape
    with closing(psycopg2.connect(mover.dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO users (username, password_hash) VALUES ('new', 'x') RETURNING id")
        assert cursor.fetchone()[0] == 4
