"""Does what a user does, with MLflow's own client against MLFLOW_TRACKING_URI, and cleans up after itself.

Logs a run with parameters, metrics, tags, artifacts and a registered model, reads everything back and
compares it. Prints one line per step. Deleted rows stay in the database's trash until `mlflow gc`.
"""

import argparse
import contextlib
import hashlib
import logging
import os
import signal
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from stackops import settings
from stackops.errors import StackError, one_line

HELP = "log, read back and delete a run, an artifact and a model, as a user does"
LIMIT, CLEAN_UP_LIMIT = 100, 15
SIZE = 1 << 20
TEXT_NAME = "größe 1.txt"
QUIET = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument(
        "--keep", action="store_true", help="leave everything in place and print the run's address"
    )
    parser.add_argument(
        "--name", default=None, metavar="NAME", help="name of the experiment and the model (default: unique)"
    )


def client_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the client: quiet, impatient, signed in as admin where that is needed.

    With direct access the client also needs the store's credentials, as every user's client does.
    """
    env = settings.present(env)
    settings.need(env, "MLFLOW_TRACKING_URI")
    ours = dict(QUIET)
    if env.get("STACK_AUTH") in ("basic", "mlflow") and "MLFLOW_TRACKING_USERNAME" not in env:
        ours["MLFLOW_TRACKING_USERNAME"] = "admin"
        ours["MLFLOW_TRACKING_PASSWORD"] = settings.secrets(env).need("admin_password")
    # The certificate's authority, when it is not a public one: for MLflow's client, and for the store's.
    if (file := env.get("STACK_CA")) and os.path.getsize(file):
        ours["REQUESTS_CA_BUNDLE"] = file
    if env.get("ARTIFACT_ACCESS") == "direct":
        ours.update(settings.store(env).environment(env, settings.secrets(env)))
    return {**ours, **env}


class Steps:
    """Runs named steps, prints how long each took, and remembers how to undo them."""

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self.undo = contextlib.ExitStack()

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step. Any exception becomes a StackError that names it."""
        start = time.monotonic()
        try:
            yield
        except Exception as error:
            raise StackError(f"{name}: {one_line(error)}") from error
        self.say(f"{name:<28}{time.monotonic() - start:6.1f} s")


def same(found: object, expected: object, what: str) -> None:
    """Raise StackError unless `found` is what was written."""
    if found != expected:
        raise StackError(f"{what} came back different from what was written")


@contextlib.contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """Raise StackError in the main thread after `seconds`."""

    def late(signum, frame):
        raise StackError(f"gave up after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(args: argparse.Namespace) -> None:
    """Set the client up and run all steps. Raises StackError that names the step that failed."""
    os.environ.update(client_environment(os.environ))
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    start = time.monotonic()
    with deadline(LIMIT):
        url = smoke_test(
            args.name or f"check-{uuid.uuid4().hex[:12]}", args.keep, lambda text: print(text, flush=True)
        )
    if args.keep:
        print(f"run: {url}")
    print(f"OK ({time.monotonic() - start:.1f} s)")


def smoke_test(name: str, keep: bool, say: Callable[[str], None]) -> str:
    """Do all steps with an experiment and a model called `name`; return the address of the run."""
    steps = Steps(say)
    with steps.step("MLflow's client"):
        import mlflow
        from mlflow import MlflowClient
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    client = MlflowClient()
    with tempfile.TemporaryDirectory() as folder:
        try:
            url = _write_and_read(client, name, Path(folder), steps)
        except BaseException:
            signal.setitimer(signal.ITIMER_REAL, CLEAN_UP_LIMIT, 1)  # then cut every further call short
            with contextlib.suppress(Exception):
                steps.undo.close()
            raise
        if keep:
            steps.undo.pop_all()
        else:
            with steps.step("clean up"):
                steps.undo.close()
    return url


def _write_and_read(client, name: str, folder: Path, steps: Steps) -> str:
    import mlflow
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    def discard(uri: str) -> None:
        get_artifact_repository(uri).delete_artifacts()

    with steps.step("experiment"):
        if found := client.get_experiment_by_name(name):
            experiment = found.experiment_id
        else:
            experiment = client.create_experiment(name)
            steps.undo.callback(client.delete_experiment, experiment)
        run = client.create_run(experiment, run_name=name)
        run_id = run.info.run_id
        steps.undo.callback(client.delete_run, run_id)

    with steps.step("params, metrics, tags"):
        now = int(time.time() * 1000)
        history = [0.5, 0.25, 0.125]
        metrics = [Metric("loss", value, now + i, i) for i, value in enumerate(history)]
        client.log_batch(run_id, metrics, [Param("rate", "0.1")], [RunTag("check", run_id)])
        found = client.get_run(run_id).data
        same(
            (found.params, found.metrics, found.tags.get("check")),
            ({"rate": "0.1"}, {"loss": 0.125}, run_id),
            "the run",
        )
        same([m.value for m in client.get_metric_history(run_id, "loss")], history, "the metric's history")
        wanted = f"params.rate = '0.1' and metrics.loss < 0.2 and tags.check = '{run_id}'"
        hits = client.search_runs([experiment], wanted)
        same([hit.info.run_id for hit in hits], [run_id], "the search")

    with steps.step("artifacts up"):
        data = os.urandom(SIZE)
        (folder / "data.bin").write_bytes(data)
        (folder / TEXT_NAME).write_text("äöü €\n", encoding="utf-8")
        steps.undo.callback(discard, run.info.artifact_uri)
        client.log_artifact(run_id, str(folder / "data.bin"))
        client.log_artifact(run_id, str(folder / TEXT_NAME), "notes")

    with steps.step("artifacts down"):
        listed = {file.path for file in client.list_artifacts(run_id)} | {
            f.path for f in client.list_artifacts(run_id, "notes")
        }
        same(listed, {"data.bin", "notes", f"notes/{TEXT_NAME}"}, "the list of artifacts")
        down = folder / "down"
        down.mkdir()
        back = Path(client.download_artifacts(run_id, "data.bin", str(down)))
        same(hashlib.sha256(back.read_bytes()).digest(), hashlib.sha256(data).digest(), "data.bin")
        text = Path(client.download_artifacts(run_id, f"notes/{TEXT_NAME}", str(down)))
        same(text.read_text(encoding="utf-8"), "äöü €\n", TEXT_NAME)

    with steps.step("model: log and register"):
        with mlflow.start_run(run_id=run_id):
            info = mlflow.pyfunc.log_model(
                name="model", python_model=_model(), pip_requirements=[f"mlflow=={mlflow.__version__}"]
            )
        logged = client.get_logged_model(info.model_id)
        steps.undo.callback(client.delete_logged_model, info.model_id)
        steps.undo.callback(discard, logged.artifact_location)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
            steps.undo.callback(client.delete_registered_model, name)
        version = client.create_model_version(name, info.model_uri, run_id, model_id=info.model_id).version
        steps.undo.callback(client.delete_model_version, name, version)

    with steps.step("model: load and call"):
        model = mlflow.pyfunc.load_model(f"models:/{name}/{version}")
        same(list(model.predict([1, 2, 3])), [2, 4, 6], "the model's answer")

    client.set_terminated(run_id)
    return f"{os.environ['MLFLOW_TRACKING_URI'].rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"


def _model():
    from mlflow.pyfunc import PythonModel

    class Doubler(PythonModel):
        def predict(self, context, model_input: list[int], params=None) -> list[int]:
            return [2 * value for value in model_input]

    return Doubler()
