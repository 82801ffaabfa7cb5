"""A stack that runs calls nobody on the internet: it does not even ask for a name there.

All its containers ask a name server of the test, which prints what it is asked for.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import outside
import pytest
from attacks import Target
from stacks import HERE, Stack, run, stack

STACKS = {
    "seaweedfs": {
        "backend": "postgres", "artifact_store": "seaweedfs", "artifact_access": "presigned", "reverse_proxy": "nginx",
        "auth": "basic",
    },
    "minio": {
        "backend": "sqlite", "artifact_store": "minio", "reverse_proxy": "caddy", "auth": "mlflow", "backups": True,
    },
}  # fmt: skip
# The user interface asks for these: whether to send telemetry, and what is in the catalogue of models.
PAGES = (
    "/",
    "/ajax-api/3.0/mlflow/ui-telemetry",
    "/ajax-api/3.0/mlflow/gateway/supported-providers",
    "/ajax-api/3.0/mlflow/gateway/supported-models?provider=openai",
    "/gateway/mlflow/v1/models",
)
# What MLflow does in the same container without the server's settings: it is what the name server would hear of.
WITHOUT = """
from mlflow.telemetry.utils import fetch_ui_telemetry_config
from mlflow.utils.providers import _fetch_remote_provider
fetch_ui_telemetry_config()
_fetch_remote_provider("openai")
"""
Heard = Callable[[], set[str]]


@pytest.fixture
def heard() -> Iterator[Heard]:
    """A name server at the gateway; it says which names it was asked for. One word is no name on the internet."""
    with outside.container(
        "names", outside.IMAGES["python_image"], "python", "-c", (HERE / "names.py").read_text(), outside.gateway()
    ) as name:

        def said() -> list[str]:
            return run("docker", "logs", name).stdout.split()

        outside.wait(name, lambda: "listening" in said())
        yield lambda: {word for word in said() if "." in word}


def listens(made: Stack) -> None:
    """Let every container ask the test's name server, also those that a network without a way out keeps from it."""
    services = made.compose("config", "--services").split()
    networks = [line for line in made.compose("config", "--networks").split() if line == "data"]
    made.override(
        {
            "services": {service: {"dns": [outside.gateway()]} for service in services},
            "networks": {network: {"internal": False} for network in networks},
        }
    )


@pytest.mark.parametrize("name", ["seaweedfs", pytest.param("minio", marks=pytest.mark.full)])
def test_no_name_on_the_internet_is_looked_up(tmp_path: Path, heard: Heard, name: str) -> None:
    """By no container: from the start over runs, models, traces and pages to `make check`."""
    with stack(tmp_path, f"calls-{name}", STACKS[name], {"MLFLOW_ENABLE_AI_GATEWAY": "true"}) as made:
        listens(made)
        made.up()
        it = Target(made)
        made.client((HERE / "stock_client.py").read_text(), "write", doors=made.doors)
        for path in PAGES:
            assert it.mlflow("GET", path, it.admin).status == 200, path
        made.make("check")
        assert heard() == set()
        # It would have heard of them, from the server's container and from the store's.
        made.compose("exec", "-T", "mlflow", "python", "-c", WITHOUT)
        assert {"github.com"} < heard() and any("cloudfront" in word or "telemetry" in word for word in heard())
        probe = "curl -m 5 http://store.example.net || getent hosts store.example.net || true"
        made.compose("exec", "-T", "object-store", "sh", "-c", probe)
        assert "store.example.net" in heard()
        if name == "seaweedfs":
            reports_nothing(made)


def reports_nothing(made: Stack) -> None:
    """SeaweedFS sends its first report when 10 GiB are stored; whether it is going to is said at the start."""
    word, image = "Reporting anonymous cluster statistics", made.compose("images", "--quiet", "object-store").split()[0]
    assert word not in made.compose("logs", "--no-log-prefix", "object-store")
    by_default = (
        "timeout 5 weed -logtostderr=true server -dir=/tmp -ip=127.0.0.1 -master.electionTimeout=1s 2>&1 || true"
    )
    done = run("docker", "run", "--rm", "--network", "none", "--entrypoint", "sh", image, "-c", by_default)
    assert word in done.stdout, done
