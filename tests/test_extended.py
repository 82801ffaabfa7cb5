"""What is left out of a run, and what is not."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from combinations import ROOT
from extended import ALWAYS, IN_ORDER, WATCHED, is_built, wanted

MOVE = "tests/e2e/test_artifacts_move.py::test_local_to_seaweedfs_and_back"


@pytest.mark.parametrize(
    ("test", "files", "runs"),
    [
        (MOVE, {"README.md"}, False),
        (MOVE, set(), False),
        (MOVE, {"template/transfer/artifacts_move/s3.py"}, True),
        (MOVE, {"tests/e2e/test_artifacts_move.py"}, True),
        (MOVE, {"template/mlflow/requirements/base.txt"}, True),
        (MOVE, None, True),
        ("tests/migrate/test_moves.py::test_x", {"template/stackops/stackops/migration/load.py"}, True),
        ("tests/migrate/test_moves.py::test_x", {"tests/migrate/rich.py"}, True),
        ("tests/migrate/test_moves.py::test_x", {"template/transfer/artifacts_move/s3.py"}, False),
        ("tests/e2e/test_big_files.py::test_600_mb[proxied]", {"README.md"}, True),
        ("tests/e2e/test_big_files.py::test_2_gib[proxied]", {"README.md"}, False),
    ],
)
def test_what_has_changed_decides(test: str, files: set[str] | None, runs: bool) -> None:
    assert wanted(test, files) == runs


def test_a_mark_watches_too() -> None:
    assert not wanted("tests/e2e/test_scenarios.py::test_scenario[x]", {"README.md"}, "template/*")
    assert wanted("tests/e2e/test_scenarios.py::test_scenario[x]", {"template/x/y"}, "template/*")
    assert wanted("tests/e2e/test_scenarios.py::test_scenario[x]", {"README.md"})


def test_what_is_watched_is_there() -> None:
    """A renamed file would leave its tests out for ever."""
    for pattern in {*ALWAYS, *(pattern for own in WATCHED.values() for pattern in own)}:
        assert list(ROOT.glob(pattern)), pattern
    for part in WATCHED:
        file, _, name = part.partition("::")
        assert (ROOT / file).exists() and (not name or f"def {name}(" in (ROOT / file).read_text()), part
    assert all((ROOT / file).exists() for file in IN_ORDER)


def test_what_has_not_been_built_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extended.BUILT", {"tests/e2e/test_a.py": ("build/nothing-like-it-*", "A_PROGRAM")})
    assert not is_built("tests/e2e/test_a.py::test_x") and is_built("tests/e2e/test_b.py::test_x")
    monkeypatch.setenv("A_PROGRAM", "/bin/a")
    assert is_built("tests/e2e/test_a.py::test_x")


CONFTEST = """
import pathlib, sys
sys.path.insert(0, {tests!r})
import extended
extended.ROOT = pathlib.Path(__file__).parent
extended.PASSED = extended.ROOT / "build" / "passed.json"
extended.IN_ORDER = ("test_journey.py",)
from extended import pytest_runtest_logreport

def pytest_addoption(parser):
    parser.addoption("--everything", action="store_true")
    parser.addoption("--golden-update", action="store_true")

def pytest_configure(config):
    config.addinivalue_line("markers", "watches: x")
    config.addinivalue_line("markers", "full: x")
    config.addinivalue_line("markers", "long: x")

def pytest_collection_modifyitems(config, items):
    extended.leave_out(config, items)
"""
LONG = """
import os, pytest

@pytest.fixture
def late():
    yield
    assert "LATE" not in os.environ

@pytest.mark.watches("a/*")
def test_a(late): pass

@pytest.mark.watches("b/*")
def test_b(): assert "WELL" in os.environ

@pytest.mark.full
def test_c(): pass

def test_short(): pass
"""
JOURNEY = """
import os, pytest

pytestmark = pytest.mark.watches("b/*")

def test_first(): pass

def test_second(): assert "WELL" in os.environ
"""


def test_everything_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    """What has passed runs again when its files have changed, and what failed, at its end too, until it passes."""
    texts = {"conftest.py": CONFTEST.format(tests=str(ROOT / "tests")), "test_x.py": LONG, "test_journey.py": JOURNEY}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    for name in ("a/file", "b/file", "template/file"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("1")
    (tmp_path / ".gitignore").write_text("build\n__pycache__\n")
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)

    def run(*words: str, **more: str) -> set[str]:
        """Run everything that has not passed; return the names of the tests that ran."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | more
        command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--everything", *words]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return set(re.findall(r"test_\w+\.py::(\w+)", done.stdout))

    journey = {"test_first", "test_second"}
    assert run("-n", "2") == {"test_a", "test_b", "test_c", "test_short"} | journey
    assert run() == {"test_b", "test_short"} | journey, "the second goes on where the first has ended"
    assert run(WELL="1") == {"test_b", "test_short"} | journey
    assert run() == {"test_short"}
    again = run("--golden-update", WELL="1")
    assert again == {"test_a", "test_b", "test_c", "test_short"} | journey, "written anew, seen anew"
    (tmp_path / "a/file").write_text("2")
    assert run(LATE="1") == {"test_a", "test_short"}
    assert run() == {"test_a", "test_short"}
    (tmp_path / "template/file").write_text("2")
    assert run() == {"test_c", "test_short"}
    known = {*(f"test_x.py::test_{x}" for x in "abc"), *(f"test_journey.py::{name}" for name in journey)}
    assert set(json.loads((tmp_path / "build/passed.json").read_text())) == known
