"""Prints what the end-to-end suite ran, as a table at the end of the run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from stacks import Stack

COLUMNS = ("backend", "artifact_store", "artifact_access", "reverse_proxy", "auth", "url_prefix", "domain")


@dataclass
class Row:
    """One stack that was started; it goes on counting while its checks run."""

    scenario: str
    stack: Stack
    checks: int = 0  # how many were to pass
    answers: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        """Read the answers now: the stack's folder is gone when the table is printed."""
        self.answers = self.stack.answers

    def cells(self) -> tuple[str, ...]:
        """Return the row's texts."""
        answers = " ".join(str(self.answers.get(name) or "-") for name in COLUMNS)
        ready = f"{self.stack.seconds_to_ready:.0f} s" if self.stack.seconds_to_ready else "never"
        return self.scenario, answers, ready, f"{len(self.stack.passed)} of {self.checks}"


ROWS = pytest.StashKey[list[Row]]()


def pytest_configure(config: pytest.Config) -> None:
    """Start with an empty table."""
    config.stash[ROWS] = []


@pytest.fixture(scope="session")
def in_table(pytestconfig: pytest.Config) -> Callable[[str, Stack], Row]:
    """Give a stack that is about to be started its row, and return it."""

    def add(scenario: str, stack: Stack) -> Row:
        pytestconfig.stash[ROWS].append(row := Row(scenario, stack))
        return row

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, if any stack was started."""
    rows = [row.cells() for row in terminalreporter.config.stash[ROWS]]
    if not rows:
        return
    rows.insert(0, ("scenario", f"answers ({', '.join(COLUMNS)})", "ready", "checks passed"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    terminalreporter.section("stacks that were started")
    for row in rows:
        terminalreporter.write_line(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        )
