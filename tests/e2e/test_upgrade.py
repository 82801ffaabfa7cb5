"""`make upgrade` from the MLflow of before, with data: it succeeds, or all is as it was, and it says so."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stacks import PREFIX, ROOT, Stack, run, stack

pytestmark = pytest.mark.docker

NAMES = ("mlflow", "mlflow-skinny", "mlflow-tracing")
BASE = Path("mlflow", "requirements", "base.txt")


def entries(lock: str) -> dict[str, str]:
    """Return MLflow's own entries of a lock file, by name."""
    found = {name: re.search(rf"(?m)^{name}==.*(?:\n[ \t].*)*", lock) for name in NAMES}
    return {name: match[0] for name, match in found.items() if match}


def make_older(one: Stack) -> str:
    """Let the stack's files ask for the MLflow of before, and return what they asked for. Its image keeps one name."""
    today = (one.folder / BASE).read_text()
    then, text = entries((ROOT / "tests" / "clients" / "mlflow-3.16.txt").read_text()), today
    for name, entry in entries(today).items():
        text = text.replace(entry, then[name])
    assert text != today
    (one.folder / BASE).write_text(text)
    one.setting("MLFLOW_IMAGE", f"{one.name}-image")
    return today


WRITE = """
import mlflow, sys
mlflow.set_experiment(sys.argv[1])
for number in range(5):
    with mlflow.start_run(run_name=str(number)):
        mlflow.log_param("number", number)
        mlflow.log_metric("value", number / 7)
        mlflow.log_text("text " * 1000, "text.txt")
"""
READ = """
import mlflow, sys
client = mlflow.MlflowClient()
found = client.get_experiment_by_name(sys.argv[1])
runs = client.search_runs([found.experiment_id]) if found else []
for run in runs:
    assert run.data.metrics["value"] == int(run.data.params["number"]) / 7
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/text.txt") == "text " * 1000
print(len(runs))
"""


def has(one: Stack, name: str = "first") -> bool:
    """Whether the five runs are there, whole."""
    return one.client(READ, name).split()[-1] == "5"


def version(one: Stack) -> str:
    """Return the version of the server that runs."""
    code = "from importlib.metadata import version; print(version('mlflow'))"
    return one.compose("exec", "-T", "mlflow", "python", "-c", code).strip()


def errors(said: str) -> list[str]:
    """Return the sentences with which a command ends."""
    return [line for line in said.splitlines() if line.startswith(("upgrade: error:", "up: error:"))]
