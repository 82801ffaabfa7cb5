"""What the server gets: its environment, its private files, its command line."""

import socket
import stat
import subprocess
import sys

import pytest
from stackops import preload, settings
from stackops.errors import StackError
from stackops.settings import Secrets, server_environment
from stackops.sizing import Machine

HERE = Machine(cpus=2, memory=None)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {},
            {
                "MLFLOW_BACKEND_STORE_URI": "sqlite:////data/mlflow.db",
                "MLFLOW_ARTIFACTS_DESTINATION": "/data/artifacts",
                "MLFLOW_DEFAULT_ARTIFACT_ROOT": "mlflow-artifacts:/",
                "MLFLOW_SERVE_ARTIFACTS": "true",
                "MLFLOW_WORKERS": "1",
                "MLFLOW_HOST": "0.0.0.0",
                "MLFLOW_PORT": "5000",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_ENABLE_AI_GATEWAY": "false",
                "MLFLOW_MODEL_CATALOG_URI": "",
                "MLFLOW_SERVER_ENABLE_CUSTOM_SCORERS": "false",
                "MLFLOW_CRYPTO_KEK_PASSPHRASE": "kek",
                "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": "hook",
            },
        ),
        (
            {"STACK_BACKEND": "postgres", "STACK_STORE": "s3", "ARTIFACT_URI": "s3://b/"},
            {
                "MLFLOW_BACKEND_STORE_URI": "postgresql+psycopg2://mlflow@db:5432/mlflow"
                "?connect_timeout=5&application_name=mlflow",
                "MLFLOW_ARTIFACTS_DESTINATION": "relay:s3://b",
                "MLFLOW_DEFAULT_ARTIFACT_ROOT": "mlflow-artifacts:/",
                "MLFLOW_WORKERS": "2",
                "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "10",
                "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "5",
            },
        ),
        (
            {"STACK_STORE": "s3", "ARTIFACT_URI": "s3://b", "ARTIFACT_ACCESS": "direct"},
            {
                "MLFLOW_SERVE_ARTIFACTS": "true",
                "MLFLOW_ARTIFACTS_DESTINATION": "relay:s3://b",
                "MLFLOW_DEFAULT_ARTIFACT_ROOT": "s3://b",
            },
        ),
        (
            {"STACK_STORE": "gcs", "ARTIFACT_URI": "gs://b"},
            {"MLFLOW_ARTIFACTS_DESTINATION": "relay:gs://b"},
        ),
        (
            {"MLFLOW_ENABLE_AI_GATEWAY": "true", "MLFLOW_WORKERS": "3", "MLFLOW_HOST": "127.0.0.1"},
            {"MLFLOW_ENABLE_AI_GATEWAY": "true", "MLFLOW_WORKERS": "3", "MLFLOW_HOST": "127.0.0.1"},
        ),
        (
            {"STACK_BACKEND": "postgres", "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "7"},
            {"MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "7", "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": None},
        ),
        ({"MLFLOW_S3_ENDPOINT_URL": ""}, {"MLFLOW_S3_ENDPOINT_URL": None}),
        ({"STACK_AUTH": "basic"}, {"MLFLOW_AUTH_CONFIG_PATH": None, "MLFLOW_AUTH_ADMIN_PASSWORD": None}),
    ],
)
def test_server_environment(stack, changes, expected):
    found = server_environment(stack(**changes), HERE)
    assert {name: found.get(name) for name in expected} == expected


def test_accounts_environment_and_config(stack):
    env = stack(STACK_BACKEND="postgres", STACK_AUTH="mlflow", DB_USER="ml flow@x")
    found = server_environment(env, HERE)
    assert found["MLFLOW_AUTH_ADMIN_USERNAME"] == "admin"
    assert found["MLFLOW_AUTH_ADMIN_PASSWORD"] == "long enough password"
    assert found["MLFLOW_FLASK_SERVER_SECRET_KEY"] == "flask"
    files = settings.runtime_files(env)
    text = files[found["MLFLOW_AUTH_CONFIG_PATH"]]

    import configparser

    parser = configparser.ConfigParser()
    parser.read_string(text)
    assert parser["mlflow"]["database_uri"] == found["MLFLOW_BACKEND_STORE_URI"]
    assert parser["mlflow"]["default_permission"] == "NO_PERMISSIONS"
    assert len(found["_MLFLOW_INTERNAL_GATEWAY_AUTH_TOKEN"]) == 64


def test_accounts_refuse_a_short_password(stack):
    (stack.secrets / "admin_password").write_text("short\n")
    with pytest.raises(StackError, match="at least 12"):
        server_environment(stack(STACK_AUTH="mlflow"), HERE)


def test_no_password_outside_private_files(stack):
    env = stack(STACK_BACKEND="postgres")
    found = server_environment(env, HERE)
    secret = "p@ss:w/o#rd%1[]\\"
    assert not [name for name, value in found.items() if secret in value]
    assert secret not in " ".join(settings.server_command())
    files = settings.runtime_files(env)
    assert list(files) == [found["PGPASSFILE"]]


@pytest.mark.parametrize("name", ["", "oracle", "../x", "backends"])
def test_unknown_part_is_refused(stack, name):
    with pytest.raises(StackError, match="STACK_BACKEND"):
        server_environment(stack(STACK_BACKEND=name), HERE)


def test_missing_variable_is_named(stack):
    with pytest.raises(StackError, match="DB_HOST"):
        server_environment(stack(STACK_BACKEND="postgres", DB_HOST=""), HERE)


def test_uvicorn_options():
    options = settings.uvicorn_options().split()
    assert "--no-access-log" in options, "it would show what comes after the ? of an address"
    assert int(options[options.index("--timeout-keep-alive") + 1]) > 65
    assert int(options[options.index("--timeout-graceful-shutdown") + 1]) < 30


def test_hook_reaches_every_python_of_the_server(stack):
    env = server_environment(stack(PYTHONPATH="/elsewhere"), HERE)
    assert env["PYTHONPATH"].endswith(":/elsewhere")
    out = subprocess.run(
        [sys.executable, "-c", "import gc; print(gc.get_threshold()[0])"],
        env={"PYTHONPATH": env["PYTHONPATH"], "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == "50000"


@pytest.mark.parametrize(("text", "value"), [("a\n", "a"), ("a\r\n", "a"), (" a b ", " a b "), ("", "")])
def test_secret_loses_only_its_line_end(tmp_path, text, value):
    (tmp_path / "s").write_bytes(text.encode())
    assert Secrets(tmp_path).read("s") == value


def test_missing_secret(tmp_path):
    assert Secrets(tmp_path).read("none") == ""
    with pytest.raises(StackError, match="make init"):
        Secrets(tmp_path).need("none")


def test_private_files(tmp_path):
    file = tmp_path / "run" / "pgpass"
    settings.write_private({str(file): "one"})
    settings.write_private({str(file): "two"})
    assert file.read_text() == "two"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [p.name for p in file.parent.iterdir()] == ["pgpass"]


def test_private_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StackError, match="cannot be written"):
        settings.write_private({str(tmp_path / "file" / "pgpass"): "x"})


@pytest.mark.parametrize(("value", "there", "at_once"), [(None, 1, 1), ("", 1, 1), ("1", 1, 2), ("3", 3, 4)])
def test_servers(value, there, at_once):
    env = {} if value is None else {"MLFLOW_REPLICAS": value}
    assert (settings.servers(env), settings.servers_at_once(env)) == (there, at_once)


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_servers_that_are_no_number(value):
    with pytest.raises(StackError, match="MLFLOW_REPLICAS"):
        settings.servers({"MLFLOW_REPLICAS": value})


def test_names_that_mlflow_hands_over():
    """What `mlflow.server` reads at its import has the name under which MLflow's own command passes it on."""
    pytest.importorskip("mlflow")
    from mlflow.server.constants import PROMETHEUS_EXPORTER_ENV_VAR
    from mlflow.server.handlers import STATIC_PREFIX_ENV_VAR

    assert preload.EARLY == {
        "MLFLOW_STATIC_PREFIX": STATIC_PREFIX_ENV_VAR,
        "MLFLOW_EXPOSE_PROMETHEUS": PROMETHEUS_EXPORTER_ENV_VAR,
    }


def test_an_answer_is_sent_at_once():
    """The socket that uvicorn's workers share: a connection that comes of it does not keep small pieces back."""
    config = pytest.importorskip("uvicorn").Config("x:y", host="127.0.0.1", port=0, workers=2)
    with preload.at_once(type(config).bind_socket)(config) as shared:
        shared.listen()
        with socket.create_connection(shared.getsockname()), shared.accept()[0] as one:
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    with type(config).bind_socket(config) as plain:
        assert not plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), "uvicorn does it by itself now"
