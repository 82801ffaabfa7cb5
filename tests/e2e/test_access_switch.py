"""A stack that was switched proxied -> direct -> proxied keeps every older run, model and trace readable."""

from pathlib import Path
from typing import Any

import pytest
from history import History
from stacks import Stack, stack

pytestmark = pytest.mark.docker

ANSWERS = {"artifact_store": "seaweedfs", "reverse_proxy": "nginx", "domain": "localhost"}


def key_holder(one: Stack) -> dict[str, Any]:
    """Return what a client of direct access has: a door to the store, and its own key."""
    port = one.settings()["STORE_PORT"]
    return {
        "doors": {f"localhost:{port}": f"127.0.0.1:{port}"},
        "MLFLOW_S3_ENDPOINT_URL": f"http://localhost:{port}",
        "AWS_SHARED_CREDENTIALS_FILE": str(one.folder / "secrets" / "client_s3_credentials"),
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def served_again(one: Stack) -> list[str]:
    """Return what the job before the server said about artifacts, at its last run."""
    return [line for line in one.compose("logs", "--no-log-prefix", "migrate").splitlines() if "artifacts:" in line]


def test_every_older_run_stays_readable(tmp_path: Path) -> None:
    with stack(tmp_path, "e-switch", ANSWERS) as one:
        history = History(one)
        one.up()
        history.write("first-proxied")

        one.answer(artifact_access="direct")
        one.up()
        direct = history.write("direct", **key_holder(one))
        history.read(**key_holder(one))
        assert served_again(one) == []
        location = "import mlflow, sys; print(mlflow.get_run(sys.argv[1]).info.artifact_uri)"
        assert one.client(location, direct["runs"][0]).startswith("s3://")

        one.answer(artifact_access="proxied")
        one.up()
        assert served_again(one) == [
            "artifacts: served by the server again: 1 experiment, 2 runs, 1 model, 1 model version and 1 trace "
            "of the time of direct access"
        ]
        history.write("proxied-again")
        history.read()
        assert "served by the server again" not in one.compose("run", "--rm", "-T", "migrate")  # nothing is left to do
