"""Renders stacks with Copier, as a user without `--trust` would, and reads them into memory."""

import contextlib
import functools
import multiprocessing
import re
import shutil
import stat
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import copier
import copier._main
import copier._template
from combinations import ROOT, Answers, name_of

# What Copier reads of this repository.
TEMPLATE_PARTS = ("copier.yml", "extensions", "template", "UPGRADING.md")


@dataclass(frozen=True)
class Tree:
    """A rendered stack: its answers, where it is, and the text and mode of each file by its POSIX path."""

    answers: Answers
    root: Path
    files: dict[str, str] = field(repr=False)
    modes: dict[str, int] = field(repr=False)

    @property
    def name(self) -> str:
        """The combination's readable name."""
        return name_of(self.answers)

    def __hash__(self) -> int:
        return id(self)


def copy_template(destination: Path) -> Path:
    """Copy the working tree's template, new and changed files too, without git's history, and return where it is."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *TEMPLATE_PARTS],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():  # a deleted file is listed until the deletion is committed
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, destination / name)
    return destination


def render(template: Path, destination: Path, answers: Answers, **options: Any) -> Path:
    """Render without asking anything, and return the destination. Raises what Copier raises."""
    arguments = {"defaults": True, "quiet": True, "unsafe": False, "overwrite": True} | options
    copier.run_copy(str(template), destination, data=answers, **arguments)
    return destination


def read_tree(root: Path, answers: Answers) -> Tree:
    """Read a rendered stack; equal texts are one object in memory. Bytes that are not UTF-8 become surrogates."""
    files, modes = {}, {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and ".git" not in path.relative_to(root).parts:
            name = path.relative_to(root).as_posix()
            files[name] = _shared(path.read_bytes())
            modes[name] = stat.S_IMODE(path.stat().st_mode)
    return Tree(answers, root, files, modes)


@functools.cache
def _shared(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """Let Copier compile each template once: the key holds all that decides what the compiler makes."""
    compiled: dict[tuple[Any, ...], Any] = {}

    class Environment(copier._main.SandboxedEnvironment):
        def compile(self, source: Any, *arguments: Any, **named: Any) -> Any:
            options = (self.trim_blocks, self.lstrip_blocks, self.keep_trailing_newline, self.undefined)
            key = (source, arguments, tuple(sorted(named.items())), options, tuple(self.extensions))
            if key not in compiled:
                compiled[key] = super().compile(source, *arguments, **named)
            return compiled[key]

    with mock.patch.object(copier._main, "SandboxedEnvironment", Environment):
        yield


@contextlib.contextmanager
def shortcuts() -> Iterator[None]:
    """Let Copier do once what it would do anew for each rendering of one template into a folder without git.

    Templates are compiled once, and copier.yml is read once. Git is neither asked for each file whether it ignores file
    modes nor whether the template is a repository. The name of the answers file, and every name without a brace, is not
    rendered again. tests/test_rendering.py proves that the output is the same; together this is many times as fast.
    """
    read = functools.cache(copier._template.load_template_config)
    render_string, relpath = copier._main.Worker._render_string, copier._main.Worker.answers_relpath

    def answers_relpath(worker: Any) -> Path:
        known = vars(worker)
        if "answers_relpath" not in known:
            known["answers_relpath"] = relpath.fget(worker)
        return known["answers_relpath"]

    def render_name(worker: Any, string: str, extra_context: Any = None) -> str:
        plain = "{" not in string and not string.endswith("\n")
        return string if plain else render_string(worker, string, extra_context)

    with (
        compiled_once(),
        mock.patch.object(copier._template, "load_template_config", lambda path: deepcopy(read(path))),
        mock.patch.object(copier._template, "get_repo", lambda url: None),
        mock.patch.object(copier._main.Worker, "_render_string", render_name),
        mock.patch.object(copier._main.Worker, "answers_relpath", property(answers_relpath)),
        mock.patch.object(copier._main.Worker, "_sync_git_index_executable_bit", lambda *_: None),
    ):
        yield


def render_all(template: Path, jobs: list[tuple[Path, Answers]]) -> None:
    """Render every job's answers into its folder, with the shortcuts, in two processes."""
    halves = [(template, jobs[number::2]) for number in range(2)]
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        list(pool.map(_render_jobs, halves))


def _render_jobs(half: tuple[Path, list[tuple[Path, Answers]]]) -> None:
    template, jobs = half
    with shortcuts():
        for destination, answers in jobs:
            render(template, destination, answers)


def assert_none(faults: Iterable[tuple[Tree, str]]) -> None:
    """Fail with every distinct fault once, with how many combinations have it and the name of one."""
    seen: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for tree, fault in faults:
        seen[re.sub(r":\d+:", ":", fault)].append((tree.name, fault))  # whichever line it is in
    lines = [f"{hits[0][1]}  [{len(hits)} x, e.g. {hits[0][0]}]" for hits in seen.values()]
    assert not lines, "\n" + "\n".join(lines[:60])
