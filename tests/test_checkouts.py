"""Checkouts on Windows and macOS: line ends, names and the executable bit survive."""

import re
import subprocess
from pathlib import Path

import pytest
from combinations import ROOT
from rendering import TEMPLATE_PARTS, Tree, copy_template, render
from updates import commit, git

# What Windows forbids in a name: these characters, a dot or a blank at the end, the names of devices.
FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)


def crlf(folder: Path) -> list[str]:
    """Return the files of a checkout that hold a carriage return."""
    names = git(folder, "ls-files").splitlines()
    return [name for name in names if b"\r" in (folder / name).read_bytes()]


def cloned(source: Path, destination: Path) -> Path:
    """Clone like git for Windows does by default."""
    subprocess.run(
        ["git", "clone", "--quiet", "--config", "core.autocrlf=true", str(source), str(destination)], check=True
    )
    return destination


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """git for Windows' default for every git of this test, Copier's too."""
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.autocrlf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "true")


def test_line_ends(windows: None, tmp_path: Path) -> None:
    """The template cloned, a stack rendered from it, committed and cloned: no carriage return anywhere."""
    source = copy_template(tmp_path / "source")
    (source / ".gitattributes").write_bytes((ROOT / ".gitattributes").read_bytes())
    git(source, "init", "--quiet")
    commit(source, "one", "v1.0.0")
    template = cloned(source, tmp_path / "template")
    assert crlf(template) == []
    stack = render(str(template), tmp_path / "demo", {"purpose": "team"}, vcs_ref="v1.0.0")
    git(stack, "init", "--quiet")
    commit(stack, "Start")
    colleague = cloned(stack, tmp_path / "colleague")
    assert crlf(colleague) == []
    # What the attributes prevent: without them this very clone has carriage returns.
    (stack / ".gitattributes").unlink()
    commit(stack, "Without")
    assert crlf(cloned(stack, tmp_path / "without")) != []


def test_executable_files_stay_executable(tmp_path: Path) -> None:
    """Every script has its bit in git, which keeps it where a file system has none."""
    stack = render(copy_template(tmp_path / "template"), tmp_path / "demo", {"purpose": "team"})
    git(stack, "init", "--quiet")
    commit(stack, "Start")
    modes = {line.split("\t")[1]: line.split()[0] for line in git(stack, "ls-files", "--stage").splitlines()}
    # One of them is read by others, and has no first line that says what runs it.
    scripts = {name for name in modes if name.startswith("scripts/") and (stack / name).read_text().startswith("#!")}
    assert len(scripts) >= 6
    assert {name for name, mode in modes.items() if mode == "100755"} >= scripts


def test_names(trees: list[Tree]) -> None:
    """Every name of the template and of a stack can be written on Windows, and none differs by its case alone."""
    template = git(ROOT, "ls-files", "--", *TEMPLATE_PARTS).splitlines()
    for names in ({name for tree in trees for name in tree.files}, set(template)):
        assert [name for name in names for part in name.split("/") if FORBIDDEN.search(part)] == []
        assert len({name.lower() for name in names}) == len(names)
    assert FORBIDDEN.search('{% if x %}"y"{% endif %}') and FORBIDDEN.search("aux.sh") and FORBIDDEN.search("a.")
