"""Every valid combination of answers, checked by what holds for all of them and by the real tools."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import caddy_config
import compose_model
import invariants
import linters
import needs
import nginx_config
import pytest
from rendering import Tree, assert_none


@pytest.mark.parametrize("check", invariants.CHECKS, ids=lambda check: check.__name__)
def test_invariant(check: Callable[[Tree], list[str]], trees: list[Tree]) -> None:
    """See invariants.py."""
    assert_none((tree, fault) for tree in trees for fault in check(tree))


def test_plain_files_are_copied_byte_for_byte(trees: list[Tree], template: Path) -> None:
    """A file without .jinja arrives as it is, so that the linters of this repository see what users get."""
    plain = {
        path.relative_to(template / "template").as_posix(): path.read_bytes().decode()
        for path in (template / "template").rglob("*")
        if path.is_file() and path.suffix != ".jinja"
    }
    assert_none(
        (tree, f"{name}: differs from its source")
        for tree in trees
        for name, text in tree.files.items()
        if plain.get(name, text) != text
    )


@pytest.fixture(scope="module")
def models(trees: list[Tree], tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Tree, compose_model.Model]]:
    """Each stack as Compose understands it. Compose's own complaints end the test here."""
    needs.compose()
    folders = [tmp_path_factory.mktemp("env") for _ in trees]
    with ThreadPoolExecutor(2) as pool:
        return list(zip(trees, pool.map(compose_model.parse, trees, folders), strict=True))


def test_compose_reads_it_and_the_model_is_safe(models: list[tuple[Tree, compose_model.Model]]) -> None:
    """Every container is locked in, every image pinned, every secret a file, every port where it belongs."""
    assert_none((tree, fault) for tree, model in models for fault in compose_model.model_faults(model, tree.answers))


def test_nginx_accepts_its_configuration(models: list[tuple[Tree, compose_model.Model]], tmp_path: Path) -> None:
    """`nginx -t`, after the image's own entrypoint has filled in the settings."""
    needs.engine()
    assert_none(nginx_config.nginx_faults(models, tmp_path))


def test_caddy_accepts_its_configuration(models: list[tuple[Tree, compose_model.Model]], tmp_path: Path) -> None:
    """`caddy validate`, and `caddy fmt` would change nothing."""
    needs.engine()
    assert_none(caddy_config.caddy_faults(models, tmp_path))


@pytest.mark.parametrize(
    "lint",
    [
        linters.yamllint_faults,
        linters.hadolint_faults,
        linters.shellcheck_faults,
        linters.shfmt_faults,
        linters.ruff_faults,
        linters.workflow_faults,
        linters.renovate_faults,
        linters.hook_faults,
        linters.make_faults,
        linters.python_compiles,
    ],
    ids=lambda lint: lint.__name__,
)
def test_tool(lint: Callable[[list[Tree]], list[tuple[Tree, str]]], trees: list[Tree]) -> None:
    """See linters.py."""
    assert_none(lint(trees))


def test_the_hooks_of_a_new_stack_pass(trees: list[Tree], tmp_path: Path) -> None:
    """`pre-commit run --all-files` would change nothing and complain about nothing."""
    assert_none(linters.precommit_faults(trees, tmp_path))
