"""Artifact stores: addresses, credentials, sentences, and the relay."""

from pathlib import Path

import pytest
from stackops.errors import StackError
from stackops.settings import Secrets
from stackops.stores import azure, gcs, local, s3


def test_local_probe_leaves_nothing(tmp_path):
    local.probe({"ARTIFACT_URI": str(tmp_path / "artifacts")}, ".stackops-probe/abc")
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_local_probe_on_a_full_disk(tmp_path, monkeypatch):
    """It leaves nothing; and what an earlier one has left is not in the way for ever."""
    env, left = {"ARTIFACT_URI": str(tmp_path / "artifacts")}, tmp_path / "artifacts" / ".stackops-probe"

    def full(self, data):
        self.touch()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "write_bytes", full)
        with pytest.raises(StackError, match="No space left on device"):
            local.probe(env, ".stackops-probe/abc")
    assert list(left.iterdir()) == []
    (left / "old").touch()
    local.probe(env, ".stackops-probe/abc")
    assert [path.name for path in left.iterdir()] == ["old"]


def test_local_probe_names_the_folder(tmp_path):
    (tmp_path / "artifacts").write_text("a file")
    with pytest.raises(StackError, match="artifacts cannot be used"):
        local.probe({"ARTIFACT_URI": str(tmp_path / "artifacts")}, ".stackops-probe/abc")


@pytest.mark.parametrize(
    ("module", "uri", "expected"),
    [
        (s3, "s3://b", ("b", "")),
        (s3, "s3://b/p/q/", ("b", "p/q/")),
        (gcs, "gs://b/p", ("b", "p/")),
        (azure, "wasbs://c@a.blob.core.windows.net", ("c", "a.blob.core.windows.net", "")),
        (azure, "wasbs://c@a.blob.core.windows.net/p", ("c", "a.blob.core.windows.net", "p/")),
    ],
)
def test_location(module, uri, expected):
    assert module.location({"ARTIFACT_URI": uri}) == expected
    assert module.destination({"ARTIFACT_URI": uri}) == "relay:" + uri.rstrip("/")


@pytest.mark.parametrize(("module", "uri"), [(s3, "b"), (s3, "gs://b"), (gcs, "s3://b"), (azure, "wasbs://c@a")])
def test_wrong_address(module, uri):
    with pytest.raises(StackError, match="must look like"):
        module.location({"ARTIFACT_URI": uri})


def test_credentials_only_where_there_are_some(tmp_path):
    (tmp_path / "azure_connection_string").write_text("\n")
    (tmp_path / "gcs_credentials.json").write_text("")
    assert azure.environment({}, Secrets(tmp_path)) == {} == gcs.environment({}, Secrets(tmp_path))
    (tmp_path / "azure_connection_string").write_text("AccountName=a\n")
    (tmp_path / "gcs_credentials.json").write_text("{}")
    assert azure.environment({}, Secrets(tmp_path)) == {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=a"}
    found = gcs.environment({}, Secrets(tmp_path))
    assert found == {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "gcs_credentials.json")}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("NoSuchBucket", "no such bucket"),
        ("AccessDenied", "access is denied"),
        ("SignatureDoesNotMatch", "secret key is wrong"),
        ("PermanentRedirect", "AWS_DEFAULT_REGION"),
        ("SlowDown", "SlowDown"),
    ],
)
def test_s3_sentences(code, words):
    exceptions = pytest.importorskip("botocore.exceptions")
    error = exceptions.ClientError({"Error": {"Code": code, "Message": "m"}}, "PutObject")
    assert words in str(s3.explain(error, "artifact store s3://b"))


def test_s3_unreachable_is_said_soon(tmp_path, monkeypatch):
    pytest.importorskip("boto3")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    key = tmp_path / "credentials"
    key.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    env = {
        "ARTIFACT_URI": "s3://bucket",
        "MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_SHARED_CREDENTIALS_FILE": str(key),
    }
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(key))
    with pytest.raises(StackError, match="cannot be reached"):
        s3.probe(env, "probe")


@pytest.mark.parametrize(
    "uri",
    [
        "relay:file:///etc",
        "relay:/etc",
        "relay:s3://other",
        "relay:s3://bucket2",
        "relay:s3://bucket/../x",
        "relay:",
    ],
)
def test_relay_stays_inside_the_store(uri):
    pytest.importorskip("mlflow")
    from mlflow.exceptions import MlflowException
    from stackops.stores.relay import wrapped

    with pytest.raises(MlflowException, match="not part of"):
        wrapped(uri, "s3://bucket")
    with pytest.raises(MlflowException):
        wrapped(uri, "")
    assert wrapped("relay:s3://bucket/1/x", "s3://bucket/") == "s3://bucket/1/x"
    assert wrapped("relay:s3://bucket", "s3://bucket") == "s3://bucket"


def test_relay_delegates_and_offers_no_shortcut(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow.store.artifact import artifact_repo
    from stackops.stores.relay import RelayArtifactRepository

    store = tmp_path / "store"
    store.mkdir()
    monkeypatch.setenv("ARTIFACT_URI", str(store))
    monkeypatch.setenv("STACK_STORE", "local")
    relay = RelayArtifactRepository(f"relay:{store}")
    for ability in ("MultipartUploadMixin", "MultipartDownloadMixin", "PresignedUploadMixin"):
        assert not isinstance(relay, getattr(artifact_repo, ability))
    (tmp_path / "a.txt").write_text("hello")
    relay.log_artifact(str(tmp_path / "a.txt"), "folder")
    assert [f.path for f in relay.list_artifacts("folder")] == ["folder/a.txt"]
    (tmp_path / "back").mkdir()
    path = relay.download_artifacts("folder/a.txt", str(tmp_path / "back"))
    assert Path(path).read_text() == "hello" and path.startswith(str(tmp_path / "back"))
    relay.delete_artifacts("folder")
    assert relay.list_artifacts() == []
