"""After `make update` and before `make upgrade` the scripts are newer than the server's image. Docker is a stand-in."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from combinations import Answers
from rendering import Tree

# The image keeps the files that it was made from in /stackops; here they are in image/stackops. What else the server is
# asked for is written down, and fails.
DOCKER = """\
#!/bin/sh
case "$*" in
  "volume ls "* | "compose ps --all") ;;
  *" ps --status running --quiet mlflow") echo abc ;;
  "compose exec -T mlflow sh -c "*) shift 4; shift; exec sh -c "$2" sh image ;;
  "compose ps --all --quiet mlflow") echo abc ;;
  "exec abc stackops ready") ;;
  *) echo "$*" >>asked; exit 1 ;;
esac
"""
SENTENCE = "the server was made from other files than those that are here: run 'make upgrade' first"


@pytest.fixture
def make(make_tree: Callable[[Answers], Tree], tmp_path: Path) -> Callable[..., tuple[int, str, str, list[str]]]:
    """Run make in a stack whose server is older or not; return exit code, output, errors, and what was asked for."""
    stack = make_tree({"project_name": "demo-stack", "purpose": "team"}).root
    (stack / "bin").mkdir()
    (stack / "bin" / "docker").write_text(DOCKER)
    (stack / "bin" / "docker").chmod(0o755)
    environment = {"PATH": f"{stack / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    shutil.copytree(stack / "stackops", stack / "image" / "stackops")

    def run(target: str, older: bool) -> tuple[int, str, str, list[str]]:
        if older:
            (stack / "image" / "stackops" / "stackops" / "bench.py").unlink()
        (stack / "asked").unlink(missing_ok=True)
        done = subprocess.run(
            ["make", "--no-print-directory", target], cwd=stack, env=environment, capture_output=True, text=True
        )
        asked = (stack / "asked").read_text().splitlines() if (stack / "asked").exists() else []
        return done.returncode, done.stdout, done.stderr, asked

    return run


@pytest.mark.parametrize("target", ["size", "bench", "gc"])
def test_it_is_told_what_comes_first(make: Callable[..., tuple], target: str) -> None:
    code, _, said, asked = make(target, older=False)
    assert code and SENTENCE not in said and asked, "it goes on to ask the server"
    code, _, said, asked = make(target, older=True)
    assert code and [line for line in said.splitlines() if ": error: " in line] == [f"{target}: error: {SENTENCE}"]
    assert asked == []


def test_status_shows_what_it_can(make: Callable[..., tuple]) -> None:
    code, _, said, asked = make("status", older=False)
    assert code and asked == ["compose exec -T mlflow stackops backups --last"]
    code, shown, said, asked = make("status", older=True)
    assert (code, said, asked) == (0, "", []) and shown.splitlines()[-2:] == [SENTENCE, "ready"]
