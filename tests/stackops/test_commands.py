"""The command line and the commands' decisions."""

import http.server
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock

import pytest
from conftest import PROJECT
from stackops import check, cli, ready, schema, serve
from stackops.errors import StackError, one_line
from stackops.schema import State

PACKAGE = PROJECT / "stackops"
CORE = [
    *PACKAGE.glob("*.py"),
    PACKAGE / "stores" / "relay.py",
    *(p for p in PACKAGE.glob("*/__init__.py") if p.parent.name != "migration"),
    *PACKAGE.glob("hooks/*.py"),
    PROJECT / "pyproject.toml",
]
WORDS = [
    "s3",
    "boto",
    "aws",
    "azure",
    "wasbs",
    "gcs",
    "google",
    "postgres",
    "psycopg",
    "sqlite",
    "nginx",
    "minio",
    "seaweed",
]


@pytest.mark.parametrize(
    "path", [p for p in CORE if p.name not in ("bucket.py", "migrate.py", "movein.py", "sso.py")], ids=lambda p: p.name
)
def test_core_names_no_optional_part(path):
    assert not [word for word in WORDS if word in path.read_text().lower()]


def test_optional_modules_name_only_their_own_part():
    own = {
        "sqlite": "sqlite",
        "postgres": "postgres psycopg",
        "s3": "s3 boto aws",
        "presigned": "s3 boto",
        "azure": "azure wasbs",
        "gcs": "gcs google",
    }
    for path in [*PACKAGE.glob("backends/[a-z]*.py"), *PACKAGE.glob("stores/[a-z]*.py")]:
        allowed = own.get(path.stem, "").split()
        text = path.read_text().lower()
        assert not [word for word in WORDS if word in text and word not in allowed], path


def test_health_check_imports_nothing_heavy():
    code = "import sys, stackops.cli as c; c.commands(['ready']); print(*sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    loaded = set(out.stdout.split())
    assert "stackops.ready" in loaded
    assert not loaded & {"mlflow", "sqlalchemy", "requests", "numpy", "stackops.check"}


def test_a_small_stack_has_only_its_commands(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "stackops", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (
        "accounts",
        "bucket",
        "counting",
        "grant",
        "guard",
        "htpasswd",
        "limiter",
        "login",
        "metrics",
        "migrate",
        "schedule",
        "sso",
        "token",
        "user",
        "backends/postgres",
        "stores/s3",
        "stores/azure",
        "stores/gcs",
    ):
        (tmp_path / "stackops" / f"{name}.py").unlink()
    shutil.rmtree(tmp_path / "stackops" / "watching")
    for path in (tmp_path / "stackops" / "migration").glob("*.py"):
        if path.stem not in ("__init__", "files", "prepare", "report", "switches"):
            path.unlink()
    for name in ("postgres", "across"):
        (tmp_path / "stackops" / "saving" / f"{name}.py").unlink()

    def stackops(*args, **env):
        command = [sys.executable, "-m", "stackops", *args]
        return subprocess.run(command, env={"PYTHONPATH": str(tmp_path), **env}, capture_output=True, text=True)

    text = stackops("--help").stdout
    assert re.findall(r"^    (\w+) ", text, re.M) == [
        "backup", "backups", "bench", "check", "doctor", "gc", "movein", "prepare", "prove", "ready", "restore",
        "rotate", "serve", "size", "upgrade",
    ]  # fmt: skip
    gone = stackops("user", "list")
    assert gone.returncode == 2 and "invalid choice" in gone.stderr
    other = stackops("prepare", STACK_BACKEND="postgres")
    assert other.returncode == 1
    assert (
        other.stderr
        == "stackops: error: STACK_BACKEND is 'postgres', and this stack has no such part; see compose.yaml\n"
    )


def test_every_command_has_help(capsys):
    for name in ("bench", "bucket", "check", "gc", "grant", "htpasswd", "movein", "prepare", "ready", "serve", "user"):
        with pytest.raises(SystemExit) as stop:
            cli.main([name, "--help"])
        assert stop.value.code == 0
        assert len(capsys.readouterr().out) > 100


def test_unexpected_errors_are_one_line_too(monkeypatch, capsys):
    def broken(args):
        raise RuntimeError("two\nlines")

    monkeypatch.delenv("STACKOPS_DEBUG", raising=False)
    monkeypatch.setattr(ready, "run", broken)
    assert cli.main(["ready"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "RuntimeError: two lines" in err


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), RuntimeError("(sqlite3.OperationalError) database or disk is full")],
)
def test_a_full_disk_is_told(monkeypatch, capsys, error):
    def full(args):
        raise error

    monkeypatch.setattr(ready, "run", full)
    assert cli.main(["ready"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("stackops: error: ready needs some room and the disk is full (") and err.count("\n") == 1


def test_a_damaged_database_is_told(monkeypatch, capsys):
    def damaged(args):
        raise RuntimeError("database disk image is malformed")

    monkeypatch.setattr(ready, "run", damaged)
    assert cli.main(["ready"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("stackops: error: the database is damaged (") and "make restore REPLACE=1 BACKUP=no" in err


def test_one_line():
    assert one_line("a\n  b\t c") == "a b c"
    assert one_line(ValueError()) == "ValueError"
    assert len(one_line("x" * 999, 50)) == 50


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (State("b", "b", True, frozenset({"experiments"})), "keep"),
        (State("a", "b", True, frozenset({"experiments"})), "upgrade"),
        (State(None, "b", True, frozenset()), "create"),
        (State(None, "b", True, frozenset({"alembic_version_auth"})), "create"),
        (State(None, "b", True, frozenset({"experiments"})), "upgrade"),
        (State("z", "b", False, frozenset({"experiments"})), "newer MLflow"),
        (State(None, "b", True, frozenset({"invoices"})), "invoices"),
    ],
)
def test_schema_decision(state, expected):
    if expected in ("keep", "upgrade", "create"):
        assert schema.decide(state) == expected
    else:
        with pytest.raises(StackError, match=expected):
            schema.decide(state)


@pytest.fixture
def server():
    """A server whose answers the test decides: path prefix -> (status, body, delay)."""
    answers, seen = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.path, self.headers.get("Authorization")))
            status, body, delay = next((a for p, a in answers.items() if p in self.path), (200, b"{}", 0))
            time.sleep(delay)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    httpd.answers, httpd.seen, httpd.url = answers, seen, f"http://127.0.0.1:{httpd.server_port}"
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def test_ready_asks_both_parts(server):
    ready.check(server.url, "", 5)
    assert [path.split("?")[0] for path, _ in server.seen] == [
        "/api/2.0/mlflow/experiments/search",
        "/api/2.0/mlflow-artifacts/artifacts",
    ]
    assert {auth for _, auth in server.seen} == {None}


def test_ready_signs_in(server):
    ready.check(server.url + "/", "pass", 5)
    assert {auth for _, auth in server.seen} == {"Basic YWRtaW46cGFzcw=="}


@pytest.mark.parametrize(
    ("path", "answer", "words"),
    [
        ("experiments", (503, b'{"message": "no\\ndatabase"}', 0), r"database: HTTP 503 \(no database\)"),
        ("mlflow-artifacts", (500, b"<html>", 0), r"artifact store: HTTP 500$"),
        ("mlflow-artifacts", (200, b"{}", 3), "artifact store: no answer in time"),
    ],
)
def test_ready_names_the_part(server, path, answer, words):
    server.answers[path] = answer
    with pytest.raises(StackError, match=words):
        ready.check(server.url, "", 0.5)


def test_ready_without_a_server(capsys):
    assert cli.main(["ready", "--url", "http://127.0.0.1:9"]) == 1
    assert "the server does not answer" in capsys.readouterr().err


def test_ready_waits(server):
    server.answers["experiments"] = (503, b"", 0)
    threading.Timer(1.2, server.answers.clear).start()
    assert cli.main(["ready", "--url", server.url, "--wait", "10"]) == 0


OWN_SPOOL = """
import sys, time
from stackops import serve
print(*serve.own_spool(sys.argv[1]), flush=True)
time.sleep(60)
"""


def test_temporary_files_of_dead_servers_go(tmp_path):
    """A server has a folder while it lives, whoever starts beside it; one that was killed loses it."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "server-link").symlink_to(tmp_path / "mine")
    servers = []

    def start():
        command = [sys.executable, "-c", OWN_SPOOL, str(tmp_path)]
        env = {"PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"}
        servers.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True))
        folder, gone = servers[-1].stdout.readline().split()
        (Path(folder) / "half").write_text("x")
        return Path(folder), int(gone)

    try:
        (killed, gone), (living, gone_too) = start(), start()
        assert (gone, gone_too) == (0, 0) and (killed / "half").exists()
        servers[0].kill()
        servers[0].wait()
        newest, gone = start()
        assert gone == 1
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {"mine", "server-link", living.name, newest.name}
        assert (living / "half").exists()
    finally:
        for server in servers:
            server.kill()
            server.communicate()


@pytest.mark.parametrize("backend_state", ["empty", "older", "newer", "current"])
def test_serve_refuses_tables_of_another_version(stack, tmp_path, backend_state):
    """MLflow itself would make or upgrade the tables as soon as one is missing."""
    pytest.importorskip("mlflow")
    from alembic.script import ScriptDirectory

    env = stack(DATA_DIR=str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    directory = ScriptDirectory(str(schema.migrations("store", "db_migrations")))
    newest = directory.get_current_head()
    older = directory.get_revision(newest).down_revision
    revision = {"older": older, "newer": "abcdef123456", "current": newest}.get(backend_state)
    with closing(sqlite3.connect(tmp_path / "data" / "mlflow.db")) as database:
        if revision:
            database.execute("CREATE TABLE experiments (id INTEGER)")
            database.execute("CREATE TABLE alembic_version (version_num TEXT)")
            database.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
            database.commit()
        before = list(database.iterdump())
    sentences = {
        "empty": "schema has no tables yet and this MLflow needs .* make up",
        "older": f"schema is at {older} and this MLflow needs {newest}; back the database up, then run make up",
        "newer": "newer MLflow",
    }
    if sentence := sentences.get(backend_state):
        with pytest.raises(StackError, match=sentence):
            serve.check_schema(env)
    else:
        serve.check_schema(env)
    with closing(sqlite3.connect(tmp_path / "data" / "mlflow.db")) as database:
        assert list(database.iterdump()) == before


def test_admin_key():
    from stackops import bucket

    text = "[default]\naws_access_key_id = a\naws_secret_access_key = b%c\n"
    assert bucket.admin_key(text) == {"aws_access_key_id": "a", "aws_secret_access_key": "b%c"}
    for wrong in ("", "[default]\n", "no section"):
        with pytest.raises(StackError, match="make init"):
            bucket.admin_key(wrong)


def test_parts_of_uploads_that_never_ended_go():
    """Only those older than a day: another server may be at work on the rest."""
    from stackops import bucket

    now = datetime(2026, 11, 24, 12, tzinfo=UTC)
    pages = [
        {"Uploads": [{"Key": "a/old", "UploadId": "1", "Initiated": now - timedelta(hours=25)}]},
        {"Uploads": [{"Key": "a/new", "UploadId": "2", "Initiated": now - timedelta(hours=23)}]},
        {},
    ]
    client = mock.Mock()
    client.get_paginator.return_value.paginate.return_value = pages
    assert bucket.tidy(client, "b", now) == 1
    client.get_paginator.assert_called_once_with("list_multipart_uploads")
    client.abort_multipart_upload.assert_called_once_with(Bucket="b", Key="a/old", UploadId="1")


def test_client_environment(stack):
    uri = {"MLFLOW_TRACKING_URI": "http://host/mlflow"}
    plain = check.client_environment(stack(**uri))
    assert "MLFLOW_TRACKING_USERNAME" not in plain and plain["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"
    for auth in ("basic", "mlflow"):
        signed = check.client_environment(stack(STACK_AUTH=auth, **uri))
        assert (signed["MLFLOW_TRACKING_USERNAME"], signed["MLFLOW_TRACKING_PASSWORD"]) == (
            "admin",
            "long enough password",
        )
    own = check.client_environment(stack(STACK_AUTH="basic", MLFLOW_TRACKING_USERNAME="me", **uri))
    assert own["MLFLOW_TRACKING_USERNAME"] == "me" and "MLFLOW_TRACKING_PASSWORD" not in own
    with pytest.raises(StackError, match="MLFLOW_TRACKING_URI"):
        check.client_environment(stack())


def test_the_client_trusts_an_authority_of_the_stacks_own(stack, tmp_path):
    env = stack(MLFLOW_TRACKING_URI="https://host", STACK_CA=str(tmp_path / "ca.pem"))
    (tmp_path / "ca.pem").write_text("")
    assert "REQUESTS_CA_BUNDLE" not in check.client_environment(env)
    (tmp_path / "ca.pem").write_text("a certificate\n")
    assert check.client_environment(env)["REQUESTS_CA_BUNDLE"] == str(tmp_path / "ca.pem")


def test_check_names_the_step_and_gives_up():
    lines = []
    with pytest.raises(StackError, match="^upload: boom$"), check.Steps(lines.append).step("upload"):
        raise ValueError("boom")
    with pytest.raises(StackError, match="gave up after 1 s"), check.deadline(1):
        time.sleep(5)
    assert lines == []
