"""`stackops movein`: a SQLite file, a folder or a backup takes the place of this stack's own SQLite file, or nothing
is changed. No container is needed."""

import os
import random
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import moving
import pytest

ENOUGH = "CREATE TABLE filler (x); INSERT INTO filler VALUES (zeroblob(60000000))"


@dataclass
class Stack:
    """The data of a stack with SQLite, and the command."""

    folder: Path

    @property
    def database(self) -> Path:
        """The file."""
        return self.folder / "data" / "mlflow.db"

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment that Compose would give."""
        for name in ("data", "tmp", "secrets"):
            (self.folder / name).mkdir(exist_ok=True)
        for name in ("webhook_encryption_key", "admin_password", "flask_secret_key"):
            (self.folder / "secrets" / name).write_text(moving.KEY)
        return {
            "PATH": os.environ["PATH"], "PYTHONPATH": str(moving.PROJECT), "PYTHONDONTWRITEBYTECODE": "1",
            "STACK_BACKEND": "sqlite", "DATA_DIR": str(self.folder / "data"), "STACK_STORE": "local",
            "ARTIFACT_URI": str(self.folder / "data" / "artifacts"), "STACK_AUTH": "none",
            "SECRETS_DIR": str(self.folder / "secrets"), "RUNTIME_DIR": str(self.folder / "run"),
            "TMPDIR": str(self.folder / "tmp"), "MLFLOW_DISABLE_TELEMETRY": "true", **moving.SWITCHED_ON, **more,
        }  # fmt: skip

    def command(self, *words: object) -> list[str]:
        """Return the command line."""
        own = [sys.executable, "-m", "stackops", "movein", "--backups", str(self.folder / "backups")]
        return [*own, *map(str, words)]

    def run(self, *words: object, fails: bool = False, **env: str) -> str:
        """Run the command, which must succeed, or fail with one sentence; return its output."""
        done = subprocess.run(self.command(*words), env=self.environment(**env), text=True, capture_output=True)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        if fails:
            assert done.stderr.splitlines()[-1].startswith("stackops: error: "), done.stderr
            assert "Traceback" not in done.stderr and "unexpectedly" not in done.stderr
        return done.stdout + done.stderr

    def left(self) -> set[str]:
        """What lies about besides the data: nothing should."""
        names = {path.name for path in (self.folder / "data").iterdir()}
        return names - {"mlflow.db", ".prepare.lock", "auth.db"}


@pytest.fixture
def own(tmp_path: Path) -> Stack:
    """A stack that has no data yet."""
    return Stack(tmp_path)


def content(path: Path) -> dict[str, Counter]:
    """Return all rows of all tables, with their types; floats by their bits."""
    with closing(sqlite3.connect(path)) as connection:
        names = [n for (n,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1")]
        return {
            name: Counter(
                tuple(struct.pack(">d", v) if isinstance(v, float) else (type(v), v) for v in row)
                for row in connection.execute(f'SELECT * FROM "{name}"')
            )
            for name in names
        }


def test_every_row_arrives_and_a_check_changes_nothing(own, rich_store):
    before = rich_store.read_bytes()
    said = own.run(rich_store, "--check")
    assert "in the way: nothing" in said and "target: empty" in said and not own.database.exists()
    said = own.run(rich_store)
    assert "verified: 64 tables" in said
    assert content(own.database) == content(rich_store)
    assert rich_store.read_bytes() == before and own.left() == set()
    assert sorted(p.name for p in (own.folder / "tmp" / "stackops-migrate").iterdir()) == [".lock"]


def test_rows_that_are_there_are_kept_and_come_back(own, empty_store, rich_store):
    own.run(empty_store)
    assert "target: empty" in own.run(empty_store, "--check"), "a fresh stack's rows are none"
    own.run(rich_store)
    there = content(own.database)
    said = own.run(empty_store, fails=True)
    assert "REPLACE=1" in said and content(own.database) == there
    assert "brings it back" in own.run(empty_store, "--replace")
    assert content(own.database) == content(empty_store)
    (backup,) = (own.folder / "backups").iterdir()
    assert backup.stat().st_mode & 0o777 == 0o700
    own.run(backup)
    assert content(own.database) == there


def test_what_is_only_in_the_log_is_replaced_and_kept(own, empty_store, rich_store):
    """A server that was killed leaves a write-ahead log: it belongs to the old file, and must not meet the new one."""
    own.run(empty_store)
    script = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('PRAGMA journal_mode=WAL');"
        "c.execute(\"UPDATE experiments SET name = 'only in the log'\"); c.commit();"
        "c.execute(\"INSERT INTO experiment_tags VALUES ('k', 'v', 0)\"); c.commit(); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", script, str(own.database)], check=True)
    assert own.left() >= {"mlflow.db-wal"}
    own.run(rich_store, "--replace")
    assert own.left() == set() and content(own.database) == content(rich_store)
    (backup,) = (own.folder / "backups").iterdir()
    with closing(sqlite3.connect(backup / "mlflow.db")) as connection:
        assert connection.execute("SELECT name FROM experiments").fetchall() == [("only in the log",)]


def test_a_server_that_is_running(own, empty_store, rich_store):
    own.run(empty_store)
    with closing(sqlite3.connect(own.database)) as server:
        server.execute("PRAGMA journal_mode=WAL")
        server.execute("SELECT count(*) FROM experiments").fetchone()
        assert "stop the server first" in own.run(rich_store, fails=True)
    assert content(own.database) == content(empty_store)


def test_kill_9_at_ten_points_leaves_the_old_file_or_the_new_one(own, empty_store, rich_store, tmp_path):
    busy = moving.copy(rich_store, tmp_path, *ENOUGH.split("; "))
    own.run(empty_store)
    before, after = content(own.database), content(busy)
    started = time.monotonic()
    own.run(busy, "--check")
    span = time.monotonic() - started
    chance, killed = random.Random(20261127), 0
    for _ in range(10):
        process = subprocess.Popen(
            own.command(busy), env=own.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(chance.uniform(0.4, 1.3) * span)
        os.kill(process.pid, signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        found = content(own.database)
        assert found in (before, after)
        if found == after:
            own.run(empty_store, "--replace")
    assert killed > 4
    own.run(busy)
    assert content(own.database) == after and own.left() == set()
    assert sorted(p.name for p in (own.folder / "tmp" / "stackops-migrate").iterdir()) == [".lock"]


def test_a_full_disk(own, empty_store, rich_store, tmp_path):
    """A limit on the size of files stands for it: the copy of a smaller source fits, the larger one does not."""
    own.run(empty_store)
    before = content(own.database)
    busy = moving.copy(rich_store, tmp_path, *ENOUGH.split("; "))
    limited = "import resource, os, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (20 << 20, 20 << 20)); os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", limited, *own.command(busy)], env=own.environment(), text=True, capture_output=True
    )
    assert done.returncode == 1 and "make room" in done.stderr.splitlines()[-1], done.stderr
    assert content(own.database) == before and own.left() == set()
    own.run(busy)


def test_artifact_locations_are_rewritten_and_ids_stay(own, tmp_path):
    script = (
        "import mlflow, sys; mlflow.set_experiment('mine')\n"
        "with mlflow.start_run(): mlflow.log_metric('m', 1.5); mlflow.log_text('x', 'a.txt')"
    )
    done = moving.run(
        sys.executable, "-c", script, cwd=tmp_path,
        env={"MLFLOW_TRACKING_URI": f"file://{tmp_path}/mlruns", "MLFLOW_ALLOW_FILE_STORE": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (number,) = (p.name for p in (tmp_path / "mlruns").iterdir() if p.name.isdecimal() and p.name != "0")
    said = own.run(tmp_path / "mlruns", "--check")
    assert f"add ARTIFACTS=file://{tmp_path}/mlruns=mlflow-artifacts:" in said
    own.run(tmp_path / "mlruns", "--artifacts", f"file://{tmp_path}/mlruns=mlflow-artifacts:")
    with closing(sqlite3.connect(own.database)) as connection:
        ((experiment, uri),) = connection.execute("SELECT experiment_id, artifact_uri FROM runs").fetchall()
        assert connection.execute("SELECT key, value FROM metrics").fetchall() == [("m", 1.5)]
    assert str(experiment) == number and uri.startswith(f"mlflow-artifacts:/{number}/")


def test_rows_over_which_the_server_would_not_start(own, rich_store):
    said = own.run(rich_store, fails=True, MLFLOW_ENABLE_WORKSPACES="", MLFLOW_SQL_TRACE_ROLLUPS_ENABLED="")
    assert "MLFLOW_ENABLE_WORKSPACES=true" in said and "MLFLOW_SQL_TRACE_ROLLUPS_ENABLED=true" in said
    assert "FIX=" not in said and not own.database.exists()


def test_a_damaged_file(own, rich_store, tmp_path):
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(rich_store.read_bytes())
    with closing(sqlite3.connect(damaged)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'params'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with damaged.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    own.run(damaged, fails=True)
    assert not own.database.exists()


def test_a_newer_mlflow_is_refused(own, empty_store, tmp_path):
    newer = moving.copy(empty_store, tmp_path, "UPDATE alembic_version SET version_num = 'ffffffffffff'")
    assert "comes from a newer MLflow" in own.run(newer, fails=True)
    assert not own.database.exists()


def test_users_have_a_file_of_their_own(own, empty_store, tmp_path):
    users = tmp_path / "users.db"
    done = moving.run(sys.executable, "-m", "mlflow.server.auth", "db", "upgrade", "--url", f"sqlite:///{users}")
    assert done.returncode == 0, done.stderr
    with closing(sqlite3.connect(users)) as connection:
        connection.execute("INSERT INTO users (username, password_hash, is_admin) VALUES ('ada', 'x', 0)")
        connection.commit()
    assert "this stack does not use them" in own.run(users, fails=True)
    own.run(empty_store)
    own.run(users, STACK_AUTH="mlflow")
    assert content(own.folder / "data" / "auth.db") == content(users)
    assert content(own.database) == content(empty_store)
    assert "REPLACE=1" in own.run(users, fails=True, STACK_AUTH="mlflow")


@pytest.mark.parametrize(
    ("source", "reason"),
    [("/nowhere/mlflow.db", "there is no"), ("mysql://a@b/c", "is no file"), ("/etc", "has no mlflow.db")],
)
def test_sources_that_are_none(own, source, reason):
    assert reason in own.run(source, fails=True)
