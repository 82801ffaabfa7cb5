"""Where a trace's data is, the server says: nobody has it read from somebody else's place."""

import pytest
from mlflow.entities import TraceInfo, TraceLocation, TraceState
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Store
from stackops import accounts

OTHERS = "mlflow-artifacts:/1/other/artifacts"
BAD = {"mlflow.artifactLocation": OTHERS, "mlflow.trace.archiveLocation": OTHERS, "mine": "stays"}
CHANGED = ("start_trace", "deprecated_start_trace_v2", "deprecated_end_trace_v2", "set_trace_tag")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """MLflow's own store, changed for this test alone."""
    for name in CHANGED:
        monkeypatch.setattr(Store, name, getattr(Store, name))
    accounts.close_traces()
    return Store(f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "artifacts"))


def test_a_trace_lies_where_the_server_says(store, tmp_path):
    """By every way in which a client sends tags."""
    experiment = store.create_experiment("mine")
    place = f"{tmp_path}/artifacts/{experiment}/traces/%s/artifacts"

    def looks_well(trace: str) -> None:
        tags = store.get_trace_info(trace).tags
        assert (tags["mlflow.artifactLocation"], tags["mine"]) == (place % trace, "stays")
        assert "mlflow.trace.archiveLocation" not in tags

    old = store.deprecated_start_trace_v2(experiment_id=experiment, timestamp_ms=1, request_metadata={}, tags=BAD)
    looks_well(old.request_id)
    store.deprecated_end_trace_v2(request_id=old.request_id, timestamp_ms=2, status="OK", request_metadata={}, tags=BAD)
    looks_well(old.request_id)
    for _ in range(2):  # the second time it is there already
        location = TraceLocation.from_experiment_id(experiment)
        store.start_trace(TraceInfo("tr-new", location, 1, TraceState.OK, tags=dict(BAD)))
        looks_well("tr-new")
    for key in accounts.PLACES:
        with pytest.raises(MlflowException, match="immutable"):
            store.set_trace_tag("tr-new", key, OTHERS)
    store.set_trace_tag("tr-new", "another", "tag")
    looks_well("tr-new")
    assert store.get_trace_info("tr-new").tags["another"] == "tag"
