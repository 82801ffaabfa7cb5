"""Every valid combination of answers, checked by what holds for all of them and by the real tools."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import invariants
import pytest
from rendering import Tree


def assert_none(faults: Iterable[tuple[Tree, str]]) -> None:
    """Fail with every distinct fault once, with how many combinations have it and the name of one."""
    seen: dict[str, list[str]] = defaultdict(list)
    for tree, fault in faults:
        seen[fault].append(tree.name)
    lines = [f"{fault}  [{len(names)} x, e.g. {names[0]}]" for fault, names in seen.items()]
    assert not lines, "\n" + "\n".join(lines[:60])


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
