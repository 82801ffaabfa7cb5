"""What a test needs from the machine. It skips with a reason where that is missing.

MLFLOW_STACK_NO_SKIPS=1 turns every skip of the whole suite into a failure: that is how .ci/run knows that
nothing was left out.
"""

import functools
import os
import shutil
import subprocess
from collections.abc import Generator
from typing import Any

import pytest


def compose() -> None:
    """Skip unless Docker's Compose plugin is installed; no engine has to answer."""
    if not _answers("docker", "compose", "version"):
        pytest.skip("needs Docker's Compose plugin")


def engine() -> None:
    """Skip unless a Docker engine answers."""
    compose()
    if not _answers("docker", "version", "--format", "{{.Server.Version}}"):
        pytest.skip("needs a Docker engine, and none answers")


def chromium() -> str:
    """Return the path of a Chromium; skip where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("needs a browser, and there is no chromium (Debian: apt-get install chromium)")


@functools.cache
def _answers(*command: str) -> bool:
    return bool(shutil.which(command[0])) and subprocess.run(command, capture_output=True).returncode == 0


def _forbid_skip(report: Any) -> Any:
    """Turn a skip into a failure where skips are forbidden; an expected failure stays what it is."""
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("MLFLOW_STACK_NO_SKIPS") == "1":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped although MLFLOW_STACK_NO_SKIPS=1 forbids it: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """A test that skipped."""
    return _forbid_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """A module that skipped as a whole."""
    return _forbid_skip((yield))
