"""What a user did with a stack: runs with files, models and traces, written and read by the stock client.

File names have no `#`, `?` and `%`: MLflow's client loses them on the way through a server.
"""

import json
from typing import Any

from stacks import Stack

WRITE = """
import json, os, sys, tempfile
import mlflow
from mlflow import MlflowClient
from mlflow.tracing.attachments import Attachment

class Doubler(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: list[int], params=None) -> list[int]:
        return [2 * value for value in model_input]

@mlflow.trace
def ask(picture):
    return "answer of " + label

label, older = sys.argv[1], json.loads(sys.argv[2])
written = {"label": label, "runs": []}
mlflow.set_experiment(label)
written["experiment"] = mlflow.get_experiment_by_name(label).experiment_id
# A new run in an experiment of its own, and one in each of the older ones.
for experiment in [written["experiment"], *older]:
    with mlflow.start_run(experiment_id=experiment) as run, tempfile.TemporaryDirectory() as folder:
        for name, size in {"small.txt": 20, "empty": 0, "big.bin": 12_000_000}.items():
            with open(f"{folder}/{name}", "wb") as file:
                file.write((label.encode() * (size // len(label) + 1))[:size])
        os.makedirs(f"{folder}/with space/é")
        with open(f"{folder}/with space/é/ü+&=🦜.txt", "w") as file:
            file.write(label)
        mlflow.log_artifacts(folder, "files")
        mlflow.log_metric("loss", 0.5)
        written["runs"].append(run.info.run_id)
mlflow.set_experiment(experiment_id=written["experiment"])
with mlflow.start_run():
    model = mlflow.pyfunc.log_model(
        name="model", python_model=Doubler(), pip_requirements=[], registered_model_name=label)
written["model"], written["version"] = model.model_id, str(model.registered_model_version)
ask(Attachment(content_type="image/png", content_bytes=label.encode()))
mlflow.flush_trace_async_logging()
written["trace"] = mlflow.get_last_active_trace_id()
print(json.dumps(written))
"""

READ = """
import json, pathlib, sys, tempfile
import mlflow
from mlflow import MlflowClient

client = MlflowClient()
for written in json.loads(sys.argv[1]):
    label = written["label"]
    for run in written["runs"]:
        with tempfile.TemporaryDirectory() as folder:
            found = mlflow.artifacts.download_artifacts(run_id=run, artifact_path="files", dst_path=folder)
            found = pathlib.Path(found)
            sizes = {str(p.relative_to(found)): p.stat().st_size for p in found.rglob("*") if p.is_file()}
            other = "with space/é/ü+&=🦜.txt"
            assert sizes == {"small.txt": 20, "empty": 0, "big.bin": 12_000_000, other: len(label)}, sizes
            for name, size in sizes.items():
                expected = (label.encode() * (size // len(label) + 1))[:size]
                assert (found / name).read_bytes() == expected, (run, name)
        assert client.get_run(run).data.metrics == {"loss": 0.5}
    for uri in (f"models:/{label}/{written['version']}", f"models:/{written['model']}"):
        assert mlflow.pyfunc.load_model(uri).predict([1, 2]) == [2, 4], uri
    trace = client.get_trace(written["trace"])
    assert trace.data.response == json.dumps("answer of " + label), trace.data.response
    with tempfile.TemporaryDirectory() as folder:
        place = trace.info.tags["mlflow.artifactLocation"]
        found = pathlib.Path(mlflow.artifacts.download_artifacts(artifact_uri=place, dst_path=folder))
        assert [path.read_text() for path in (found / "attachments").iterdir()] == [label], place
    print("read", label)
"""


class History:
    """What was written so far, and how the stock client gets at it: `access` is passed on to `Stack.client`."""

    def __init__(self, stack: Stack):
        self.stack = stack
        self.written: list[dict[str, Any]] = []

    def write(self, label: str, **access: Any) -> dict[str, Any]:
        """Log a run with files in a new experiment and in each older one, a registered model, and a trace."""
        older = json.dumps([one["experiment"] for one in self.written])
        self.written.append(json.loads(self.stack.client(WRITE, label, older, **access).splitlines()[-1]))
        return self.written[-1]

    def read(self, **access: Any) -> None:
        """Read everything that was ever written, and compare; the client saw only its doors."""
        read = self.stack.client(READ, json.dumps(self.written), **access)
        assert read.splitlines() == [f"read {one['label']}" for one in self.written]
        assert self.stack.fence_log() == []
