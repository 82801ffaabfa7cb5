"""`make gc`: killed at work, finished by the next run; what lives still loads."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
from history import History
from stacks import Stack, run, stack

pytestmark = pytest.mark.docker

RUNS = 600
# Logs and deletes runs with a file each, and an experiment that somebody else may read.
DELETED = """
import sys
import mlflow
from mlflow import MlflowClient
client = MlflowClient()
experiment = client.create_experiment("trash")
for number in range(5):
    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.log_text("x" * 1000, "note.txt")
client.delete_experiment(experiment)
print(experiment)
client.create_experiment("a later one")
"""
# Many more runs, by the server's own tables and folder: through the client they would take minutes.
MANY = """
import sys, uuid, pathlib
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from stackops import settings
env = settings.adopt()
store = SqlAlchemyStore(settings.backend(env).uri(env), "mlflow-artifacts:/")
experiment = store.create_experiment("many")
for number in range(int(sys.argv[1])):
    run = store.create_run(experiment, "u", 1, [], "r").info
    folder = pathlib.Path("/data/artifacts", run.artifact_uri.removeprefix("mlflow-artifacts:/"))
    folder.mkdir(parents=True)
    for name in "abc":
        (folder / name).write_text(name)
    store.delete_run(run.run_id)
orphan = pathlib.Path("/data/artifacts/1", uuid.uuid4().hex, "artifacts/lost")
orphan.parent.mkdir(parents=True)
orphan.write_text("x")
import os
os.utime(orphan, (1e9, 1e9))
"""
LEFT = """
import json, pathlib, sqlite3
query = "SELECT count(*) FROM runs WHERE lifecycle_stage = 'deleted'"
(runs,) = sqlite3.connect("/data/mlflow.db").execute(query).fetchone()
files = [str(p) for p in pathlib.Path("/data/artifacts").rglob("*") if p.is_file()]
rights = sqlite3.connect("/data/auth.db").execute("SELECT resource_pattern FROM role_permissions").fetchall()
print(json.dumps([runs, len(files), [one[0] for one in rights]]))
"""


def inside(one: Stack, script: str, *arguments: str) -> str:
    """Run a Python program in the server's container and return what it prints."""
    return one.compose("exec", "-T", "mlflow", "python", "-c", script, *arguments).strip()


def test_killed_and_finished(tmp_path: Path) -> None:
    """kill -9 in the middle; the next run removes the rest, and a look in between changes nothing."""
    answers = {"purpose": "solo", "auth": "mlflow"}
    with stack(tmp_path, "gc", answers) as one:
        one.up()
        history = History(one)
        history.write("kept")
        trash = one.client(DELETED).split()[0]
        one.make("user-add", "NAME=ann", input="a long password\n")
        one.make("grant", "USER=ann", "EXPERIMENT=kept", "PERMISSION=READ")
        inside(one, MANY, str(RUNS))
        _, before, _ = json.loads(inside(one, LEFT))

        for word, said in (("OLDER_THAN=soon", "OLDER_THAN is 'soon'"), ("ORPHANS=maybe", "ORPHANS is 'maybe'")):
            text = one.make("gc", word, fails=True)
            assert text.count("error:") == 1 + text.count("make:") - text.count("make: ***") and said in text
        look = one.make("gc", "OLDER_THAN=0m")
        assert re.search(rf"^runs +{RUNS + 5} ", look, re.MULTILINE) and "nothing was removed" in look
        assert json.loads(inside(one, LEFT))[:2] == [RUNS + 5, before]

        command = ["make", "gc", "OLDER_THAN=0m", "APPLY=1"]
        started = subprocess.Popen(command, cwd=one.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while json.loads(inside(one, LEFT))[0] == RUNS + 5:
            assert started.poll() is None, "it ended before it was killed"
            time.sleep(0.05)
        names = run("docker", "ps", "--format", "{{.Names}}", "--filter", f"name={one.name}-mlflow-run").stdout
        run("docker", "kill", "--signal", "KILL", *names.split())
        assert started.wait() != 0
        history.read()
        said = one.make("gc", "OLDER_THAN=0m", "APPLY=1")
        assert re.search(r"^removed: .*runs.*1 experiments", said, re.MULTILINE), said
        runs, files, rights = json.loads(inside(one, LEFT))
        assert (runs, files) == (0, before - 3 * RUNS - 5) and trash not in rights
        again = one.make("gc", "OLDER_THAN=0m", "APPLY=1")
        assert "removed: no rows; 0 files" in again
        assert "removed: no rows; 1 files" in one.make("gc", "OLDER_THAN=0m", "ORPHANS=1", "APPLY=1")
        history.read()
        one.make("check")
