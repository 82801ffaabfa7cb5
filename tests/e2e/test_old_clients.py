"""Clients of earlier MLflow versions log to a stack of today, and read what others logged; and the other way round."""

import fcntl
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from stacks import ROOT, Stack, run, stack

CLIENTS = ("mlflow-2.22", "mlflow-3.7")  # tests/clients holds their lock files

WORDS = """
import pathlib, random, sys, tempfile
import mlflow, pandas
from mlflow import MlflowClient

MODEL = '''
import mlflow
class Doubles(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input * 2
mlflow.models.set_model(Doubles())
'''

def files(label):
    # 4 KiB, and more than goes into one piece anywhere on the way.
    return {name: random.Random(label + name).randbytes(size) for name, size in (("4k", 4096), ("5m", 5 << 20))}

def write(label):
    mlflow.set_experiment(f"by {label}")
    with mlflow.start_run(run_name=label), tempfile.TemporaryDirectory() as folder:
        mlflow.log_params({"depth": 3, "text": "größe " + label})
        mlflow.set_tag("kind", label)
        for step in range(5):
            mlflow.log_metric("loss", 1 / (step + 1), step=step)
        for name, content in files(label).items():
            path = pathlib.Path(folder, name)
            path.write_bytes(content)
            mlflow.log_artifact(str(path), "files")
        code = pathlib.Path(folder, "model.py")
        code.write_text(MODEL)
        mlflow.pyfunc.log_model(
            artifact_path="model", python_model=str(code), pip_requirements=[], registered_model_name=f"model {label}")

def read(label):
    client = MlflowClient()
    experiment = client.get_experiment_by_name(f"by {label}")
    [run] = client.search_runs([experiment.experiment_id], "metrics.loss < 0.5")
    assert run.info.run_name == label and run.info.status == "FINISHED", run.info
    assert run.data.params == {"depth": "3", "text": "größe " + label}, run.data.params
    assert run.data.tags["kind"] == label and run.data.metrics == {"loss": 0.2}, run.data
    history = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")]
    assert history == [(step, 1 / (step + 1)) for step in range(5)], history
    listed = {f.path: f.file_size for f in client.list_artifacts(run.info.run_id, "files")}
    assert listed == {f"files/{name}": len(content) for name, content in files(label).items()}, listed
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files(label).items():
            path = client.download_artifacts(run.info.run_id, f"files/{name}", folder)
            assert pathlib.Path(path).read_bytes() == content, path
    [version] = client.search_model_versions(f"name='model {label}'")
    assert version.run_id == run.info.run_id and version.status == "READY", version
    model = mlflow.pyfunc.load_model(f"models:/model {label}/{version.version}")
    answer = model.predict(pandas.DataFrame({"x": [1, 2]}))
    assert answer["x"].tolist() == [2, 4], answer

for word in sys.argv[1:]:
    action, label = word.split("=")
    {"write": write, "read": read}[action](label)
print("version", mlflow.__version__)
"""
"""A program that every version can run: `write=LABEL` and `read=LABEL`, in turn."""


def installed(name: str) -> str:
    """Install tests/clients/NAME.txt into build/clients/NAME, unless it is there; return its Python.

    One process at a time: other tests use it too.
    """
    folder, lock = ROOT / "build" / "clients" / name, ROOT / "tests" / "clients" / f"{name}.txt"
    python, stamp = str(folder / "bin" / "python"), folder / "installed"
    wanted = f"{sys.executable} {sys.version}\n{lock.read_text()}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{name}.lock"), "w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == wanted:
            return python
        for words in (
            ["venv", "--clear", "--python", sys.executable, str(folder)],
            ["pip", "install", "--python", python, "--require-hashes", "-r", str(lock)],
        ):
            done = run(sys.executable, "-m", "uv", *words)
            assert done.returncode == 0, done.stderr
        stamp.write_text(wanted)
    return python


@pytest.fixture(scope="module")
def used_today(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A team's stack, in which the client of today has logged."""
    folder: Path = tmp_path_factory.mktemp("old-clients")
    with stack(folder, "old-clients", {"purpose": "team"}) as made:
        made.up()
        assert made.client(WORDS, "write=today", "read=today").split()[-1] == mlflow.__version__
        yield made


@pytest.mark.parametrize("name", CLIENTS)
def test_an_old_client(used_today: Stack, name: str) -> None:
    used = used_today.client(WORDS, f"write={name}", f"read={name}", "read=today", python=installed(name))
    assert used.split()[-1].startswith(name.removeprefix("mlflow-"))
    used_today.client(WORDS, f"read={name}")
    assert used_today.fence_log() == [], "all of it went through the stack's one door"
