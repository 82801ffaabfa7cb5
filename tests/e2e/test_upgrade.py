"""`make upgrade` from the MLflow of before, with data: it succeeds, or all is as it was, and it says so."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from history import History
from stacks import ROOT, Stack, run, stack

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


def holder(one: Stack) -> bool:
    """Whether somebody holds the stack's lock."""
    return (one.folder / ".stack.lock").is_symlink()


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
