"""Uses an MLflow of whatever version runs this, as people do, with the store in a database.

    python used.py sqlite:////path/to/mlflow.db /laptop/mlruns

Runs with histories, tags, models and a registry; traces, and from 3.0 on logged models and assessments; some of it
deleted. Artifacts go under the working directory; the experiment's location is what the second word says.
"""

import math
import pathlib
import sys

import mlflow
import pandas
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

NEW = int(mlflow.__version__.split(".")[0]) >= 3
MODEL = """
import mlflow
class Doubles(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input * 2
mlflow.models.set_model(Doubles())
"""


@mlflow.trace
def asked(question: str) -> str:
    with mlflow.start_span("inner") as span:
        span.set_attributes({"é": "\\N", "tokens": 3})
    return question[::-1]


def runs(client: MlflowClient, experiment: str) -> None:
    """Log runs, one of them deleted, one nested, one with a data set and a registered model."""
    for number in range(4):
        run = client.create_run(experiment, run_name=f"run {number} é", tags={"group": str(number % 2)})
        numbers = [0.5, math.nan, math.inf, -math.inf, -0.0, 5e-324, 1 / 3]
        metrics = [Metric("loss", value, 1700000000000 + step, step - 2) for step, value in enumerate(numbers)]
        metrics += [Metric("accuracy/top 1", step / 7, 1700000000000 + step, step) for step in range(300)]
        client.log_batch(run.info.run_id, metrics, [Param("p", r"\N"), Param("long", "z" * 5000)], [RunTag("t", "")])
        client.set_terminated(run.info.run_id, "FAILED" if number == 1 else "FINISHED")
        if number == 3:
            client.delete_run(run.info.run_id)
    with mlflow.start_run(run_name="with a model"):
        mlflow.log_input(mlflow.data.from_pandas(pandas.DataFrame({"a": [1.5]}), name="frame"), context="training")
        mlflow.log_metric("loss", 0.25)
        code = pathlib.Path("model.py")
        code.write_text(MODEL)
        for _ in range(2):
            mlflow.pyfunc.log_model(
                artifact_path="model", python_model=str(code), pip_requirements=[], registered_model_name="registered"
            )
        with mlflow.start_run(nested=True, run_name="nested"):
            mlflow.log_text("hello", "greeting.txt")
    client.set_registered_model_alias("registered", "best", "1")
    client.set_registered_model_tag("registered", "k", "v\n")
    client.set_model_version_tag("registered", "2", "k", "ü")
    client.create_registered_model("gone")
    client.delete_registered_model("gone")


def traces(client: MlflowClient) -> None:
    """Log traces; and what only the newer versions have."""
    for number in range(5):
        asked(f"question {number} \\ é")
    if not NEW:
        return
    mlflow.flush_trace_async_logging()
    trace = mlflow.get_last_active_trace_id()
    mlflow.log_feedback(trace_id=trace, name="right", value=True, rationale="because \\N")
    mlflow.log_expectation(trace_id=trace, name="answer", value={"a": [1, None]})
    model = mlflow.create_external_model(name="outside", params={"p": "1"}, tags={"t": "\t"})
    mlflow.log_metric("quality", 0.5, model_id=model.model_id)


def main(uri: str, location: str) -> None:
    """Fill the store."""
    mlflow.set_tracking_uri(uri)
    client = MlflowClient()
    experiment = client.create_experiment("used \t é", artifact_location=location, tags={"k": "v"})
    mlflow.set_experiment(experiment_id=experiment)
    runs(client, experiment)
    traces(client)
    client.delete_experiment(client.create_experiment("deleted", artifact_location=location))
    if NEW:
        from mlflow.genai.datasets import create_dataset

        records = [{"inputs": {"q": "é"}, "expectations": {"a": 1e300}}, {"inputs": {"q": "\\N"}}]
        create_dataset(name="questions", experiment_id=[experiment]).merge_records(records)
    print("version", mlflow.__version__)


if __name__ == "__main__":
    main(*sys.argv[1:])
