"""What each release has promised to the stacks rendered from it: tests/ledger.yml, and how a release is added.

python tests/ledger.py add v1.2.0     # writes down what is new here since the newest release in the ledger
"""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from combinations import ROOT, questions

LEDGER = ROOT / "tests" / "ledger.yml"
HEAD = """\
# What the releases have promised: names of questions with their values, computed flags that the _exclude table may use,
# and paths of rendered files. Each release lists what it added. `make release` writes it; only `bridges` is by hand:
#   questions: {old: new}     # the default of `new` reads the answer to `old`
#   paths: {old: sentence}    # what the owner of an edited `old` does
"""


@dataclass
class Promises:
    """Questions with their values (none: free text), computed flags and paths."""

    questions: dict[str, list[str]] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def without(self, other: "Promises") -> "Promises":
        """Return what is here and not there; a question that gained values is there with those."""
        asked = {
            name: [value for value in values if value not in other.questions.get(name, [])]
            for name, values in self.questions.items()
        }
        return Promises(
            {name: values for name, values in asked.items() if values or name not in other.questions},
            [name for name in self.flags if name not in other.flags],
            [path for path in self.paths if path not in other.paths],
        )

    def and_(self, other: "Promises") -> "Promises":
        """Return both."""
        names = [*self.questions, *(name for name in other.questions if name not in self.questions)]
        asked = {name: self.questions.get(name, []) + other.questions.get(name, []) for name in names}
        return Promises(asked, self.flags + other.flags, self.paths + other.paths)


def paths(root: Path) -> list[str]:
    """Return the paths that the files of a template, which git knows, get in a stack."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "template"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    names = (name.removeprefix("template/") for name in listed.split("\0") if name and (root / name).exists())
    return sorted(
        name.removesuffix(".jinja").replace("{{ _copier_conf.answers_file }}", ".copier-answers.yml") for name in names
    )


def here(root: Path = ROOT) -> Promises:
    """Return what the template in a folder offers."""
    found = Promises(paths=paths(root))
    for name, body in questions(root).items():
        if body.get("when") is False:
            found.flags.append(name)
        else:
            found.questions[name] = list(_values(body.get("choices", {})))
    return found


def _values(choices: Any) -> Iterator[str]:
    for choice in choices.values() if isinstance(choices, dict) else choices:
        yield choice["value"] if isinstance(choice, dict) else choice


def read() -> dict[str, Any]:
    """Return the ledger."""
    return yaml.safe_load(LEDGER.read_text()) if LEDGER.exists() else {"bridges": {}, "releases": {}}


def releases() -> dict[str, Promises]:
    """Return what each release added, oldest first."""
    return {version: Promises(**added) for version, added in read()["releases"].items()}


def promised(newest: str = "") -> Promises:
    """Return what all releases together have promised, or those up to the one named."""
    total = Promises()
    for version, added in releases().items():
        total = total.and_(added)
        if version == newest:
            break
    return total


def add(version: str, root: Path = ROOT) -> None:
    """Write down what a release adds. Raises ValueError if the ledger has it."""
    ledger = read()
    if version in ledger["releases"]:
        raise ValueError(f"the ledger has {version}")
    ledger["releases"][version] = vars(here(root).without(promised()))
    LEDGER.write_text(HEAD + yaml.safe_dump(ledger, sort_keys=False, width=120, default_flow_style=None))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["add", version]:
            add(version)
        case ["add", version, root]:
            add(version, Path(root))
        case _:
            sys.exit(__doc__)
