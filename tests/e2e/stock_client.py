"""What a user does with MLflow's own client, in one process: stacks.py runs this text from outside a stack.

stock_client.py write         does every step below; prints one line of JSON: {step: its error or null}, and the run
stock_client.py read RUN TRACE  reads that run, its artifact, its model and its trace back
"""

import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

import mlflow
import requests
from mlflow import MlflowClient

URL = os.environ["MLFLOW_TRACKING_URI"]
NAME = "from-outside"
BYTES = bytes(range(256)) * 16  # 4 KiB
LOGIN = (
    (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"])
    if "MLFLOW_TRACKING_USERNAME" in os.environ
    else None
)
client = MlflowClient()
known: dict[str, str] = {}  # what later steps need of earlier ones


def ask(method: str, path: str, **more) -> requests.Response:
    """Send one request to the stack, signed in; it must be answered with 200."""
    # requests does not read the variable that makes MLflow's client trust a certificate.
    trusted = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True
    answer = requests.request(method, URL + path, auth=LOGIN, timeout=30, verify=trusted, **more)
    assert answer.status_code == 200, f"{method} {path}: {answer.status_code} {answer.text[:300]}"
    return answer


class Double(mlflow.pyfunc.PythonModel):
    """The smallest model."""

    def predict(self, context, model_input, params=None):
        return [2 * number for number in model_input]


def artifacts() -> None:
    """A run with an artifact of 4 KiB: up, listed, down."""
    mlflow.set_experiment(NAME)
    with mlflow.start_run() as run, tempfile.TemporaryDirectory() as folder:
        known["run"] = run.info.run_id
        mlflow.log_param("depth", 3)
        mlflow.log_metrics({"loss": 0.25})
        path = Path(folder) / "4k.bin"
        path.write_bytes(BYTES)
        mlflow.log_artifact(str(path), "folder")
    read_artifact(known["run"])


def read_artifact(run: str) -> None:
    """The artifact of a run is listed with its size and comes back byte for byte."""
    assert client.get_run(run).data.metrics == {"loss": 0.25}
    listed = [(file.path, file.file_size) for file in client.list_artifacts(run, "folder")]
    assert listed == [("folder/4k.bin", len(BYTES))], listed
    with tempfile.TemporaryDirectory() as folder:
        assert Path(client.download_artifacts(run, "folder/4k.bin", folder)).read_bytes() == BYTES


def registry() -> None:
    """A registered model: logged, registered, loaded, called."""
    with mlflow.start_run(run_id=known["run"]):
        mlflow.pyfunc.log_model(
            name="model", python_model=Double(), registered_model_name=NAME, pip_requirements=["mlflow"]
        )
    read_model()


def read_model() -> None:
    """The registered model loads and works."""
    assert mlflow.pyfunc.load_model(f"models:/{NAME}/1").predict([1, 2, 3]) == [2, 4, 6]


def traces() -> None:
    """A trace of two spans by MLflow's own tracing."""
    mlflow.set_experiment(NAME)
    with mlflow.start_span("question") as span:
        span.set_inputs({"text": "why?"})
        with mlflow.start_span("answer"):
            pass
    mlflow.flush_trace_async_logging()
    known["trace"] = span.trace_id
    read_trace(known["trace"])


def read_trace(trace: str) -> None:
    """The trace has both spans and what went in."""
    found = mlflow.get_trace(trace)
    assert sorted(span.name for span in found.data.spans) == ["answer", "question"], found
    assert found.data.spans[0].inputs == {"text": "why?"}, found


def otlp() -> None:
    """A span by plain OpenTelemetry, as any OTLP exporter sends it."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    message = ExportTraceServiceRequest()
    span = message.resource_spans.add().scope_spans.add().spans.add()
    span.trace_id, span.span_id, span.name = os.urandom(16), os.urandom(8), "from-otlp"
    span.start_time_unix_nano, span.end_time_unix_nano = 1_000_000_000, 2_000_000_000
    experiment = client.get_experiment_by_name(NAME).experiment_id
    headers = {"Content-Type": "application/x-protobuf", "x-mlflow-experiment-id": experiment}
    ask("POST", "/v1/traces", data=message.SerializeToString(), headers=headers)
    found = mlflow.get_trace("tr-" + span.trace_id.hex())
    assert [one.name for one in found.data.spans] == ["from-otlp"], found


def interface() -> None:
    """What the pages of the user interface ask for: themselves, their files, the API, an artifact."""
    page = ask("GET", "/").text
    files = [word.partition('"')[0] for word in page.split('src="')[1:]]
    assert files, page[:500]
    for file in files:
        assert "javascript" in ask("GET", "/" + file.lstrip("./")).headers["Content-Type"], file
    found = ask("POST", "/ajax-api/2.0/mlflow/runs/search", json={"experiment_ids": [experiment_id()]}).json()
    assert known["run"] in [run["info"]["run_id"] for run in found["runs"]]
    shown = ask("GET", "/get-artifact", params={"run_uuid": known["run"], "path": "folder/4k.bin"})
    assert shown.content == BYTES


def experiment_id() -> str:
    """Return the experiment's number."""
    return client.get_experiment_by_name(NAME).experiment_id


def graphql() -> None:
    """The run's page asks by GraphQL."""
    query = "query Q($data: MlflowGetRunInput!) { mlflowGetRun(input: $data) { run { info { runId } } } }"
    body = {"operationName": "Q", "query": query, "variables": {"data": {"runId": known["run"]}}}
    answer = ask("POST", "/graphql", json=body).json()
    assert answer["data"]["mlflowGetRun"]["run"]["info"]["runId"] == known["run"], answer


def main() -> None:
    """Do what the command line says."""
    if sys.argv[1] == "read":
        read_artifact(sys.argv[2])
        read_model()
        read_trace(sys.argv[3])
        return
    errors: dict[str, str | None] = {}
    for step in (artifacts, registry, traces, otlp, interface, graphql):
        try:
            errors[step.__name__] = step()
        except Exception:
            errors[step.__name__] = traceback.format_exc()
    print(json.dumps({"errors": errors, "known": known}))


main()
