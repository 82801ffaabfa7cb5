"""What is left out of a run, and what is not."""

import pytest
from combinations import ROOT
from extended import ALWAYS, WATCHED, is_built, wanted

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


def test_what_has_not_been_built_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extended.BUILT", {"tests/e2e/test_a.py": ("build/nothing-like-it-*", "A_PROGRAM")})
    assert not is_built("tests/e2e/test_a.py::test_x") and is_built("tests/e2e/test_b.py::test_x")
    monkeypatch.setenv("A_PROGRAM", "/bin/a")
    assert is_built("tests/e2e/test_a.py::test_x")
