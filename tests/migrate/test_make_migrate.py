"""`make migrate` in a rendered stack, as the README prints it: from a laptop's file and folder, with both engines."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import moving
import needs
import pexpect
import pytest

sys.path.insert(0, str(moving.ROOT / "tests" / "e2e"))
from stacks import Stack, stack  # noqa: E402

LAPTOP = """
import mlflow, sys
mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_experiment("from the laptop")
with mlflow.start_run(run_name="old"):
    for step in range(20):
        mlflow.log_metric("loss", 1 / (step + 1), step=step)
    mlflow.log_param("depth", 3)
    mlflow.log_text("hello", "greeting.txt")
"""
READ = """
import mlflow
runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
(run,) = [run for run in runs if run.info.run_name == "old"]
history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
print(len(history), run.data.params["depth"], mlflow.artifacts.load_text(run.info.artifact_uri + "/greeting.txt"))
mlflow.set_experiment("from the laptop")
with mlflow.start_run():
    mlflow.log_text("new", "new.txt")
mlflow.set_experiment("new here")
"""


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with PostgreSQL and artifacts on its own disk, running."""
    needs.engine()
    answers = {"backend": "postgres", "artifact_store": "local", "artifact_access": "proxied"}
    with stack(tmp_path_factory.mktemp("stack"), "d-migrate", answers) as made:
        made.up()
        yield made


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with mlflow.db, and its artifacts in mlruns."""
    folder = tmp_path_factory.mktemp("laptop")
    folder.chmod(0o755)  # the stack runs as another user than the tests may
    done = moving.run(sys.executable, "-c", LAPTOP, "sqlite:///mlflow.db", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def rows(team: Stack, statement: str) -> str:
    """Ask the stack's database."""
    return team.compose("exec", "-T", "postgres", "psql", "-U", "postgres", "-d", "mlflow", "-Atc", statement).strip()


def bring_artifacts(team: Stack, mlruns: Path) -> None:
    """Put the laptop's artifacts where the server keeps its own."""
    team.compose("cp", f"{mlruns}/.", "mlflow:/data/artifacts/")
    owner = f"{team.settings()['STACK_UID']}:{team.settings()['STACK_GID']}"
    moving.run(
        "docker", "run", "--rm", "--name", "mlflow-stack-test-d-chown", "--user", "0", "--volume",
        f"{team.name}_mlflow-data:/data", "--entrypoint", "chown", moving.IMAGE, "-R", owner, "/data", check=True,
    )  # fmt: skip


def test_from_a_laptop_to_the_team(team, laptop):
    source, mapping = laptop / "mlflow.db", f"ARTIFACTS={laptop}/mlruns=mlflow-artifacts:"
    before = source.read_bytes()
    said = team.make("migrate-check", f"FROM={source}", mapping)
    assert (
        "in the way: nothing" in said and f"{laptop}/mlruns -> mlflow-artifacts:/" in said and "target: empty" in said
    )
    shown, code = pexpect.run(  # at a terminal
        f"make migrate-check FROM={source}", cwd=str(team.folder), withexitstatus=True, timeout=300, encoding="utf-8"
    )
    assert code == 0 and "target: empty" in shown, shown
    assert json.loads(team.make("migrate-check", f"FROM={source}", "JSON=1"))["ok"] is True
    assert rows(team, "SELECT count(*) FROM runs") == "0"

    bring_artifacts(team, laptop / "mlruns")
    said = team.make("migrate", f"FROM={source}", mapping)
    assert "64 tables, count and checksum of every one equal on both sides" in said
    assert "proved: an experiment can be created and deleted" in said
    assert "(loss: 20 values)" in said and "proved: artifact greeting.txt" in said
    assert source.read_bytes() == before
    assert team.client(READ).splitlines()[0] == "20 3 hello"


def test_a_source_that_the_stack_may_not_read(team, tmp_path):
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    (private / "mlflow.db").write_bytes(b"x")
    if team.settings()["STACK_UID"] != str(private.stat().st_uid):
        said = team.make("migrate-check", f"FROM={private}/mlflow.db", fails=True)
        assert f"{private}/mlflow.db cannot be read: Permission denied" in said


def test_with_rows_there_it_is_refused_and_the_stack_runs_on(team, laptop):
    said = team.make("migrate", f"FROM={laptop}/mlflow.db", fails=True)
    assert "REPLACE=1" in said
    team.make("status")


def test_pgloader_replaces_them_and_the_backup_brings_them_back(team, laptop):
    experiments = rows(team, "SELECT count(*) FROM experiments")
    mapping = f"ARTIFACTS={laptop}/mlruns=mlflow-artifacts:"
    said = team.make("migrate", f"FROM={laptop}/mlflow.db", mapping, "ENGINE=pgloader", "REPLACE=1")
    assert "64 tables, count and checksum of every one equal on both sides" in said and "(loss: 20 values)" in said
    assert rows(team, "SELECT count(*) FROM pg_constraint WHERE contype = 'f'") == "57"
    assert rows(team, "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'mlflow%'") == "0"
    assert team.client(READ).splitlines()[0] == "20 3 hello"
    (backup,) = (team.folder / "backups").glob("before-migrate-*")
    team.make("migrate", f"FROM=backups/{backup.name}", "REPLACE=1")
    # `make migrate` itself proved the result with an experiment that it deleted.
    assert rows(team, "SELECT count(*) FROM experiments") == str(int(experiments) + 1)


def test_what_pgloader_loses_is_said_and_undone(team, laptop, tmp_path):
    store = moving.copy(
        laptop / "mlflow.db", tmp_path, "INSERT INTO metrics SELECT 'inf', 9e999, 1, run_uuid, 0, 0 FROM runs"
    )
    tmp_path.chmod(0o755)
    before = rows(team, "SELECT count(*) FROM metrics")
    said = team.make("migrate", f"FROM={store}", "ENGINE=pgloader", "REPLACE=1", fails=True)
    assert "source and target differ: metrics has" in said and "backups/pgloader.log" in said
    assert rows(team, "SELECT count(*) FROM metrics") == before
    assert rows(team, "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'mlflow%'") == "0"
    team.make("status")


def test_after_kill_9_make_up_brings_the_server_back(team, laptop):
    runs = rows(team, "SELECT count(*) FROM runs")
    process = subprocess.Popen(
        ["make", "migrate", f"FROM={laptop}/mlflow.db", "REPLACE=1"], cwd=team.folder, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and team.compose("ps", "--status", "running", "--quiet", "mlflow").strip():
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was over too soon"
    assert not team.compose("ps", "--status", "running", "--quiet", "mlflow").strip()
    team.make("up")
    team.make("check")
    assert int(rows(team, "SELECT count(*) FROM runs")) >= int(runs)


def test_a_password_from_a_passfile(team, tmp_path):
    """The check only: what it reads is this very database."""
    passfile = tmp_path / "pgpass"
    address = "FROM=postgresql+psycopg2://mlflow@postgres:5432/mlflow"
    password = team.secret("db_password").replace("\\", "\\\\").replace(":", "\\:")
    passfile.write_text(f"elsewhere:5432:*:mlflow:wrong\npostgres:5432:mlflow:mlflow:{password}\n")
    said = team.make("migrate-check", address, "REPLACE=1", env={"PGPASSFILE": str(passfile)})
    assert "PostgreSQL, schema" in said
    passfile.write_text(f"elsewhere:5432:*:mlflow:{password}\n")
    said = team.make("migrate-check", address, "REPLACE=1", env={"PGPASSFILE": str(passfile)}, fails=True)
    assert "no password supplied" in said and password not in said
    assert "cannot be read" in team.make("migrate-check", address, env={"PGPASSFILE": "/nowhere"}, fails=True)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "say what to move"),
        (["FROM=/nowhere/mlflow.db"], "there is no"),
        (["FROM=/tmp", "ENGINE=magic"], "copy and pgloader"),
    ],
    ids=["nothing", "nowhere", "engine"],
)
def test_words_that_mean_nothing(team, words, reason):
    assert reason in team.make("migrate", *words, fails=True)
