"""Sessions with the database: those that read keep what they read, and MLflow's stores use them."""

import concurrent.futures
import os
import subprocess
import sys
import threading
import time

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils
from sqlalchemy import create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from sqlalchemy.orm.exc import DetachedInstanceError
from sqlalchemy.pool import NullPool
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
        wanted = "taking_turns.<locals>.made.<locals>.session stackops.sessions"
    assert done.stdout.splitlines()[-2:] == [wanted] * 2, done.stdout + done.stderr


def test_requests_that_hold_two_connections_do_not_wait_for_each_other(tmp_path) -> None:
    """As MLflow's log_batch: a session inside another. More of them at once than connections all come to their end."""
    engine = create_engine(f"sqlite:///{tmp_path}/a.db", pool_size=2, max_overflow=1, pool_timeout=5)
    made = sessions.taking_turns(utils._get_managed_session_maker)(sessionmaker(bind=engine), "sqlite")
    plain = utils._get_managed_session_maker(sessionmaker(bind=engine), "sqlite")
    start, done = threading.Barrier(8), []

    def batch(opened) -> None:
        start.wait()
        with opened() as outer:
            outer.execute(text("SELECT 1"))
            time.sleep(0.05)
            with opened() as inner:
                done.append(inner.execute(text("SELECT 1")).scalar())

    for opened, count in ((made, 8), (plain, None)):
        done.clear()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(batch, opened) for _ in range(8)]
            errors = [one.exception() for one in asked if one.exception()]
        assert not errors if count else errors, (count, errors)
        assert len(done) == (count or len(done))


def test_a_turn_is_given_back(tmp_path) -> None:
    """Whatever happens in a session; two pools do not know of each other."""
    first, second = (create_engine(f"sqlite:///{tmp_path}/{name}.db", pool_size=2, max_overflow=0) for name in "ab")
    turns = sessions.taking_turns(utils._get_managed_session_maker)
    one, other = (turns(sessionmaker(bind=engine), "sqlite") for engine in (first, second))
    for _ in range(3):
        with pytest.raises(MlflowException), one() as session:
            session.execute(text("SELECT * FROM nothing"))
    with one(), other() as session, one():
        assert session.execute(text("SELECT 1")).scalar() == 1
    assert not sessions.HOLDS.get()


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"pool_size": 10, "max_overflow": 5}, 7),
        ({"pool_size": 1, "max_overflow": 0}, 1),
        ({"pool_size": 5, "max_overflow": -1}, 0),
        ({"poolclass": NullPool}, 0),
    ],
)
def test_how_many_at_once(tmp_path, options: dict, count: int) -> None:
    assert sessions.at_once(create_engine(f"sqlite:///{tmp_path}/a.db", **options).pool) == count
