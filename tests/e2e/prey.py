"""What an admin has, and nobody else may see or touch: one of each kind, made with MLflow's own client and API.

Prints one line of JSON: the value of each field by which requests name these things. NAME is in their names, and so in
requests; SECRET is in everything that is inside, and in no request: whoever gets an answer with it has read something.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import mlflow
import requests
from mlflow import MlflowClient

NAME, SECRET = sys.argv[1:]
URL = os.environ["MLFLOW_TRACKING_URI"]
LOGIN = (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"])
client = MlflowClient()


def post(path: str, body: dict) -> dict:
    """Send JSON as admin; return the answer's."""
    answer = requests.post(f"{URL}/api/{path}", json=body, auth=LOGIN, timeout=60)
    assert answer.status_code < 300, f"{path}: {answer.status_code} {answer.text[:500]}"
    return answer.json()


experiment = client.create_experiment(f"{NAME}-experiment", tags={"note": SECRET})
mlflow.set_experiment(experiment_id=experiment)
with mlflow.start_run(run_name=SECRET) as active, tempfile.TemporaryDirectory() as folder:
    run = active.info.run_id
    mlflow.log_param("param", SECRET)
    mlflow.set_tag("tag", SECRET)
    for step in range(3):
        mlflow.log_metric("metric", 271828, step=step)
    path = Path(folder) / "secret.txt"
    path.write_text(SECRET)
    mlflow.log_artifact(str(path))
    logged = mlflow.create_external_model(name=f"{NAME}-model", source_run_id=run, tags={"tag": SECRET}).model_id
registered = f"{NAME}-registered"
client.create_registered_model(registered, description=SECRET)
client.create_model_version(registered, client.get_run(run).info.artifact_uri, run_id=run, description=SECRET)
client.set_registered_model_alias(registered, "alias", "1")
mlflow.genai.register_prompt(name=f"{NAME}-prompt", template=f"{SECRET} {{{{word}}}}")


@mlflow.trace(name="span")
def traced(text: str) -> str:
    """Leave a trace."""
    return text


traced(SECRET)
mlflow.flush_trace_async_logging()
(trace,) = client.search_traces(locations=[experiment])
trace = trace.info.trace_id
assessment = mlflow.log_feedback(trace_id=trace, name="good", value=True, rationale=SECRET).assessment_id

dataset = post("3.0/mlflow/datasets/create", {"name": f"{NAME}-dataset", "experiment_ids": [experiment]})
dataset = dataset["dataset"]["dataset_id"]
post(f"3.0/mlflow/datasets/{dataset}/records", {"records": json.dumps([{"inputs": {"question": SECRET}}])})
judge = {"instructions": SECRET + " {{ inputs }}", "model": "openai:/gpt", "feedback_value_type": {"type": "string"}}
scorer = {"name": f"{NAME}-scorer", "instructions_judge_pydantic_data": judge}
post(
    "3.0/mlflow/scorers/register",
    {"experiment_id": experiment, "name": f"{NAME}-scorer", "serialized_scorer": json.dumps(scorer)},
)
issue = post(
    "3.0/mlflow/issues",
    {"experiment_id": experiment, "name": f"{NAME}-issue", "description": SECRET, "status": "pending"},
)["issue"]["issue_id"]
answers = {"pass_fail": {"positive_label": "yes", "negative_label": "no"}}
schema = post(
    "3.0/mlflow/label-schemas/create",
    {
        "experiment_id": experiment,
        "name": f"{NAME}-schema",
        "type": "FEEDBACK",
        "input": answers,
        "instruction": SECRET,
    },
)["label_schema"]["schema_id"]
queue = post(
    "3.0/mlflow/review-queues/create",
    {"experiment_id": experiment, "name": f"{NAME}-queue", "queue_type": "CUSTOM", "schema_ids": [schema]},
)["review_queue"]["queue_id"]
server = post("3.0/mlflow/mcp-servers", {"name": f"io.{NAME}/server", "description": SECRET})["name"]
key = post(
    "3.0/mlflow/gateway/secrets/create",
    {"secret_name": f"{NAME}-key", "secret_value": {"api_key": SECRET}, "provider": "openai"},
)["secret"]["secret_id"]
definition = post(
    "3.0/mlflow/gateway/model-definitions/create",
    {"name": f"{NAME}-definition", "secret_id": key, "provider": "openai", "model_name": SECRET},
)["model_definition"]["model_definition_id"]
configs = [{"model_definition_id": definition, "linkage_type": "PRIMARY", "weight": 1}]
endpoint = post("3.0/mlflow/gateway/endpoints/create", {"name": f"{NAME}-endpoint", "model_configs": configs})
endpoint = endpoint["endpoint"]["endpoint_id"]

root = client.get_run(run).info.artifact_uri.split("mlflow-artifacts:/")[1]
print(
    json.dumps(
        {
            "experiment_id": experiment,
            "experiment_name": f"{NAME}-experiment",
            "run_id": run,
            "trace_id": trace,
            "assessment_id": assessment,
            "model_id": logged,
            "registered": registered,
            "prompt": f"{NAME}-prompt",
            "dataset_id": dataset,
            "scorer": f"{NAME}-scorer",
            "issue_id": issue,
            "schema_id": schema,
            "schema": f"{NAME}-schema",
            "queue_id": queue,
            "queue": f"{NAME}-queue",
            "mcp": server,
            "secret_id": key,
            "key": f"{NAME}-key",
            "model_definition_id": definition,
            "endpoint_id": endpoint,
            "endpoint": f"{NAME}-endpoint",
            "artifact_path": f"{root}/secret.txt",
        }
    )
)
