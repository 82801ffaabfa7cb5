"""What `make migrate` and `make artifacts-move` make of FROM=FOLDER, where that is another stack.

Docker is a stand-in that writes down what it is asked for; only `docker compose config` is real.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import needs
import pytest
from combinations import Answers
from rendering import Tree

DOCKER = """\
#!/bin/sh
case "$*" in
  *" config") exec "$DOCKER" "$@" ;;
  "volume inspect "*) [ -n "$VOLUME" ] ;;
  *"ps --quiet "*) echo container ;;
  *) echo "$(basename "$(dirname "$PWD")"): $*" >>"$ASKED" ;;
esac
"""
SQLITE = {"backend": "sqlite", "artifact_store": "local"}
POSTGRES = {"backend": "postgres", "artifact_store": "seaweedfs"}
CLOUD = {"backend": "managed", "artifact_store": "s3"}


@dataclass
class Pair:
    """A stack, the folder of another one, and what was asked of Docker."""

    here: Path
    there: Path
    env: dict[str, str]

    def run(self, *command: str, **env: str) -> tuple[int, str, str]:
        """Run a script of the stack; return its exit code, what it says, and what it asked of Docker."""
        asked = Path(self.env["ASKED"])
        asked.write_text("")
        done = subprocess.run(command, cwd=self.here, env=self.env | env, text=True, capture_output=True)
        return done.returncode, done.stdout + done.stderr, asked.read_text()


@pytest.fixture
def pair(make_tree: Callable[[Answers], Tree], tmp_path: Path) -> Callable[[dict[str, str]], Pair]:
    """Render a stack with PostgreSQL, and another one with the given answers."""
    needs.compose()

    def make(answers: dict[str, str]) -> Pair:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "docker").write_text(DOCKER)
        (tmp_path / "bin" / "docker").chmod(0o755)
        here, there = make_tree(POSTGRES).root, make_tree(answers).root
        for root in (here, there):
            subprocess.run(["scripts/init.sh"], cwd=root, check=True, capture_output=True)
        with (there / ".env").open("a") as file:
            file.write("DB_HOST=db.example.com\n")
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        more = {"PATH": path, "DOCKER": str(shutil.which("docker")), "ASKED": str(tmp_path / "asked"), "VOLUME": ""}
        return Pair(here, there, dict(os.environ) | more | {"FROM": str(there)})

    return make


def test_sqlite_in_a_volume_or_in_a_folder(pair):
    both = pair(SQLITE)
    code, said, _ = both.run("scripts/migrate.sh", "check")
    assert code and "there are no data" in said
    code, said, asked = both.run("scripts/migrate.sh", "check", VOLUME="1")
    assert code == 0 and "demo-stack_mlflow-data:/from:ro" in asked and "migrate /from " in asked, said
    _, _, asked = both.run("scripts/artifacts-move.sh", VOLUME="1")
    assert "demo-stack_mlflow-data:/other artifacts-move --from /other/artifacts" in asked
    (both.there / "data").mkdir()
    _, _, asked = both.run("scripts/migrate.sh", "check")
    assert f"{both.there}/data:/from:ro" in asked
    code, said, _ = both.run("scripts/migrate.sh", "check", VOLUME="1")
    assert code and "remove what is not used any more" in said


def test_postgres_joins_for_a_while_and_its_server_rests(pair):
    both = pair(POSTGRES)
    code, said, asked = both.run("scripts/migrate.sh")
    assert code == 0 and f"the way back: make -C {both.there} up" in said, said
    lines = asked.splitlines()
    there = both.there.parent.name
    joined = [number for number, line in enumerate(lines) if "network connect --alias old-postgres" in line]
    stopped = [n for n, line in enumerate(lines) if line.startswith(f"{there}: ") and line.endswith("stop mlflow")]
    moved = [number for number, line in enumerate(lines) if "--password-stdin" in line]
    left = [number for number, line in enumerate(lines) if "network disconnect demo-stack_edge container" in line]
    assert joined[0] < stopped[0] < moved[0] < left[-1], asked
    assert (both.there / "secrets" / "db_password").read_text() not in asked
    _, _, asked = both.run("scripts/artifacts-move.sh")
    assert "--alias old-store" in asked and "OTHER_ENDPOINT=http://old-store:8333" in asked
    assert "network disconnect" in asked.splitlines()[-2] + asked.splitlines()[-1]


def test_what_is_somewhere_else_is_named(pair):
    both = pair(CLOUD)
    code, said, asked = both.run("scripts/migrate.sh", "check")
    assert code and "mlflow@db.example.com:5432/mlflow" in said and "run --rm" not in asked
    code, said, asked = both.run("scripts/artifacts-move.sh")
    assert code and "FROM=s3://demo-stack-artifacts" in said and "run --rm" not in asked


@pytest.mark.parametrize("script", ["scripts/migrate.sh", "scripts/artifacts-move.sh"])
def test_a_stack_is_no_source_of_itself(pair, script):
    code, said, asked = pair(SQLITE).run(script, FROM=".")
    assert code and "is this very stack" in said and not asked
