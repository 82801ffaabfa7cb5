"""`make upgrade` from the MLflow of before, with data: it succeeds, or all is as it was, and it says so."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from history import History
from stacks import PREFIX, ROOT, Stack, run, stack
from test_old_clients import WORDS, installed

pytestmark = pytest.mark.docker

NAMES = ("mlflow", "mlflow-skinny", "mlflow-tracing")
BASE = Path("mlflow", "requirements", "base.txt")


def entries(lock: str) -> dict[str, str]:
    """Return MLflow's own entries of a lock file, by name."""
    found = {name: re.search(rf"(?m)^{name}==.*(?:\n[ \t].*)*", lock) for name in NAMES}
    return {name: match[0] for name, match in found.items() if match}


def make_older(one: Stack) -> dict[Path, str]:
    """Let the stack's files ask for the MLflow of before; return what they asked for. Its image keeps one name."""
    app = Path("stackops", "stackops", "app.py")
    today = {path: (one.folder / path).read_text() for path in (BASE, app)}
    then, text = entries((ROOT / "tests" / "clients" / "mlflow-3.16.txt").read_text()), today[BASE]
    for name, entry in entries(text).items():
        text = text.replace(entry, then[name])
    assert text != today[BASE]
    (one.folder / BASE).write_text(text)
    # A check that MLflow has since 3.17.
    assert "accounts.close_store" in today[app]
    (one.folder / app).write_text(today[app].replace("accounts.close_store(os.environ)", "pass"))
    one.setting("MLFLOW_IMAGE", f"{one.name}-image")
    return today


IMAGES = yaml.safe_load((ROOT / "extensions/data/versions.yml").read_text())
ANSWERS = {"postgres": {"purpose": "team"}, "sqlite": {"purpose": "solo", "auth": "mlflow"}}
# What the last step from 3.16 to 3.17 makes, when others are done already.
NEW_TABLE = "job_locks"


class Older:
    """A stack in which MLflow 3.16 runs with what a user logged, while its files ask for today's."""

    def __init__(self, one: Stack):
        self.stack, self.history = one, History(one)
        today = make_older(one)
        one.up()
        assert self.version() == "3.16.1"
        self.history.write("first")
        for path, text in today.items():
            (one.folder / path).write_text(text)

    def version(self) -> str:
        """Return the version of the server that runs."""
        code = "from importlib.metadata import version; print(version('mlflow'))"
        return self.stack.compose("exec", "-T", "mlflow", "python", "-c", code).strip()

    def step(self) -> str:
        """Return how far the upgrade is."""
        with contextlib.suppress(FileNotFoundError):
            return (self.stack.folder / "backups/upgrade/step").read_text().strip()
        return ""

    def as_before(self) -> None:
        """All is as it was before the upgrade."""
        assert self.version() == "3.16.1"
        self.history.read()
        assert not holder(self.stack)

    def sql(self, words: str) -> str:
        """Run an SQL statement as the database's owner, while the stack runs."""
        if self.stack.has("postgres"):
            psql = ("psql", "--username", "mlflow", "--tuples-only", "--no-align", "mlflow")
            return self.stack.compose("exec", "-T", "postgres", *psql, "--command", words).strip()
        code = "import sqlite3, sys; c = sqlite3.connect('/data/mlflow.db'); print(c.execute(sys.argv[1]).fetchall())"
        return self.stack.compose("exec", "-T", "mlflow", "python", "-c", code + "; c.commit()", words).strip()

    @contextlib.contextmanager
    def override(self, **services: dict) -> Iterator[None]:
        """Settings of the owner's own, that the new version does not bear."""
        path = self.stack.folder / "compose.override.yaml"
        self.stack.override({"services": services})
        try:
            yield
        finally:
            path.unlink()

    def killed(self, *words: str, when: Callable[[], bool], patience: float = 120) -> None:
        """`make WORDS` and everything that it has started here is killed as soon as `when` says so."""
        started = subprocess.Popen(
            ["make", *words], cwd=self.stack.folder, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until = time.monotonic() + patience
        while not when():
            assert started.poll() is None, "it ended before it was killed"
            assert time.monotonic() < until, self.step()
            time.sleep(0.02)
        os.killpg(started.pid, signal.SIGKILL)
        assert started.wait() == -signal.SIGKILL


def holder(one: Stack) -> bool:
    """Whether somebody holds the stack's lock."""
    return (one.folder / ".stack.lock").is_symlink()


def runs(one: Stack, name: str) -> bool:
    """Whether a container whose name begins so is there."""
    return bool(run("docker", "ps", "--quiet", "--filter", f"name=^{one.name}-{name}").stdout.strip())


def error(said: str) -> str:
    """Return the sentence with which a command ends: there is one."""
    [line] = [line for line in said.splitlines() if line.startswith(("upgrade: error:", "up: error:"))]
    return line


def forget_images(one: Stack) -> None:
    """Take away the names of images that an upgrade gives, and this file; the layers go with the last of them."""
    names = run("docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}").stdout.split()
    own = [name for name in names if name.startswith((f"{one.name}-before-upgrade:", f"{one.name}-image:"))]
    run("docker", "image", "rm", "--force", *own, f"{one.name}-mlflow:upgrade-next")


@pytest.fixture(scope="module", params=ANSWERS)
def older(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Older]:
    """A stack of each kind."""
    name = f"upgrade-{request.param}"
    with stack(tmp_path_factory.mktemp(name), name, ANSWERS[request.param]) as one:
        try:
            yield Older(one)
        finally:
            forget_images(one)


# What the script does with any database takes minutes; one kind will do.
ON_SQLITE = pytest.mark.parametrize("older", ["sqlite"], indirect=True)


def test_a_look_changes_nothing(older: Older) -> None:
    said = older.stack.make("upgrade-check")
    assert "MLflow: 3.16.1 runs, 3.17.2 is to come" in said
    assert re.search(r"schema of runs and models: \w{12}, becomes \w{12}", said)
    assert re.search(r"containers that change:.* mlflow", said)
    assert older.step() == ""
    older.as_before()


def test_a_migration_that_fails(older: Older) -> None:
    older.sql(f"CREATE TABLE {NEW_TABLE} (id integer)")
    said = older.stack.make("upgrade", fails=True)
    assert "the migration failed" in error(said) and "as before: MLflow 3.16.1" in error(said)
    older.as_before()
    refusal = error(older.stack.make("up", fails=True))
    assert "the last upgrade went back" in refusal
    assert "the last upgrade went back" in older.stack.make("restart", fails=True)
    assert older.version() == "3.16.1"
    older.sql(f"DROP TABLE {NEW_TABLE}")


def test_a_version_that_does_not_start(older: Older) -> None:
    with older.override(mlflow={"command": ["no-such-command"]}):
        said = older.stack.make("upgrade", fails=True)
    assert "the new version does not start: " in error(said) and "'no-such-command'" in error(said)
    assert "as before: MLflow 3.16.1" in error(said)
    older.as_before()


@ON_SQLITE
def test_a_failed_check(older: Older) -> None:
    """Going back also works for a stack whose last start was by a release that did not note what it started."""
    (older.stack.folder / ".running.yaml").unlink()
    with older.override(check={"environment": {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}}):
        said = older.stack.make("upgrade", fails=True)
    assert "does not pass 'make check'" in error(said) and "as before: MLflow 3.16.1" in error(said)
    older.as_before()


def test_upgraded_and_back(older: Older) -> None:
    one, kept = older.stack, older.stack.folder / "backups/upgrade/database"
    said = one.make("upgrade")
    assert "done. The backup from before is backups/upgrade/database" in said
    assert older.version() == "3.17.2"
    older.history.read()
    one.make("check")
    assert {path.name for path in kept.iterdir()} >= {"snapshot.json"}
    saved = {path: path.stat().st_mtime_ns for path in kept.iterdir()}
    assert "nothing to do" in one.make("upgrade")
    assert "nothing to do" in one.make("upgrade-check")
    assert {path: path.stat().st_mtime_ns for path in kept.iterdir()} == saved
    one.make("up")

    first = list(older.history.written)
    older.history.write("second")
    older.history.read()
    assert "REPLACE=1 says that it may" in error(one.make("upgrade-undo", fails=True))
    assert older.version() == "3.17.2"
    said = one.make("upgrade-undo", "REPLACE=1")
    assert "done: the stack runs as before, MLflow 3.16.1" in said and "error" not in said
    older.history.written = first
    older.as_before()
    assert "there is no upgrade to go back from" in error(one.make("upgrade-undo", "REPLACE=1", fails=True))


@ON_SQLITE
def test_killed_at_every_step(older: Older) -> None:
    one = older.stack
    older.killed("upgrade", when=lambda: older.step() == "stopped" and runs(one, "upgrade"))
    refusal = "an upgrade was interrupted: run 'make upgrade' to finish it"
    assert refusal in error(one.make("up", fails=True))
    assert "done: the stack runs as before" in one.make("upgrade-undo")
    older.as_before()

    older.killed("upgrade", when=lambda: older.step() == "migrating" and runs(one, "migrate-run"))
    assert refusal in error(one.make("up", fails=True))
    older.killed("upgrade", when=lambda: older.step() == "starting" and runs(one, "mlflow-1"))
    assert refusal in error(one.make("up", fails=True))
    assert "the upgrade that was interrupted goes on" in one.make("upgrade")
    assert older.version() == "3.17.2"
    older.history.read()
    one.make("check")
    assert "done" in one.make("upgrade-undo", "REPLACE=1")
    older.as_before()


@ON_SQLITE
def test_killed_on_the_way_back(older: Older) -> None:
    one = older.stack
    with older.override(check={"environment": {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}}):
        older.killed("upgrade", when=lambda: older.step() == "going-back")
        assert "interrupted" in error(one.make("up", fails=True))
        said = error(one.make("upgrade", fails=True))
    assert "was interrupted on its way back" in said and "as before: MLflow 3.16.1" in said
    older.as_before()


@ON_SQLITE
def test_one_at_a_time(older: Older) -> None:
    both = [
        subprocess.Popen(
            ["make", "--no-print-directory", "upgrade-check"], cwd=older.stack.folder,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [one.communicate()[0] for one in both]
    assert sorted(one.returncode == 0 for one in both) == [False, True], said
    refused = next(text for text, one in zip(said, both, strict=True) if one.returncode)
    assert "at work: wait until it has ended" in error(refused)
    older.as_before()


# No release has had an MLflow as old as 3.7: its own server, in the place of the stack's.
OLD_IMAGE = f"""
FROM {IMAGES["python_image"]}
COPY mlflow-3.7-server.txt /
RUN --mount=type=cache,target=/root/.cache/pip pip install --require-hashes -r /mlflow-3.7-server.txt
# A new volume gets the mode of this folder; and a server of then makes a folder where it stands.
RUN install -d -m 1777 /data
WORKDIR /tmp
"""
DATABASE = {"postgres": "postgresql://mlflow@postgres/mlflow", "sqlite": "sqlite:////data/mlflow.db"}


def mlflow_3_7(database: str) -> dict[str, dict]:
    """Return the settings of services with which MLflow 3.7 runs as people ran it, on this database."""
    server = (
        "PGPASSWORD=$$(cat /run/secrets/db_password 2>/dev/null) exec mlflow server --host 0.0.0.0 --workers 1 "
        f"--backend-store-uri {database} --artifacts-destination $$ARTIFACT_URI"
    )
    look = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5000/health')"
    image = f"{PREFIX}-image:mlflow-3.7"
    return {
        "migrate": {"image": image, "entrypoint": ["true"]},
        "mlflow": {
            "image": image,
            "entrypoint": ["sh", "-c", server],
            "command": [],
            "healthcheck": {"test": ["CMD", "python", "-c", look]},
        },
    }


@pytest.mark.parametrize("kind", DATABASE)
def test_from_mlflow_3_7(tmp_path: Path, kind: str) -> None:
    """Its data come through all the migrations since, or, when it fails after them, back to that server."""
    (tmp_path / "Dockerfile").write_text(OLD_IMAGE)
    lock = ROOT / "tests/clients/mlflow-3.7-server.txt"
    (tmp_path / lock.name).write_text(lock.read_text())
    built = run("docker", "build", "--quiet", "--tag", f"{PREFIX}-image:mlflow-3.7", ".", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    old = installed("mlflow-3.7")
    # No login: that of nginx asks the server of this stack, which the one of then is not.
    answers = {"purpose": "team", "auth": "none"} if kind == "postgres" else {"purpose": "solo"}
    with stack(tmp_path, f"upgrade-3-7-{kind}", answers) as one:
        if one.has("object-store"):
            one.compose("build", "object-store", "mlflow")  # the bucket is made by this stack's own image
        one.override({"services": mlflow_3_7(DATABASE[kind])})
        one.compose("up", "--detach", "--wait", "--no-build")
        (one.folder / ".running.yaml").write_text(one.compose("config"))  # as 'make up' does
        one.client(WORDS, "write=old", "read=old", python=old)

        one.override({"services": {"check": {"environment": {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}}}})
        said = one.make("upgrade", fails=True)
        assert "as before: MLflow 3.7.0 with the data from before" in error(said)
        one.client(WORDS, "read=old", python=old)

        (one.folder / "compose.override.yaml").unlink()
        said = one.make("upgrade")
        assert re.search(r"schema of runs and models: bf29a5ff90ea, becomes \w{12}", said)
        assert "MLflow: 3.7.0 runs, 3.17.2 is to come" in said
        one.client(WORDS, "read=old", "write=new", "read=new")
        one.client(WORDS, "read=old", "read=new", python=old)
        one.make("check")
        forget_images(one)
