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
# Brings a deleted run back, if it is still there, and says how it ended and what it has.
RESTORE = """
import sys, pathlib
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from stackops import settings
env = settings.adopt()
store = SqlAlchemyStore(settings.backend(env).uri(env), "mlflow-artifacts:/")
try:
    store.restore_run(sys.argv[1])
except MlflowException as error:
    print(error.error_code)
else:
    print("restored")
"""
WHOLE = """
import json, pathlib, sqlite3, sys
rows = sqlite3.connect("/data/mlflow.db").execute("SELECT lifecycle_stage FROM runs WHERE run_uuid = ?", sys.argv[1:])
files = [p.name for p in pathlib.Path("/data/artifacts").glob(f"*/{sys.argv[1]}/artifacts/*")]
print(json.dumps([[stage for (stage,) in rows], sorted(files)]))
"""
LEFT = """
import json, pathlib, sqlite3
query = "SELECT run_uuid FROM runs WHERE lifecycle_stage = 'deleted' ORDER BY 1"
runs = [one[0] for one in sqlite3.connect("/data/mlflow.db").execute(query)]
files = [str(p) for p in pathlib.Path("/data/artifacts").rglob("*") if p.is_file()]
rights = sqlite3.connect("/data/auth.db").execute("SELECT resource_pattern FROM role_permissions").fetchall()
print(json.dumps([runs, len(files), [one[0] for one in rights]]))
"""


def inside(one: Stack, script: str, *arguments: str) -> str:
    """Run a Python program in the server's container and return what it prints."""
    return one.compose("exec", "-T", "mlflow", "python", "-c", script, *arguments).strip()


def left(one: Stack) -> tuple[list[str], int, list[str]]:
    """Return the deleted runs, the number of files, and the experiments for which somebody has a permission."""
    return json.loads(inside(one, LEFT))


def test_killed_and_finished(tmp_path: Path) -> None:
    """kill -9 in the middle; what was restored then and later stays; a second one beside it is refused."""
    answers = {"purpose": "solo", "auth": "mlflow"}
    with stack(tmp_path, "gc", answers) as one:
        one.up()
        history = History(one)
        history.write("kept")
        one.make("user-add", "NAME=ann", input="a long password\n")
        ann = {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "a long password"}
        trash = one.client(DELETED, **ann).split()[-1]
        one.make("grant", "USER=ann", "EXPERIMENT=kept", "PERMISSION=READ")
        inside(one, MANY, str(RUNS))
        _, before, rights = left(one)
        assert trash in rights, "who makes an experiment may do everything with it"

        for word, said in (("OLDER_THAN=soon", "OLDER_THAN is 'soon'"), ("ORPHANS=maybe", "ORPHANS is 'maybe'")):
            text = one.make("gc", word, fails=True)
            assert text.count("error:") == 1 + text.count("make:") - text.count("make: ***") and said in text
        look = one.make("gc", "OLDER_THAN=0m")
        assert re.search(rf"^runs +{RUNS + 5} ", look, re.MULTILINE) and "nothing was removed" in look
        runs, files, _ = left(one)
        assert (len(runs), files) == (RUNS + 5, before)

        command = ["make", "gc", "OLDER_THAN=0m", "APPLY=1"]
        started = subprocess.Popen(command, cwd=one.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (one.folder / ".stack.lock").is_symlink():
            time.sleep(0.01)
        assert re.search(r"error: 'make gc' \(process \d+\) is at work", one.make("gc", "APPLY=1", fails=True))
        while len(left(one)[0]) == RUNS + 5:
            assert started.poll() is None, "it ended before it was killed"
            time.sleep(0.05)
        names = run("docker", "ps", "--format", "{{.Names}}", "--filter", f"name={one.name}-mlflow-run").stdout
        run("docker", "kill", "--signal", "KILL", *names.split())
        assert started.wait() != 0
        history.read()
        first, *_, last = (run for run in left(one)[0] if json.loads(inside(one, WHOLE, run))[1] == ["a", "b", "c"])
        assert inside(one, RESTORE, first) == "restored"
        started = subprocess.Popen(command, cwd=one.folder, stdout=subprocess.PIPE, text=True)
        said = ""
        while "looking through the store" not in said:
            said += started.stdout.readline()
        # Now it has decided, and may be faster or slower than this.
        came_back = inside(one, RESTORE, last) == "restored"
        said += started.communicate(timeout=300)[0]
        assert started.returncode == 0 and re.search(r"^removed: .*runs.*1 experiments", said, re.MULTILINE), said
        assert json.loads(inside(one, WHOLE, first)) == [["active"], ["a", "b", "c"]]
        assert json.loads(inside(one, WHOLE, last)) == ([["active"], ["a", "b", "c"]] if came_back else [[], []])
        runs, files, rights = left(one)
        assert (runs, files) == ([], before - 3 * (RUNS - 1 - came_back) - 5) and trash not in rights
        again = one.make("gc", "OLDER_THAN=0m", "APPLY=1")
        assert "removed: no rows; 0 files" in again
        assert "removed: no rows; 1 files" in one.make("gc", "OLDER_THAN=0m", "ORPHANS=1", "APPLY=1")
        history.read()
        one.make("check")
