"""`make demo` and `make demo-stop`, as printed in the README; needs no Docker."""

import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clone of what is here, so that the demo of the developer at work is left alone."""
    clone = tmp_path / "mlflow-stack"
    clone.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)
    subprocess.run(["git", "init", "--quiet"], cwd=clone, check=True)
    subprocess.run(["git", "add", "--all"], cwd=clone, check=True)
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "--quiet", "--message", "t"],
        cwd=clone,
        check=True,
    )
    return clone


def make(checkout: Path, target: str) -> str:
    """Run a target of the template's Makefile; return its output."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "MLFLOW_", "VIRTUAL_ENV"))}
    done = subprocess.run(
        ["make", target], cwd=checkout, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_demo_twice_then_stop(checkout: Path) -> None:
    try:
        for attempt in (1, 2):
            output = make(checkout, "demo")
            assert re.search(r"^OK", output, re.MULTILINE), output
            url = re.search(r"it runs at (http://localhost:\d+)", output).group(1)
            with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
                assert answer.status == 200
            assert ("stopped the demo that was running" in output) == (attempt == 2)
    finally:
        stopped = make(checkout, "demo-stop")
    assert "stopped" in stopped
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/health", timeout=10)
    assert "nothing runs" in make(checkout, "demo-stop")
