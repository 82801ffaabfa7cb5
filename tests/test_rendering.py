"""The matrix itself: what the other tests stand on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from combinations import every_product, refusal, valid
from rendering import Tree, read_tree, render


def test_every_combination_is_rendered_once(trees: list[Tree]) -> None:
    """No combination is missing or there twice, and those that are left out are refused."""
    assert len(trees) == len(valid()) >= 264
    assert len({tree.name for tree in trees}) == len(trees)
    assert len(every_product()) - len(trees) == sum(refusal(answers) is not None for answers in every_product())
    assert all(tree.files for tree in trees)


def test_the_shortcuts_change_nothing(trees: list[Tree], template: Path, tmp_path: Path) -> None:
    """The matrix is rendered with shortcuts: plain Copier writes the same bytes and modes."""
    for tree in trees[::53]:
        plain = read_tree(render(template, tmp_path / tree.name / "demo-stack", tree.answers), tree.answers)
        assert plain.files == tree.files, tree.name
        assert plain.modes == tree.modes, tree.name


@pytest.mark.parametrize("forbidden", [False, True])
def test_a_skip_can_be_forbidden(tmp_path: Path, forbidden: bool) -> None:
    """MLFLOW_STACK_NO_SKIPS=1 makes a failure of a skip, of a test and of a module, and of nothing else."""
    (tmp_path / "test_one.py").write_text(
        "import pytest\n"
        "def test_skips(): pytest.skip('no engine')\n"
        "@pytest.mark.skip(reason='later')\ndef test_marked(): pass\n"
        "@pytest.mark.xfail\ndef test_expected(): assert False\n"
        "def test_runs(): pass\n"
    )
    (tmp_path / "test_two.py").write_text("import pytest\npytest.skip('whole', allow_module_level=True)\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "needs",
            "-p",
            "no:cacheprovider",
            "-ra",
            "--continue-on-collection-errors",
            str(tmp_path),
        ],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "MLFLOW_STACK_NO_SKIPS": str(int(forbidden))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    summary = done.stdout.splitlines()[-1]
    if forbidden:
        assert done.returncode != 0, done.stdout
        assert "1 failed" in summary and "2 errors" in summary and "skipped" not in summary, done.stdout
        assert "MLFLOW_STACK_NO_SKIPS=1 forbids it: Skipped: no engine" in done.stdout
    else:
        assert "3 skipped" in summary, done.stdout
    assert "1 passed" in summary and "1 xfailed" in summary, done.stdout
