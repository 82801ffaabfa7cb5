"""To which experiment a run belongs is asked of the database once, and a run that is not there is never remembered."""

import pytest
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from mlflow.server import auth
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Store
from stackops import accounts


@pytest.fixture
def store(tmp_path, monkeypatch):
    """MLflow's own store, which notes what was read whole; what is changed in MLflow ends with the test."""
    store = Store(f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "artifacts"))
    store.read, get_run = [], store.get_run

    def noted(run_id: str):
        store.read.append(run_id)
        return get_run(run_id)

    noted.__name__ = "get_run"
    monkeypatch.setattr(store, "get_run", noted)
    monkeypatch.setattr(auth, "_get_tracking_store", lambda: store)
    monkeypatch.setattr(auth, "_fetch_or_none", auth._fetch_or_none)
    return store


def made(store) -> str:
    """Make a run and return its id."""
    return store.create_run(store.create_experiment("mine"), "me", 1, [], "run").info.run_id


def test_a_run_is_read_once(store) -> None:
    """What is required for it is the same, every time."""
    run = made(store)
    before = auth._run_requirement(run, "update")
    accounts.remember_experiments({})
    store.read.clear()
    assert [auth._run_requirement(run, "update") for _ in range(3)] == [before] * 3
    assert store.read == [run] and before[0] == ("experiment", "1")


def test_a_run_that_is_not_there_is_looked_for_again(store) -> None:
    """It may be made by another worker in the next moment, so nothing is remembered; a failure stays one."""
    accounts.remember_experiments({})
    missing = "0" * 32
    assert auth._run_requirement(missing, "read") is None and auth._run_requirement(missing, "read") is None
    assert store.read == [missing] * 2

    def down(run_id: str) -> None:
        raise MlflowException("the database is gone")

    down.__name__ = "get_run"
    store.get_run = down
    with pytest.raises(MlflowException, match="gone"):
        auth._run_requirement(missing, "read")


def test_an_mlflow_that_asks_in_another_way_goes_on_so(monkeypatch) -> None:
    """As 3.16 does: what saves time must not keep a server from starting."""
    monkeypatch.delattr(auth, "_fetch_or_none")
    accounts.remember_experiments({})
    assert not hasattr(auth, "_fetch_or_none")


def test_other_things_are_fetched_as_before(store) -> None:
    accounts.remember_experiments({})
    store.create_experiment("mine")
    assert auth._fetch_or_none(store.get_experiment, "1").name == "mine"
    assert auth._fetch_or_none(store.get_experiment, "77") is None
    assert len(store.search_experiments(view_type=ViewType.ALL)) == 2


def test_with_workspaces_nothing_is_remembered(store) -> None:
    """The same run is not there for whoever asks from another workspace."""
    run = made(store)
    accounts.remember_experiments({"MLFLOW_ENABLE_WORKSPACES": "true"})
    store.read.clear()
    assert [bool(auth._run_requirement(run, "read")) for _ in range(2)] == [True] * 2 and store.read == [run] * 2
