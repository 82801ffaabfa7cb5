"""What a run says at its end. With two processes each hands what it has to say to the one that prints."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from stacks import Stack

COLUMNS = ("backend", "artifact_store", "artifact_access", "reverse_proxy", "tls", "auth", "url_prefix", "domain")


@dataclass
class Row:
    """One stack that was started; it goes on counting while its checks run."""

    scenario: str
    stack: "Stack"
    checks: int = 0  # how many were to pass
    answers: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        """Read the answers now: the stack's folder is gone when the table is printed."""
        self.answers = self.stack.answers

    def cells(self) -> list[str]:
        """Return the row's texts."""
        answers = " ".join(str(self.answers.get(name) or "-") for name in COLUMNS)
        ready = f"{self.stack.seconds_to_ready:.0f} s" if self.stack.seconds_to_ready else "never"
        return [self.scenario, answers, ready, f"{len(self.stack.passed)} of {self.checks}"]


@dataclass
class Summary:
    """What there is to say: lines, and a table of the stacks that were started."""

    lines: list[str] = field(default_factory=list)
    started: list[Row] = field(default_factory=list)
    cells: list[list[str]] = field(default_factory=list)  # of rows from other processes

    def rows(self) -> list[list[str]]:
        """Return the texts of all rows in order."""
        return sorted([*self.cells, *(row.cells() for row in self.started)])


KEY = pytest.StashKey[Summary]()


def say(config: pytest.Config, line: str) -> None:
    """Print this line once at the end."""
    config.stash[KEY].lines.append(line)


def pytest_configure(config: pytest.Config) -> None:
    """Begin with nothing to say."""
    config.stash[KEY] = Summary()


@pytest.fixture(scope="session")
def in_table(pytestconfig: pytest.Config) -> Callable[[str, "Stack"], Row]:
    """Give a stack that is about to be started its row, and return it."""

    def add(scenario: str, stack: "Stack") -> Row:
        pytestconfig.stash[KEY].started.append(row := Row(scenario, stack))
        return row

    return add


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand over, in a process that pytest-xdist has started."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        summary = session.config.stash[KEY]
        output["summary"] = {"lines": summary.lines, "cells": summary.rows()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what a process has handed over; one that died has nothing."""
    handed, summary = getattr(node, "workeroutput", {}).get("summary", {}), node.config.stash[KEY]
    summary.cells += handed.get("cells", [])
    summary.lines += handed.get("lines", [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the lines, and the table if any stack was started."""
    summary = terminalreporter.config.stash[KEY]
    for line in dict.fromkeys(summary.lines):
        terminalreporter.write_line(line)
    if not (rows := summary.rows()):
        return
    rows.insert(0, ["scenario", f"answers ({', '.join(COLUMNS)})", "ready", "checks passed"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    terminalreporter.section("stacks that were started")
    for row in rows:
        terminalreporter.write_line(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        )
