"""checkov over the golden trees: Dockerfiles, workflows and secrets that were left behind.

It has a virtual environment of its own in build/, made of tests/checkov/checkov.txt: its packages do not go together
with MLflow's. Compose is none of its languages; test_scenarios.py and invariants.py look at that.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from combinations import ROOT

# docs/security.md explains each.
EXPLAINED = {"CKV_DOCKER_2", "CKV_DOCKER_7"}


@pytest.fixture(scope="module")
def checkov() -> str:
    """Return checkov's path; install it first where the lock has changed."""
    lock, folder = ROOT / "tests" / "checkov" / "checkov.txt", ROOT / "build" / "checkov"
    stamp = folder / "lock.txt"
    if not stamp.exists() or stamp.read_bytes() != lock.read_bytes():
        for words in (
            ["venv", "--clear", "--python", sys.executable, str(folder)],
            ["pip", "install", "--python", str(folder / "bin" / "python"), "--require-hashes", "-r", str(lock)],
        ):
            done = subprocess.run([sys.executable, "-m", "uv", *words], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        shutil.copy(lock, stamp)
    return str(folder / "bin" / "checkov")


def findings(checkov: str, folder: Path) -> dict[str, set[str]]:
    """Return the checks that fail in a folder: their name -> where."""
    done = subprocess.run(
        [
            checkov, "--directory", str(folder), "--framework", "dockerfile", "github_actions", "secrets",
            "--skip-download", "--compact", "--quiet", "--output", "json",
        ],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode in (0, 1) and done.stdout, done.stderr
    results = json.loads(done.stdout)
    found: dict[str, set[str]] = {}
    for result in results if isinstance(results, list) else [results]:
        for check in result.get("results", {}).get("failed_checks", ()):
            found.setdefault(check["check_id"], set()).add(check["file_path"])
    return found


def test_what_checkov_finds_is_explained(checkov: str) -> None:
    found = findings(checkov, ROOT / "tests" / "golden")
    explanations = (ROOT / "docs" / "security.md").read_text()
    assert {check: files for check, files in found.items() if check not in EXPLAINED} == {}
    assert not EXPLAINED - found.keys(), "an explanation that nobody needs"
    assert all(check in explanations for check in EXPLAINED)


def test_checkov_finds_what_is_wrong(checkov: str, tmp_path: Path) -> None:
    """The check itself: a root user, an added URL and a workflow that runs a stranger's words."""
    (tmp_path / "Dockerfile").write_text("FROM debian:13\nADD https://example.com/x /x\nUSER root\n")
    workflows = tmp_path / ".github" / "workflows"
    workflows.mkdir(parents=True)
    (workflows / "x.yaml").write_text(
        "on: [issues]\njobs:\n  x:\n    runs-on: ubuntu-latest\n    steps:\n"
        "      - run: echo ${{ github.event.issue.title }}\n"
    )
    found = findings(checkov, tmp_path).keys()
    assert {"CKV_DOCKER_8", "CKV_DOCKER_4", "CKV_GHA_2"} <= found, found
