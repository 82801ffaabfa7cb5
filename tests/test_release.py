"""`make release` refuses what is not ready, and says why."""

import datetime
import importlib.util
import subprocess
from pathlib import Path

import pytest
from combinations import ROOT

SPEC = importlib.util.spec_from_file_location("release", ROOT / "scripts/release.py")
release = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(release)
DAY = datetime.date(2030, 1, 2)
GOOD = "# Changelog\n\n## [Unreleased]\n\n**When you update:** `make up`.\n\n- It.\n\n## [0.2.0] - 2029-01-01\n"


@pytest.mark.parametrize("text", ["", "v1", "1.2", "1.2.0rc1", "latest", "0.2.0", "0.1.9"])
def test_a_version_that_does_not_follow(text: str) -> None:
    """Only X.Y.Z after the last one."""
    with pytest.raises(release.Refused, match="VERSION="):
        release.next_version(text, "0.2.0")


def test_the_next_version() -> None:
    """With or without a v."""
    assert release.next_version("0.10.0", "0.2.0") == release.next_version("v0.10.0", "0.9.9") == "0.10.0"


def test_the_changelog_gets_its_date() -> None:
    """What was unreleased is the version's, and there is room for what comes."""
    text = release.dated(GOOD, "0.3.0", DAY)
    assert "## [Unreleased]\n\n## [0.3.0] - 2030-01-02\n\n**When you update:**" in text
    assert text.endswith("## [0.2.0] - 2029-01-01\n")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("# Changelog\n", "nothing under"),
        ("## [Unreleased]\n\n## [0.2.0]\n\n- It.\n", "nothing under"),
        ("## [Unreleased]\n\n- It.\n\n## [0.2.0]\n\n**When you update:** x\n", "When you update"),
    ],
)
def test_a_changelog_that_is_not_ready(text: str, why: str) -> None:
    """There must be something, and what the owner does."""
    with pytest.raises(release.Refused, match=why):
        release.dated(text, "0.3.0", DAY)


def test_the_newest_notes_are_of_this_version() -> None:
    """Copier shows the first notes after an update."""
    text = "## Notes per release\n\n### 0.3.0\n\nx\n\n### 0.2.0\n"
    release.check_notes(text, "0.3.0")
    for wrong in (text.replace("### 0.3.0", ""), "### 0.3.0\n"):
        with pytest.raises(release.Refused, match=r"those of 0\.3\.0"):
            release.check_notes(wrong, "0.3.0")


def test_refused_as_a_maintainer_sees_it(tmp_path: Path) -> None:
    """One sentence, exit code 1, nothing changed."""
    here = tmp_path / "template"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(here)], check=True)
    (here / "scripts/release.py").write_text((ROOT / "scripts/release.py").read_text())
    (here / "mine").write_text("x")
    command = [str(ROOT / ".venv/bin/python"), "scripts/release.py", "99.0.0"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "release: error: the work tree has changes that are not committed\n",
    )


def test_long_tests_that_have_not_passed() -> None:
    """They are asked for; a reason is kept in the commit."""
    missing = ["tests/e2e/test_b.py::test_x[1]", "tests/e2e/test_b.py::test_y", "tests/test_a.py::test_z"]
    assert release.message("0.3.0", [], "") == release.message("0.3.0", [], "x") == "Release v0.3.0"
    with pytest.raises(release.Refused, match=r"^3 long tests .*test_b\.py::test_x\[1\] .* 'make test-all'"):
        release.message("0.3.0", missing, " ")
    title, _, *rest = release.message("0.3.0", missing, "no time").splitlines()
    assert title == "Release v0.3.0"
    assert rest == [
        "3 long tests have not passed on these files, in",
        "tests/e2e/test_b.py tests/test_a.py:",
        "no time",
    ]


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone in which everything is ready for 99.0.0, with one quick guard."""
    here = tmp_path / "template"
    subprocess.run(["git", "clone", "--quiet", "--no-tags", str(ROOT), str(here)], check=True)
    for name, mark, more in (
        ("CHANGELOG.md", "## [Unreleased]\n", "\n**When you update:** `make up`.\n\n- It.\n"),
        ("UPGRADING.md", "## Notes per release\n", "\n### 99.0.0\n\nNothing.\n"),
    ):
        text = (here / name).read_text()
        assert text.count(mark) == 1
        (here / name).write_text(text.replace(mark, mark + more))
    (here / "tests/test_guard.py").write_text("def test_guard():\n    pass\n")
    monkeypatch.setattr(release, "ROOT", here)
    monkeypatch.setattr(release, "GUARDS", ("test_guard.py", "test_ledger.py"))
    monkeypatch.setattr(release, "unproved", list)
    release.git("add", "--all")
    release.git("commit", "--quiet", "--message", "Ready")
    return here


def test_a_release(ready: Path) -> None:
    """Changelog, version and ledger say the same; commit and annotated tag carry the name that is looked for."""
    release.release("99.0.0")
    assert release.git("log", "-1", "--format=%s") == "Release v99.0.0" and release.git("status", "--porcelain") == ""
    assert release.git("cat-file", "-t", "v99.0.0") == "tag"
    assert release.git("rev-parse", "v99.0.0^{commit}") == release.git("rev-parse", "HEAD")
    assert f"## [99.0.0] - {datetime.date.today().isoformat()}\n" in (ready / "CHANGELOG.md").read_text()
    assert 'version = "99.0.0"' in (ready / "pyproject.toml").read_text()
    assert "  v99.0.0:" in (ready / "tests/ledger.yml").read_text()


def test_a_release_whose_tests_fail_has_not_been(ready: Path) -> None:
    """One sentence, and files, history and tags are as they were."""
    (ready / "tests/test_guard.py").write_text("def test_guard():\n    assert False\n")
    release.git("commit", "--quiet", "--all", "--message", "Broken")
    before = release.git("rev-parse", "HEAD")
    with pytest.raises(release.Refused, match="nothing was changed"):
        release.release("99.0.0")
    assert release.git("rev-parse", "HEAD") == before and release.git("status", "--porcelain") == ""
    assert release.git("tag", "--list", "v99.0.0") == ""
