"""Stacks in repositories of their own, and `copier update` as `make update` runs it."""

import re
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any

import copier
from combinations import ROOT, Answers
from extended import releases
from rendering import TEMPLATE_PARTS, copy_template, read_tree, render

HERE = "v99.0.0"  # what is here, committed or not

# The files that belong to the owner: the template writes none of them, or only once.
OWNED = {
    ".env": "STACK_UID=1\nSTACK_GID=1\nMINE=1\n",
    "secrets/crypto_kek_passphrase": "mine\n",
    "compose.override.yaml": "services:\n  mlflow:\n    environment:\n      MINE: 1\n",
    "mlflow/requirements.extra.txt": "mlflow-my-plugin==1.0\n",
    "local.mk": "mine:\n\techo mine\n",
    "nginx/local.d/x.conf": "location = /mine { return 204; }\n",
    "NOTES.md": "# Ours\n",
}


def git(folder: Path, *arguments: str) -> str:
    """Run git and return what it prints."""
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path, message: str, tag: str | None = None) -> None:
    """Commit everything, and tag it."""
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)
    if tag:
        git(folder, "tag", "--annotate", tag, "--message", tag)


def edit(path: Path, old: str, new: str) -> None:
    """Replace a text that must be there once or more."""
    text = path.read_text()
    assert old in text, f"{path.name} holds no {old!r}: the edit needs another place"
    path.write_text(text.replace(old, new, 1))


def with_releases(template: Path) -> Path:
    """Make a clone of this repository with a tag for each release, and one for what is here.

    Tags do not travel with every clone, so they are set by the releases' commits.
    """
    subprocess.run(["git", "clone", "--quiet", "--no-tags", str(ROOT), str(template)], check=True)
    for version, sha in releases().items():
        git(template, "tag", "--annotate", version, sha, "--message", version)
    for path in template.iterdir():
        if path.name in TEMPLATE_PARTS:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    copy_template(template)
    git(template, "add", "--all")
    git(template, "commit", "--quiet", "--allow-empty", "--message", "Here")
    git(template, "tag", "--annotate", HERE, "--message", HERE)
    return template


def stack_from(template: Path, folder: Path, answers: Answers, version: str) -> Path:
    """Render a version into a repository of its own and commit it, as a new owner does."""
    render(template, folder, answers, vcs_ref=version)
    git(folder, "init", "--quiet")
    commit(folder, "Start")
    return folder


def update(stack: Path, version: str, **answers: Any) -> None:
    """Update like `make update` does: defaults, no --trust."""
    copier.run_update(stack, data=answers, defaults=True, overwrite=True, quiet=True, unsafe=False, vcs_ref=version)


def conflicts(stack: Path) -> list[str]:
    """Return the files in which an update met an edit."""
    marked = [
        str(path.relative_to(stack))
        for path in stack.rglob("*")
        if path.is_file() and ".git" not in path.parts and re.search(rb"(?m)^(<<<<<<<|>>>>>>>) ", path.read_bytes())
    ]
    return marked + [str(path.relative_to(stack)) for path in stack.rglob("*.rej")]


def texts(folder: Path, own: Collection[str] = OWNED) -> dict[str, str]:
    """Return every text of a stack but its owner's; the answers file without what names the template."""
    files = read_tree(folder, {}).files
    answers = re.sub(r"(?m)^(_src_path|_commit):.*\n", "", files[".copier-answers.yml"])
    return {name: text for name, text in (files | {".copier-answers.yml": answers}).items() if name not in own}
