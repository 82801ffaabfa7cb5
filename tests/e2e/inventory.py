"""Everything that a client of MLflow can load from its server: prints it as JSON, with a checksum for each file.

No id of an experiment and no location is in it: those may change when an MLflow moves.
"""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import ViewType

client = MlflowClient()


def answer(uri: str) -> str:
    """Load a model and ask it something."""
    return str(mlflow.pyfunc.load_model(uri).predict([1, 2]))


def files(**where: str) -> dict[str, str]:
    """Return path -> checksum of the files below a run's or another artifact location; {} where there are none."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with contextlib.suppress(Exception):  # whatever a store says of what is not there; the comparison tells
            root = Path(mlflow.artifacts.download_artifacts(dst_path=folder, **where))
        return {
            path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }


def runs(experiment: str) -> Iterator[tuple[str, Any]]:
    """Yield every run of an experiment, deleted ones too, with the history of each metric and its files."""
    for run in client.search_runs([experiment], run_view_type=ViewType.ALL, max_results=5000):
        id = run.info.run_id
        history = {key: client.get_metric_history(id, key) for key in run.data.metrics}
        yield (
            id,
            {
                "name": run.info.run_name,
                "status": [run.info.status, run.info.lifecycle_stage, run.info.start_time, run.info.end_time],
                "params": run.data.params,
                "tags": {key: value for key, value in run.data.tags.items() if "mlruns" not in value},
                "metrics": {key: [[m.step, m.timestamp, repr(m.value)] for m in history[key]] for key in history},
                "files": files(run_id=id),
            },
        )


def models(experiment: str) -> Iterator[tuple[str, Any]]:
    """Yield every logged model of an experiment, with its files; each is loaded and called."""
    for model in client.search_logged_models([experiment], max_results=50):
        uri = f"models:/{model.model_id}"
        found = {"name": model.name, "params": model.params, "answer": answer(uri), "files": files(artifact_uri=uri)}
        yield model.model_id, found


def traces(experiment: str) -> Iterator[tuple[str, Any]]:
    """Yield every trace of an experiment, with its spans and its attachments."""
    for found in client.search_traces(locations=[experiment], max_results=500):
        trace = client.get_trace(found.info.trace_id)
        spans = [[span.name, span.start_time_ns, str(span.inputs), str(span.outputs)] for span in trace.data.spans]
        assert spans, found.info.trace_id
        yield (
            found.info.trace_id,
            {"spans": spans, "files": files(artifact_uri=trace.info.tags["mlflow.artifactLocation"])},
        )


def registry() -> Iterator[tuple[str, Any]]:
    """Yield every version of every registered model; each is loaded and called."""
    for version in client.search_model_versions():
        uri = f"models:/{version.name}/{version.version}"
        yield uri, {"run": version.run_id, "tags": version.tags, "answer": answer(uri)}


def main() -> None:
    """Print it."""
    found: dict[str, Any] = {"registry": dict(registry())}
    for experiment in client.search_experiments(ViewType.ALL):
        if experiment.name.startswith("prove-"):  # make migrate makes and deletes one
            continue
        found[experiment.name] = {
            "stage": experiment.lifecycle_stage,
            "tags": experiment.tags,
            "runs": dict(runs(experiment.experiment_id)),
            "models": dict(models(experiment.experiment_id)),
            "traces": dict(traces(experiment.experiment_id)),
        }
    print(json.dumps(found, sort_keys=True))


main()
