"""docs/security.md names tests that exist for all that it says, and the walk over all routes for a weakness of one."""

import re

from combinations import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"(?m)^def (test_\w+)", path.read_text())
}
CHECKS = set(re.findall(r"(?m)^def (\w+)\(it: Running\)", (ROOT / "tests/e2e/test_scenarios.py").read_text()))
WALKS = {"test_without_a_login", "test_a_user_without_rights"}


def rows() -> dict[str, str]:
    """Return the table of weaknesses: identifier -> what the last column says."""
    cells = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| CVE-")]
    return {name: row[-1] for row in cells for name in row[0].split(", ")}


def protected() -> dict[str, list[str]]:
    """Return the table of what is protected: what -> the names in its last column."""
    lines = PAGE.partition("## What is protected")[2].partition("\n## ")[0].splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][2:]
    return {row[0]: re.findall(r"`(\w+)`", row[2]) for row in cells}


def missing(text: str) -> set[str]:
    """Return the tests that a text names and that do not exist."""
    return set(re.findall(r"`(?:tests/[\w/]*)?(test_\w+)`", text)) - TESTS


def test_tests_that_are_named_exist() -> None:
    """Nobody is told of a test that was renamed."""
    assert len(rows()) > 10 and not missing(PAGE)
    assert missing("see `test_that_nobody_wrote` and `test_without_a_login`") == {"test_that_nobody_wrote"}


def test_what_is_said_is_tried() -> None:
    """Every row of both tables names tests, or checks of the scenarios, that exist."""
    assert len(protected()) > 15
    for what, names in protected().items():
        assert names and set(names) <= TESTS | CHECKS, f"{what}: {names}"
    assert [name for name, text in rows().items() if not re.search(r"`test_\w+`", text)] == []


def test_a_weakness_of_a_route_is_walked_to() -> None:
    """Where a row names the walk, attacks.py says which routes it must go to; where it says so, the row names it."""
    attacks = (ROOT / "tests" / "e2e" / "attacks.py").read_text()
    walked = set(re.findall(r'(?m)^    "(CVE-[\d-]+)":', attacks))
    assert walked == {name for name, text in rows().items() if any(f"`{walk}`" in text for walk in WALKS)} - {
        "CVE-2026-2635"  # a password, on any route
    }
