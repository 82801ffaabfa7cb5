"""The questionnaire as a person meets it: `copier copy` in a real terminal."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest
import yaml
from combinations import questions
from linters import tool

ENTER, DOWN = "\r", "\x1b[B"
DRAWN = "\x1b[?7h"  # the prompt is complete, and reads the keys
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


@pytest.fixture
def ask(template: Path, tmp_path: Path) -> Callable[..., tuple[list[str], str, Path]]:
    """Run the questionnaire; return the questions asked, all that was printed, and the project."""

    def run(**keys: str) -> tuple[list[str], str, Path]:
        """Press the given keys at the named questions, Enter at all others."""
        project = tmp_path / "myproj"
        helps = {name: _begin(body["help"]) for name, body in questions().items() if body.get("when") is not False}
        environment = os.environ | {"TERM": "xterm", "LC_ALL": "C.UTF-8", "PROMPT_TOOLKIT_NO_CPR": "1"}
        child = pexpect.spawn(
            tool("copier"),
            ["copy", str(template), str(project)],
            env=environment,
            encoding="utf-8",
            timeout=60,
            dimensions=(60, 200),
        )
        printed, asked, names = "", [], list(helps)
        try:
            while True:
                patterns = [re.escape(helps[name]) for name in names]
                which = child.expect([*patterns, pexpect.EOF])
                printed += child.before + (child.after if isinstance(child.after, str) else "")
                if which == len(patterns):
                    break
                asked.append(names[which])
                names = names[which + 1 :]  # a redrawn question is not asked again
                child.expect(re.escape(DRAWN))
                printed += child.before + child.after
                child.send(keys.get(asked[-1], "") + ENTER)
            child.close()
            assert child.exitstatus == 0, printed
        finally:
            child.close(force=True)
        return asked, ANSI.sub("", printed), project

    return run


def _begin(text: str) -> str:
    """Return the first words of a help text: the terminal may wrap the rest."""
    return " ".join(text.split()[:3])


def answers_of(project: Path) -> dict[str, str]:
    """Return the answers that were kept."""
    return yaml.safe_load((project / ".copier-answers.yml").read_text())


def test_enter_is_enough(ask: Callable[..., tuple[list[str], str, Path]]) -> None:
    """The default path asks at most eight questions and prints the next three commands."""
    asked, printed, project = ask()
    assert asked[:4] == ["project_name", "purpose", "backend", "artifact_store"]
    assert len(asked) <= 8, asked
    assert (project / "compose.yaml").exists() and (project / "scripts/local.sh").exists()
    assert answers_of(project)["backend"] == "sqlite"
    after = printed[printed.index("is ready in") :]
    commands = re.findall(r"(?m)^ +(cd .*|make\b.*)$", after)
    assert len(commands) == 3 and commands[0].startswith("cd ") and commands[1].startswith("make local"), after


def test_a_team_is_three_keys_away(ask: Callable[..., tuple[list[str], str, Path]]) -> None:
    """Choosing 'team' changes the defaults of everything that follows."""
    asked, printed, project = ask(purpose=DOWN)
    kept = answers_of(project)
    assert (kept["backend"], kept["artifact_store"], kept["reverse_proxy"]) == ("postgres", "seaweedfs", "nginx")
    assert {"domain", "artifact_access", "auth"} <= set(asked)
    after = printed[printed.index("is ready in") :]
    assert re.findall(r"(?m)^ +(cd|make up|make check)\b", after) == ["cd", "make up", "make check"], after


def test_a_choice_that_cannot_work_is_greyed_with_its_reason(ask: Callable[..., tuple[list[str], str, Path]]) -> None:
    """With no proxy, 'basic' is shown with the sentence that says why not, and the cursor jumps over it."""
    _, printed, project = ask(auth=DOWN)
    assert "auth=basic needs a reverse proxy" in " ".join(printed.split())
    assert answers_of(project)["auth"] == "mlflow"
