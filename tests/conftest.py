"""Fixtures that the render tests share, and the options and hooks of the whole suite."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from combinations import Answers, valid
from extended import leave_out, pytest_runtest_logreport  # noqa: F401 # a hook
from needs import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401 # hooks
from pytest_copie.plugin import Result
from rendering import Tree, copy_template, read_tree, render, render_all
from summary import (  # noqa: F401 # hooks and a fixture
    in_table,
    pytest_configure,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
    say,
)
from xdist.scheduler import LoadScopeScheduling


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--golden-update` and `--everything`."""
    parser.addoption("--golden-update", action="store_true", help="write tests/golden anew instead of comparing")
    parser.addoption(
        "--everything",
        action="store_true",
        help="also run what no change since the last release concerns, and has not passed on these files",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the long tests of what has not changed, or has passed since; see extended.py."""
    why = "they have passed on these files" if config.getoption("--everything") else "make test-all runs them"
    for name in leave_out(config, items):
        say(config, f"left out of this run: tests in {name} ({why})")


class Together(LoadScopeScheduling):
    """Which tests go to one process, in a run with several: those that share something that takes long to make."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        if file.endswith("test_scenarios.py"):
            return nodeid  # each starts a stack of its own
        return file if file.count("/") > 1 else "tests"  # the files right here share all rendered combinations


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    """Distribute tests like that."""
    return Together(config, log)


@pytest.fixture(scope="session", autouse=True)
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep git's and Copier's settings and caches of the person who runs the tests out of them."""
    home = tmp_path_factory.mktemp("settings")
    (home / "gitconfig").write_text(
        "[user]\n\tname = Test\n\temail = test@example.com\n[init]\n\tdefaultBranch = main\n"
        '[commit]\n\tgpgSign = false\n[tag]\n\tgpgSign = false\n[protocol "file"]\n\tallow = always\n'
    )
    (home / "copier.yml").write_text("{}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", str(home / "gitconfig"))
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        patch.setenv("COPIER_SETTINGS_PATH", str(home / "copier.yml"))
        patch.setenv("COPIER_CACHE_DIR", str(home / "cache"))
        yield


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain copy of the template as it is in the working tree: no history, no clone for each rendering."""
    return copy_template(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="session")
def trees(
    template: Path, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[list[Tree]]:
    """Every valid combination, each rendered once for the whole run."""
    started = time.monotonic()
    # In memory where that is possible: a hundred thousand small files.
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    # More than a GiB each: what a killed run has left would take the machine's memory.
    for left in place.glob("mlflow-stack-test-trees-*"):
        with contextlib.suppress(PermissionError):
            try:
                os.kill(int(left.name.split("-")[4]), 0)
            except ProcessLookupError:
                shutil.rmtree(left, ignore_errors=True)
    base = Path(tempfile.mkdtemp(prefix=f"mlflow-stack-test-trees-{os.getpid()}-", dir=place))
    jobs = [(base / f"{number:03}" / "demo-stack", answers) for number, answers in enumerate(valid())]
    render_all(template, jobs)
    found = [read_tree(root, answers) for root, answers in jobs]
    seconds = time.monotonic() - started
    say(pytestconfig, f"{len(found)} combinations rendered in {seconds:.0f} s")
    yield found
    shutil.rmtree(base)


@pytest.fixture
def copy(copie: object, template: Path) -> Callable[..., Path]:
    """pytest-copie's copy with the given answers: the project's folder, or the exception, which it would hide."""

    def run(**answers: object) -> Path:
        result: Result = copie.copy(extra_answers=answers, template_dir=template)  # type: ignore[attr-defined]
        if result.exception is not None:
            raise result.exception
        assert result.exit_code == 0 and result.project_dir is not None
        return result.project_dir

    return run


@pytest.fixture
def make_tree(template: Path, tmp_path: Path) -> Callable[[Answers], Tree]:
    """Render the given answers, the rest by default, into a folder of the test's own."""

    def run(answers: Answers) -> Tree:
        root = tmp_path / f"tree{len(list(tmp_path.glob('tree*')))}" / "demo-stack"
        return read_tree(render(template, root, answers), answers)

    return run
