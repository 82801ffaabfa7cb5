"""Database URIs, the passfile, libpq's messages, SQLite's file."""

import sqlite3
import threading
import time
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from stackops.backends import postgres, sqlite
from stackops.errors import StackError
from stackops.settings import Secrets


def libpq_fields(line: str) -> list[str]:
    """Split a passfile line as libpq does: a backslash takes the next character as it is."""
    fields, text, characters = [], "", iter(line)
    for character in characters:
        if character == "\\":
            text += next(characters)
        elif character == ":":
            fields, text = [*fields, text], ""
        else:
            text += character
    return [*fields, text]


@pytest.mark.parametrize("password", ["p@ss:w/o#rd%1[]\\", "\\", ":", "\\:", "a\\:b", " x ", "ü€", "'\"$`"])
def test_passfile(password):
    line = postgres.passfile("user:1\\", password)
    assert line.endswith("\n")
    assert libpq_fields(line[:-1]) == ["*", "*", "*", "user:1\\", password]


def test_passfile_refuses_two_lines(stack):
    (stack.secrets / "db_password").write_text("one\ntwo\n")
    with pytest.raises(StackError, match="more than one line"):
        postgres.files(stack(STACK_BACKEND="postgres"), Secrets(stack.secrets))


def test_uri_is_quoted(stack):
    env = stack(STACK_BACKEND="postgres", DB_USER="a@b/c", DB_NAME="d%e", DB_HOST="::1", DB_PORT="6543")
    parts = urlsplit(postgres.uri(env))
    assert parts.scheme == "postgresql+psycopg2"
    assert (unquote(parts.username), parts.password, parts.hostname, parts.port) == (
        "a@b/c",
        None,
        "::1",
        6543,
    )
    assert unquote(parts.path) == "/d%e"


def test_tls_options(stack, tmp_path):
    ca, empty = tmp_path / "ca.pem", tmp_path / "empty.pem"
    ca.write_text("CERTIFICATE")
    empty.write_text("")

    def options(**changes):
        query = urlsplit(postgres.uri(stack(STACK_BACKEND="postgres", **changes))).query
        return {name: values[0] for name, values in parse_qs(query).items()}

    assert "sslmode" not in options() and "sslrootcert" not in options()
    full = options(DB_SSLMODE="verify-full", DB_SSLROOTCERT=str(ca))
    assert (full["sslmode"], full["sslrootcert"]) == ("verify-full", str(ca))
    assert "sslrootcert" not in options(DB_SSLMODE="require", DB_SSLROOTCERT=str(empty))
    assert options(DB_SSLMODE="verify-full", DB_SSLROOTCERT=str(empty))["sslrootcert"].endswith("cacert.pem")


@pytest.mark.parametrize(
    ("message", "hopeless"),
    [
        ('FATAL:  password authentication failed for user "mlflow"', True),
        ('FATAL:  database "nope" does not exist', True),
        ('FATAL:  role "nope" does not exist', True),
        ("SSL error: certificate verify failed", True),
        ("server does not support SSL, but SSL was required", True),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "a", database "b", no encryption', True),
        ("Connection refused", False),
        ("FATAL:  the database system is starting up", False),
        ('could not translate host name "db" to address: Name or service not known', False),
        ("timeout expired", False),
        ("FATAL:  sorry, too many clients already", False),
    ],
)
def test_what_is_hopeless(message, hopeless):
    assert bool(postgres.remedy(f'connection to server at "db" (10.0.0.2), port 5432 failed: {message}')) is hopeless


def test_gist_of_a_message():
    text = (
        'connection to server at "localhost" (::1), port 1 failed: FATAL:  database "x" does not exist\n'
        'connection to server at "localhost" (127.0.0.1), port 1 failed: Connection refused\n\tIs it running?'
    )
    assert postgres.gist(text) == 'database "x" does not exist'


REPLICA = {"DB_HOST": "main", "DB_USER": "mlflow", "DB_NAME": "mlflow", "DB_SSLMODE": "require"}


def test_a_read_replica_is_spoken_to_like_the_database(tmp_path):
    def uri(text):
        return postgres.replica_uri({**REPLICA, "DB_READ_REPLICA_URI": text})

    same = "application_name=mlflow&connect_timeout=5"
    assert uri("postgresql://copy/mlflow") == f"postgresql+psycopg2://mlflow@copy:5432/mlflow?{same}&sslmode=require"
    assert uri("postgresql+psycopg2://main:5433/other?sslmode=disable").endswith(f"5433/other?{same}&sslmode=disable")
    assert postgres.replica_uri(REPLICA) == uri("") == ""
    env = {**REPLICA, "DB_READ_REPLICA_URI": "postgresql://copy/mlflow", "RUNTIME_DIR": str(tmp_path)}
    found = postgres.environment(env, 2, 2)
    assert found["MLFLOW_READ_REPLICA_BACKEND_STORE_URI"] == postgres.replica_uri(env)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("postgresql://mlflow:hunter2@copy/mlflow", "secrets/db_password"),
        ("copy:5432", "no address"),
        ("sqlite:////data/mlflow.db", "no address of a PostgreSQL"),
        ("postgresql:///mlflow", "no address of a PostgreSQL"),
        ("postgresql://other@copy/mlflow", "DB_USER"),
        ("postgresql://main/mlflow", "the database itself"),
        ("postgresql://copy:port/mlflow", "no address"),
    ],
)
def test_a_read_replica_that_cannot_be_meant(uri, words):
    with pytest.raises(StackError, match=words) as caught:
        postgres.replica_uri({**REPLICA, "DB_READ_REPLICA_URI": uri})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("value", ["many", "-5", "1e3"])
def test_max_connections_must_be_a_number(stack, value):
    with pytest.raises(StackError, match="DB_MAX_CONNECTIONS"):
        postgres.max_connections({"DB_MAX_CONNECTIONS": value})


def test_sqlite_file_is_made_in_wal_mode(tmp_path):
    env = {"DATA_DIR": str(tmp_path / "data")}
    sqlite.wait(env, 1)
    with sqlite3.connect(tmp_path / "data" / "mlflow.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_sqlite_file_that_is_none(tmp_path):
    (tmp_path / "mlflow.db").write_text("this is no database, but it is long enough to look at" * 20)
    with pytest.raises(StackError, match="not a database"):
        sqlite.wait({"DATA_DIR": str(tmp_path)}, 1)
    assert (tmp_path / "mlflow.db").read_text().startswith("this is no database")


def test_sqlite_lock_lets_one_in(tmp_path):
    env, order = {"DATA_DIR": str(tmp_path)}, []

    def second():
        with sqlite.exclusive(env):
            order.append("second")

    with sqlite.exclusive(env):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]
