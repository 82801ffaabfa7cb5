"""Sessions with the database: those that read keep what they read, and MLflow's stores use them."""

import os
import subprocess
import sys

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils
from sqlalchemy import create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from sqlalchemy.orm.exc import DetachedInstanceError
from stackops import sessions


class Point(DeclarativeBase):
    """A table's row."""

    __abstract__ = True


class Metric(Point):
    """One value."""

    __tablename__ = "metric"
    key: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[float]


def test_sessions_that_read_keep_what_they_read(tmp_path) -> None:
    """After a session has ended its objects have their values, unless it wrote; writes and errors are MLflow's."""
    engine = create_engine(f"sqlite:///{tmp_path}/a.db")
    Point.metadata.create_all(engine)
    made = sessions.keeping(utils._get_managed_session_maker)(sessionmaker(bind=engine), "sqlite")
    with made(read_only=False) as session:
        session.add(Metric(key=1, value=0.5))
    with made(read_only=False) as session:
        written = session.get(Metric, 1)
        written.value = 0.75
    with pytest.raises(DetachedInstanceError):
        print(written.value)
    with made() as session:
        read = session.get(Metric, 1)
    assert read.value == 0.75
    with pytest.raises(MlflowException), made() as session:
        session.execute(text("SELECT * FROM nothing"))


SERVER = """
import os
from stackops import preload
import mlflow.cli
import mlflow.server

def serve(command, extra_env, **_):
    from mlflow.server import handlers
    for store in (handlers._tracking_store, handlers._model_registry_store):
        print(store.ManagedSessionMaker.__qualname__, store.ManagedSessionMaker.__module__)
    os._exit(0)

command = mlflow.cli.cli
mlflow.cli.cli = lambda words: command(words[:1])  # its own application: stackops is not installed here
preload.serve = serve
preload.run()
"""


@pytest.mark.parametrize("copied", [False, True])
def test_the_stores_of_a_server_use_them(tmp_path, copied: bool) -> None:
    """MLflow's command opens the stores before the application is made; there may be a copy that is read from."""
    env = {
        **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/a.db", "MLFLOW_HOST": "127.0.0.1",
    }  # fmt: skip
    if copied:
        env["MLFLOW_READ_REPLICA_BACKEND_STORE_URI"] = f"sqlite:///{tmp_path}/copy.db"
        utils._initialize_tables(create_engine(f"sqlite:///{tmp_path}/copy.db"))
    done = subprocess.run(
        [sys.executable, "-c", SERVER], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    wanted = "routing.<locals>.made.<locals>.session stackops.backends.replica"
    if not copied:
        wanted = "keeping.<locals>.made.<locals>.session stackops.sessions"
    assert done.stdout.splitlines()[-2:] == [wanted] * 2, done.stdout + done.stderr
