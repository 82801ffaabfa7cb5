"""Bad input: a full destination, a host without Docker, a missing file. One sentence, a failure, and nothing lost."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from linters import tool
from rendering import Tree

# A `docker` that is new enough, whose engine answers and which says yes to everything.
GOOD = """#!/bin/sh
case "$*" in
  "compose version --short") echo "${COMPOSE_VERSION:-2.40.3}" ;;
esac
"""
NO_COMPOSE = """#!/bin/sh
[ "$1" != compose ] || { echo "docker: 'compose' is not a docker command." >&2; exit 1; }
"""
NO_ENGINE = """#!/bin/sh
case "$*" in
  "compose version --short") echo 2.40.3 ;;
  *) echo "Cannot connect to the Docker daemon at unix:///var/run/docker.sock." >&2; exit 1 ;;
esac
"""
# Compose finds a fault of the owner's: `docker compose config` fails with words of its own.
BAD_FILE = """#!/bin/sh
case "$*" in
  "compose version --short") echo 2.40.3 ;;
  compose*config*) echo "yaml: line 3: found a tab" >&2; exit 1 ;;
esac
"""

# What the host of these tests does not have, whatever this machine has.
ABSENT = ("docker", "copier", "pre-commit", "uv")


@pytest.fixture
def host(trees: list[Tree], tmp_path: Path) -> Callable[..., tuple[Path, dict[str, str]]]:
    """Return a fresh stack and the environment of a host whose only `docker` is the given script, or none."""

    def run(docker: str | None, *, init: bool = True, **answers: str) -> tuple[Path, dict[str, str]]:
        (programs := tmp_path / "bin").mkdir()
        for folder in ("/usr/bin", "/bin"):
            for program in Path(folder).iterdir():
                if not program.name.startswith(ABSENT) and not (programs / program.name).exists():
                    (programs / program.name).symlink_to(program)
        if docker:
            (programs / "docker").write_text(docker)
            (programs / "docker").chmod(0o755)
        tree = next(tree for tree in trees if answers.items() <= tree.answers.items())
        stack = Path(shutil.copytree(tree.root, tmp_path / "stack"))
        environment = {"PATH": str(programs), "HOME": str(tmp_path)}
        if init:
            subprocess.run(["scripts/init.sh"], cwd=stack, env=environment, check=True, capture_output=True)
        return stack, environment

    return run


def content(stack: Path) -> dict[str, bytes]:
    """Return every byte of a stack."""
    return {str(path): path.read_bytes() for path in stack.rglob("*") if path.is_file()}


def fails(stack: Path, environment: dict[str, str], *, lines: int = 1) -> str:
    """Run scripts/up.sh, expect one sentence on stderr and a stack that is as before, and return the sentence."""
    before = content(stack)
    done = subprocess.run(["scripts/up.sh"], cwd=stack, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and done.stdout == "", done
    said = done.stderr.splitlines()
    assert len(said) == lines and said[-1].startswith("up: error: "), done.stderr
    assert content(stack) == before
    return said[-1].removeprefix("up: error: ")


@pytest.mark.parametrize(
    ("docker", "environment", "words"),
    [
        (None, {}, "Docker is not installed: see https://"),
        (NO_COMPOSE, {}, "has no Compose v2: install its Compose plugin, version 2.24 or later"),
        (GOOD, {"COMPOSE_VERSION": "2.20.3"}, "Docker Compose 2.20.3 is too old: version 2.24 or later is needed"),
        (GOOD, {"COMPOSE_VERSION": "v2.23.0-desktop.1"}, "is too old"),
        (GOOD, {"COMPOSE_VERSION": "1.29.2"}, "is too old"),
        (NO_ENGINE, {}, "no Docker engine answers: start it"),
    ],
)
def test_a_host_that_cannot_run_the_stack(
    host: Callable[..., tuple[Path, dict[str, str]]], docker: str | None, environment: dict[str, str], words: str
) -> None:
    """Each says what is missing and what to do."""
    stack, clean = host(docker, backend="sqlite", artifact_store="local")
    assert words in fails(stack, clean | environment)


@pytest.mark.parametrize("version", ["2.24.0", "v2.24.6", "2.40.3-3", "2.100.1", "5.0.1"])
def test_a_compose_that_is_new_enough(host: Callable[..., tuple[Path, dict[str, str]]], version: str) -> None:
    """Versions are compared as numbers."""
    stack, clean = host(GOOD, backend="sqlite", artifact_store="local")
    done = subprocess.run(
        ["scripts/up.sh"], cwd=stack, env=clean | {"COMPOSE_VERSION": version}, capture_output=True, text=True
    )
    assert done.returncode == 0 and "demo-stack is ready: http://" in done.stdout, done.stderr


def test_no_env(host: Callable[..., tuple[Path, dict[str, str]]]) -> None:
    """Without .env, the way to it is named."""
    stack, clean = host(GOOD, init=False, backend="postgres", artifact_store="local")
    assert fails(stack, clean) == "there is no .env: run 'make init'"


def test_a_managed_database_needs_its_address_and_password(host: Callable[..., tuple[Path, dict[str, str]]]) -> None:
    """Both are asked for by name, one after the other."""
    stack, clean = host(GOOD, backend="managed", artifact_store="local")
    assert fails(stack, clean).startswith("DB_HOST in .env is empty: ")
    (stack / ".env").write_text((stack / ".env").read_text().replace("DB_HOST=", "DB_HOST=db.example.com"))
    assert fails(stack, clean).startswith("secrets/db_password is empty: ")


def test_single_sign_on_needs_its_provider(host: Callable[..., tuple[Path, dict[str, str]]]) -> None:
    """What only the owner knows is asked for by name; and the session fits the address, or would not last a request."""
    stack, clean = host(GOOD, backend="sqlite", artifact_store="local", reverse_proxy="nginx", auth="oidc")
    env = stack / ".env"
    for name in ("OIDC_ISSUER", "OIDC_CLIENT_ID"):
        assert fails(stack, clean).startswith(f"{name} in .env is empty: ")
        env.write_text(env.read_text().replace(f"{name}=", f"{name}=https://login.example.com"))
    assert fails(stack, clean).startswith("secrets/oidc_client_secret is empty: ")
    (stack / "secrets" / "oidc_client_secret").write_text("x" * 20)
    with env.open("a") as file:
        file.write("PUBLIC_URL=https://mlflow.example.com\n")
    assert "OIDC_COOKIE_SECURE=true" in fails(stack, clean)
    with env.open("a") as file:
        file.write("PUBLIC_URL=http://mlflow.example.com\nOIDC_COOKIE_SECURE=true\n")
    assert "OIDC_COOKIE_SECURE=false" in fails(stack, clean)


def test_a_file_that_compose_cannot_read(host: Callable[..., tuple[Path, dict[str, str]]]) -> None:
    """Compose's own words come first, then ours."""
    stack, clean = host(BAD_FILE, backend="sqlite", artifact_store="local")
    assert "is not valid" in fails(stack, clean, lines=2)


def test_make_fails_too(host: Callable[..., tuple[Path, dict[str, str]]]) -> None:
    """`make up` hands the failure on."""
    stack, clean = host(None, backend="sqlite", artifact_store="local")
    done = subprocess.run(["make", "up"], cwd=stack, env=clean, capture_output=True, text=True)
    assert done.returncode != 0 and "up: error: Docker is not installed" in done.stderr


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("scripts/lint.sh", "lint: error: neither pre-commit nor uv"),
        ("scripts/update.sh", "update: error: neither copier nor uv"),
    ],
)
def test_a_missing_tool_is_named(host: Callable[..., tuple[Path, dict[str, str]]], script: str, words: str) -> None:
    """Each says where to get it."""
    stack, clean = host(None, backend="sqlite", artifact_store="local")
    before = content(stack)
    done = subprocess.run([script], cwd=stack, env=clean, capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and done.stderr.startswith(words)
    assert content(stack) == before


def test_no_python_for_make_local(host: Callable[..., tuple[Path, dict[str, str]]]) -> None:
    """The server without Docker needs Python, and says so before it makes anything."""
    stack, clean = host(None, backend="sqlite", artifact_store="local")
    for program in Path(clean["PATH"]).glob("python3*"):
        program.unlink()
    before = content(stack)
    done = subprocess.run(["scripts/local.sh"], cwd=stack, env=clean, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "local: error: python3 is not installed\n")
    assert content(stack) == before


# --- The destination of `copier copy` -----------------------------------------------------------------------------


def copier(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Copier where nobody can answer."""
    return subprocess.run(
        [tool("copier"), "copy", "--defaults", *arguments],
        stdin=subprocess.DEVNULL,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_destination_that_is_not_empty_keeps_its_files(template: Path, tmp_path: Path) -> None:
    """Without --overwrite, a file that is there and differs ends the copy; it is not touched."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "compose.yaml").write_text("mine\n")
    (tmp_path / "there" / "data.bin").write_bytes(b"\0mine")
    done = copier(str(template), str(tmp_path / "there"))
    assert done.returncode != 0, done.stdout + done.stderr
    assert (tmp_path / "there" / "compose.yaml").read_text() == "mine\n"
    assert (tmp_path / "there" / "data.bin").read_bytes() == b"\0mine"


def test_unrelated_files_are_no_obstacle(template: Path, tmp_path: Path) -> None:
    """A folder with other files takes the stack beside them."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notebook.ipynb").write_text("{}\n")
    assert copier(str(template), str(tmp_path / "there")).returncode == 0
    assert (tmp_path / "there" / "notebook.ipynb").read_text() == "{}\n"
    assert (tmp_path / "there" / "compose.yaml").exists()
