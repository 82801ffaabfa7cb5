"""Another nginx by NGINX_IMAGE: a mirror's name, a digest, a drop-in fork.

The image here is the pinned one under another name. With MLFLOW_STACK_NGINX_FORK the same is asked of a fork's:
`MLFLOW_STACK_NGINX_FORK=angie:1.13 pytest --everything tests/e2e/test_nginx_fork.py`.
"""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import outside
import pytest
from stacks import HERE, PREFIX, run, stack

SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"


@pytest.fixture
def image() -> Iterator[str]:
    """The fork's image, or nginx under another name."""
    if given := os.environ.get("MLFLOW_STACK_NGINX_FORK"):
        yield given
        return
    outside.engine()
    name, pinned = f"{PREFIX}-another-nginx:{os.getpid()}", outside.IMAGES["nginx_image"]
    assert (done := run("docker", "image", "tag", pinned, name)).returncode == 0, done.stderr
    yield name
    run("docker", "image", "rm", name)


def test_another_nginx(tmp_path: Path, image: str) -> None:
    """With TLS, a prefix, logins and a published store: the stock client works, and a stranger does not get in."""
    answers = {
        "reverse_proxy": "nginx", "auth": "basic", "tls": "self-signed", "url_prefix": "/mlflow",
        "artifact_store": "seaweedfs", "artifact_access": "presigned",
    }  # fmt: skip
    with stack(tmp_path, "fork", answers, {"NGINX_IMAGE": image}) as made:
        made.up()
        said = run("docker", "inspect", "--format", "{{.Config.Image}}", made.container("nginx"))
        assert said.stdout.strip() == image
        done = json.loads(made.client((HERE / "stock_client.py").read_text(), "write").splitlines()[-1])
        assert set(done["errors"].values()) == {None}, done["errors"]
        context = outside.ssl.create_default_context(cafile=str(made.folder / "secrets" / "tls_ca.pem"))
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(made.url + SEARCH, context=context, timeout=30)
        assert refused.value.code == 401
        assert "OK (" in made.make("check")
