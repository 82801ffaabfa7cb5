"""No update takes away what a release has promised: questions, their values, computed flags, paths of files."""

import re
from typing import Any

import pytest
from combinations import questions, settings
from extended import releases as released
from ledger import Promises, here, promised, read, releases


def broken(then: Promises, now: Promises, bridges: dict[str, dict[str, str]]) -> list[str]:
    """Return what was promised and is not there, unless a bridge leads on.

    Bridges lead from a question to the one whose default reads the old answer, and from a path to a sentence about
    what its owner does. A value has no bridge: it is never removed.
    """
    lost = then.without(now)
    return [
        *(f"question {name}" for name in lost.questions if name not in now.questions | bridges.get("questions", {})),
        *(f"{name}={value}" for name, values in lost.questions.items() if name in now.questions for value in values),
        *(f"flag {name}" for name in lost.flags),
        *(f"path {path}" for path in lost.paths if path not in bridges.get("paths", {})),
    ]


def test_nothing_promised_is_gone() -> None:
    """A stack's old answers, its owner's edits and the old release's flags find their place in what is here."""
    assert broken(promised(), here(), read()["bridges"]) == []


def test_a_bridge_leads_on() -> None:
    """A renamed question reads the old answer in its default, and is there."""
    asked = questions()
    for old, new in read()["bridges"].get("questions", {}).items():
        assert re.search(rf"\b{old}\b", str(asked[new].get("default"))), f"{new} does not read {old}"


def test_the_table_of_files_speaks_in_flags_of_all_releases() -> None:
    """Copier reads the new table with the old release's flags: one that a release lacks has a default in its row."""
    first = next(iter(releases().values()))
    rows = settings()["_exclude"]
    needed = {
        flag for row in rows for flag in re.findall(r"(?:if|not) (\w+) %\}|default\((\w+)\)", row) for flag in flag
    }
    needed -= {"", "true"}
    assert needed <= set(first.flags), needed - set(first.flags)


def test_the_ledger_has_every_release() -> None:
    """Each, in the order in which they came."""
    known = list(releases())
    in_history = list(reversed(released()))
    assert known[: len(in_history)] == in_history and len(known) <= len(in_history) + 1


THEN = Promises({"backend": ["sqlite", "postgres"], "domain": []}, ["uses_sqlite"], ["Makefile"])


@pytest.mark.parametrize(
    ("now", "bridges", "lost"),
    [
        (THEN, {}, []),
        (Promises({"backend": ["sqlite", "postgres", "managed"], "domain": []}, ["uses_sqlite"], ["Makefile"]), {}, []),
        (Promises({"backend": ["postgres"], "domain": []}, ["uses_sqlite"], ["Makefile"]), {}, ["backend=sqlite"]),
        (Promises({"backend": ["sqlite", "postgres"]}, ["uses_sqlite"], ["Makefile"]), {}, ["question domain"]),
        (
            Promises({"backend": ["sqlite", "postgres"], "host": []}, ["uses_sqlite"], ["Makefile"]),
            {"questions": {"domain": "host"}},
            [],
        ),
        (Promises(THEN.questions, [], []), {}, ["flag uses_sqlite", "path Makefile"]),
        (Promises(THEN.questions, THEN.flags, []), {"paths": {"Makefile": "use just"}}, []),
    ],
)
def test_what_is_missed(now: Promises, bridges: dict[str, Any], lost: list[str]) -> None:
    """The comparison finds what is gone, and nothing else."""
    assert broken(THEN, now, bridges) == lost
