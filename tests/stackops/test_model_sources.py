"""A model version whose source is in the stack's store: only for who may read what is there."""

from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException
from mlflow.server import handlers
from stackops import accounts

STORES = {
    "local": "/data/artifacts",
    "s3": "s3://bucket",
    "gcs": "gs://bucket",
    "azure": "wasbs://box@account.blob.core.windows.net",
}
RUN = "s3://bucket/1/mine/artifacts"


@pytest.fixture(autouse=True)
def rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test changes in MLflow ends with it; there is one run, whose artifacts are at RUN."""
    monkeypatch.setattr(handlers, "_is_mlflow_artifact_source", handlers._is_mlflow_artifact_source)
    run = SimpleNamespace(info=SimpleNamespace(artifact_uri=RUN))
    monkeypatch.setattr(handlers, "_get_source_run", lambda run_id, source: run)


@pytest.mark.parametrize(("kind", "store"), STORES.items())
@pytest.mark.parametrize("run", ["", "mine"])
def test_other_peoples_files_are_refused(kind: str, store: str, run: str) -> None:
    """Through the store's own address and through the server's, with and without a run that one may read."""
    accounts.close_store({"STACK_STORE": kind, "ARTIFACT_URI": store})
    for source in (f"relay:{store}/1/other/artifacts", f"RELAY:{store}/1/other/artifacts", "mlflow-artifacts:/1/other"):
        with pytest.raises(MlflowException):
            handlers._validate_source_run(source, run)
    if "://" in store:
        for source in (f"{store}/1/other/artifacts", f"{store.upper()}/1/other", f"{store}/1/%6dine/artifacts2"):
            with pytest.raises(MlflowException):
                handlers._validate_source_run(source, run)
            with pytest.raises(MlflowException):
                handlers._validate_source_model(source, "")


@pytest.mark.parametrize("account", ["account", "ACCOUNT", "elsewhere"])
@pytest.mark.parametrize("box", ["box", "another"])
def test_azure_knows_one_account(account: str, box: str) -> None:
    """With a connection string MLflow asks the stack's own account, whichever the address names."""
    accounts.close_store({"STACK_STORE": "azure", "ARTIFACT_URI": STORES["azure"]})
    for scheme in ("wasbs", "WASBS"):
        source = f"{scheme}://{box}@{account}.blob.core.windows.net/1/other/artifacts"
        for run in ("", "mine"):
            with pytest.raises(MlflowException):
                handlers._validate_source_run(source, run)
        with pytest.raises(MlflowException):
            handlers._validate_source_model(source, "")


def test_ones_own_and_other_stores_pass() -> None:
    """With direct access a client names the run and where its artifacts are; other buckets are not the stack's."""
    accounts.close_store({"STACK_STORE": "s3", "ARTIFACT_URI": "s3://bucket"})
    handlers._validate_source_run(f"{RUN}/model", "mine")
    handlers._validate_source_run("s3://elsewhere/model", "")
