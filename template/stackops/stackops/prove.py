"""Reads what is in the running server back through its API, as a client does.

Creates and deletes an experiment, reads the history of a metric, downloads an artifact: after a move, an
upgrade or a restore this is the proof that old runs are whole and new ones can be made.
"""

import argparse
import logging
import os
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

from stackops import check, settings
from stackops.errors import StackError, one_line

HELP = "read old runs and artifacts back through the API of the running server"
RUNS = 50  # of the newest runs, to find one with metrics and one with artifacts


def arguments(parser: argparse.ArgumentParser) -> None:
    """This command has no options: the environment has them all."""


def run(args: argparse.Namespace) -> None:
    """Do the three steps. Raises StackError at the first that fails."""
    env = settings.adopt()
    os.environ.update(check.QUIET)
    os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{settings.port(env)}"
    if settings.accounts(env):
        os.environ["MLFLOW_TRACKING_USERNAME"] = "admin"
        os.environ["MLFLOW_TRACKING_PASSWORD"] = settings.secrets(env).need("admin_password")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with check.deadline(check.LIMIT):
        for line in prove():
            print(line, flush=True)


def prove() -> Iterator[str]:
    """Yield what was proved, line by line. Raises StackError."""
    from mlflow import MlflowClient
    from mlflow.entities import ViewType
    from mlflow.exceptions import MlflowException

    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    try:
        experiment = client.create_experiment(f"prove-{uuid.uuid4().hex[:12]}")
        client.delete_experiment(experiment)
        yield "proved: an experiment can be created and deleted"
        experiments = [
            e.experiment_id for e in client.search_experiments(ViewType.ACTIVE_ONLY, max_results=1000)
        ]
        runs = client.search_runs(experiments, max_results=RUNS, order_by=["attributes.start_time DESC"])
        yield _history(client, runs)
    except MlflowException as error:
        raise StackError(f"the server cannot do it: {one_line(error)}; see make logs") from None
    yield _artifact(client, runs)


def _history(client, runs) -> str:
    """Read one metric's whole history; its last value must be the run's."""
    for run in runs:
        for key, value in run.data.metrics.items():
            history = client.get_metric_history(run.info.run_id, key)
            if not any(point.value == value or value != value for point in history):
                raise StackError(
                    f"the history of {key} in run {run.info.run_id} lacks the run's own value {value}"
                )
            return f"proved: run {run.info.run_id} has its metrics ({key}: {len(history)} values)"
    return "proved: no run has metrics to read" if runs else "proved: there is no run to read"


def _artifact(client, runs) -> str:
    """Download the first file that any of the runs has and the server can reach."""
    refusal = ""
    for run in runs:
        try:
            if path := _first_file(client, run.info.run_id):
                with tempfile.TemporaryDirectory() as folder:
                    size = Path(client.download_artifacts(run.info.run_id, path, folder)).stat().st_size
                return f"proved: artifact {path} of run {run.info.run_id} ({size:,} bytes)"
        except Exception as error:  # whatever the store's own client raises
            refusal = refusal or f"{run.info.artifact_uri}: {one_line(error, 160)}"
    if refusal:
        return f"not proved: artifacts of old runs cannot be read here ({refusal})"
    return f"not proved: none of the {len(runs)} newest runs has an artifact here"


def _first_file(client, run_id: str) -> str | None:
    """Return the path of a file of the run, looking at most three folders deep."""
    folders = [None]
    for _ in range(3):
        found = [entry for folder in folders for entry in client.list_artifacts(run_id, folder)]
        if files := [entry.path for entry in found if not entry.is_dir]:
            return files[0]
        folders = [entry.path for entry in found[:5]]
    return None
