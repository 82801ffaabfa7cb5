"""The pages of docs/runbooks: the situation is made, each command runs as printed, and what was saved is back."""

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from journeys import Shell
from saving import sets, start, until
from stacks import ROOT, Stack, run, stack
from test_backup_faults import small_disk
from test_journeys import environment
from test_upgrade import forget_images

pytestmark = pytest.mark.docker

PAGES = ROOT / "docs" / "runbooks"
# Logs runs with a file each into one experiment; prints their ids.
LOG = """
import random, sys, tempfile, pathlib
import mlflow
mlflow.set_experiment("fraud")
for number in range(int(sys.argv[1])):
    with mlflow.start_run() as run, tempfile.TemporaryDirectory() as folder:
        mlflow.log_metric("loss", number)
        pathlib.Path(folder, "model.bin").write_bytes(random.Random(run.info.run_id).randbytes(3_000_000))
        mlflow.log_artifact(f"{folder}/model.bin")
    print(run.info.run_id)
"""
DELETE = """
import sys, mlflow
for run in sys.argv[1:]:
    mlflow.MlflowClient().delete_run(run)
"""
# Prints the runs that are there and whole, and those that have lost their file.
FOUND = """
import pathlib, random, mlflow
from mlflow.exceptions import MlflowException
for run in mlflow.search_runs(experiment_names=["fraud"], output_format="list"):
    assert "loss" in run.data.metrics
    try:
        path = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="model.bin")
        whole = pathlib.Path(path).read_bytes() == random.Random(run.info.run_id).randbytes(3_000_000)
    except MlflowException:
        whole = False
    print(run.info.run_id, whole)
"""


@dataclass
class Owner:
    """Whoever reads the pages: a stack and a shell in its folder."""

    stack: Stack
    shell: Shell

    def play(self, page: str, start: str = "", end: str = "") -> None:
        """Run a page, or a part of it."""
        self.shell.play(PAGES / page, start, end)

    def log(self, number: int) -> list[str]:
        """Log runs, and return them."""
        return re.findall(r"(?m)^[0-9a-f]{32}$", self.stack.client(LOG, str(number)))

    def found(self) -> dict[str, bool]:
        """Return the runs that there are, and whether each has its file."""
        lines = self.stack.client(FOUND).splitlines()
        return {line.split()[0]: line.split()[1] == "True" for line in lines if line.endswith(("True", "False"))}


@contextlib.contextmanager
def owned(folder: Path, name: str, **answers: str) -> Iterator[Owner]:
    """A stack, not started, and its owner's shell."""
    answers = {"artifact_store": "local", "reverse_proxy": "nginx", "auth": "none", **answers}
    with stack(folder, f"runbooks-{name}", answers) as one:
        env = one.folder / ".env"
        env.write_text("".join(line for line in env.open() if not line.startswith("STORE_PORT=")))
        env.chmod(0o600)
        one.setting("MLFLOW_IMAGE", f"{one.name}-image")
        instead = {
            "team is ready: http://localhost:8080": f"{one.name} is ready: {one.url}",
            "project=team": f"project={one.name}",
            "team_": f"{one.name}_",
        }
        # How many rows a run has is the client's affair.
        shell = Shell(one.folder, environment(), instead, also={r"\b[\d,]+ rows": r"[\d,]+ rows"})
        try:
            yield Owner(one, shell)
        finally:
            shell.close()
            forget_images(one)


@pytest.fixture(scope="module")
def solo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owner]:
    """A stack with SQLite, of which the volumes and the backups are on a small disk."""
    folder = tmp_path_factory.mktemp("solo")
    with small_disk(folder / "disk", "48m") as disk, owned(folder, "solo", backend="sqlite") as owner:
        for name in ("data", "spool", "backups"):
            (disk / name).mkdir()
            (disk / name).chmod(0o1777)
        bound = {
            name: {"driver_opts": {"type": "none", "o": "bind", "device": str(disk / name)}}
            for name in ("data", "spool")
        }
        owner.stack.override({"volumes": {f"mlflow-{name}": settings for name, settings in bound.items()}})
        (owner.stack.folder / "backups").symlink_to(disk / "backups")
        owner.stack.up()
        yield owner


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owner]:
    """A stack with PostgreSQL and a folder."""
    with owned(tmp_path_factory.mktemp("team"), "team", backend="postgres") as owner:
        owner.stack.up()
        yield owner


def test_disk_full(solo: Owner) -> None:
    one = solo.stack
    deleted = solo.log(3)
    one.make("backup")
    one.client(DELETE, *deleted)
    kept = solo.log(2)
    one.make("backup")
    disk = one.folder.parent / "disk"
    with contextlib.suppress(OSError), open(disk / "core", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    said = one.client(LOG, "1", fails=True, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert "503" in said
    for command, sentence in (
        (("backup",), "the disk of ./backups is full: make room there ('make backups KEEP=2'"),
        (("gc", "OLDER_THAN=0m", "APPLY=1"), "gc needs some room and the disk is full"),
        (("up",), "No space left on device"),
    ):
        assert sentence in one.make(*command, fails=True), command
    solo.play("disk-full.md")
    assert solo.found() == dict.fromkeys(kept, True)
    (disk / "core").unlink()


def test_corrupted_sqlite(solo: Owner) -> None:
    one = solo.stack
    one.make("backup")
    saved = solo.found()
    lost = solo.log(1)
    path = one.folder.parent / "disk" / "data" / "mlflow.db"
    one.compose("stop", "mlflow")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'runs'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with open(path, "r+b") as file:
        file.seek((page - 1) * size)
        file.write(os.urandom(size))
    run("docker", "start", one.compose("ps", "--all", "--quiet", "mlflow").strip())  # alone
    solo.play("corrupted-database.md", "## SQLite", "## PostgreSQL that answers")
    assert solo.found() == saved and not set(lost) & set(saved)


def test_lost_secret(team: Owner) -> None:
    runs = team.log(2)
    team.stack.make("backup")
    for name in ("crypto_kek_passphrase", "db_password"):
        (team.stack.folder / "secrets" / name).unlink()
    team.play("lost-secret.md")
    assert team.found() == dict.fromkeys(runs, True)
    assert "nothing is lost" in team.stack.make("lost-secrets")
    assert "password" not in team.stack.compose("logs", "postgres").replace("password authentication failed", "")


def test_store_gone(team: Owner) -> None:
    before = team.found()
    (since,) = team.log(1)
    team.stack.compose("down")
    assert run("docker", "volume", "rm", f"{team.stack.name}_mlflow-data").returncode == 0
    team.play("store-gone.md")
    assert team.found() == before | {since: False}
    team.stack.client(DELETE, since)


def test_failed_upgrade(team: Owner) -> None:
    one, extra = team.stack, team.stack.folder / "mlflow" / "requirements.extra.txt"
    before = team.found()
    extra.write_text("# Another version.\n")
    one.override({"services": {"mlflow": {"command": ["no-such-command"]}}})
    team.play("failed-upgrade.md", end="## It was cut off")
    assert team.found() == before
    extra.write_text("# Yet another version.\n")
    cut = start(one, "upgrade")
    step = one.folder / "backups" / "upgrade" / "step"
    until(lambda: step.exists() and step.read_text() == "rolling\n" or cut.poll() is not None, "it began")
    assert cut.poll() is None, cut.communicate()[0]
    os.killpg(cut.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        cut.wait(10)
    team.play("failed-upgrade.md", start="## It was cut off")
    assert team.found() == before
    extra.write_text("# Another version.\n")  # the way back: the files of before
    one.make("up")


def test_corrupted_postgresql(team: Owner) -> None:
    one = team.stack
    one.make("backup")
    saved = team.found()
    team.log(1)
    damage = """
        cd $PGDATA
        psql --username postgres --quiet --command checkpoint
        file=$(psql --username postgres --tuples-only --no-align --command "select pg_relation_filepath('runs')" mlflow)
        head -c 8192 /dev/urandom >$file"""
    one.compose("exec", "-T", "postgres", "sh", "-c", damage)
    one.compose("restart", "postgres")
    one.compose("up", "--detach", "--wait", "postgres")
    parts = ("## PostgreSQL that answers", "## PostgreSQL that does not start", "## Afterwards")
    team.play("corrupted-database.md", *parts[:2])
    assert team.found() == saved

    one.compose("exec", "-T", "postgres", "sh", "-c", "echo x >$PGDATA/global/pg_control")
    one.compose("kill", "postgres")
    team.play("corrupted-database.md", *parts[1:])
    assert team.found() == saved
    assert (one.folder / "backups" / "damaged.tar.gz").stat().st_size > 1_000_000 and len(
        sets(one.folder / "backups")
    ) > 1


def test_every_page_is_linked() -> None:
    """And every page runs in a test of this file."""
    pages = sorted(path.name for path in PAGES.glob("*.md"))
    here, readme = Path(__file__).read_text(), (ROOT / "README.md").read_text()
    assert [name for name in pages if f'"{name}"' not in here or f"docs/runbooks/{name}" not in readme] == []
