"""Makes a release: `make release VERSION=1.2.0`.

Refuses unless the work tree is clean, the version follows the last one, CHANGELOG.md has something under Unreleased
with a line "When you update", UPGRADING.md has notes for it, and every long test has passed on these files (`make
test-all`), or ALTHOUGH='…' says why not: the commit's message keeps it. Then it dates the changelog's section, sets
the version, adds to the ledger, runs the tests that guard updates, commits as `Release v1.2.0` and tags. If a step
fails, the work tree is as it was. Nothing is pushed.
"""

import datetime
import re
import subprocess
import sys
from pathlib import Path

from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parent.parent
GUARDS = ("test_ledger.py", "test_golden.py", "test_update.py", "test_project.py", "test_release.py")
UNRELEASED = "## [Unreleased]\n"


class Refused(Exception):
    """Why there is no release, in one sentence."""


def next_version(text: str, last: str) -> str:
    """Return the version without a `v`. Raises Refused if it is none or does not come after the last one."""
    try:
        version = Version(text)
    except InvalidVersion:
        version = None
    if version is None or not re.fullmatch(r"\d+\.\d+\.\d+", str(version)):
        raise Refused(f"VERSION={text} is not a version like 1.2.0")
    if version <= Version(last):
        raise Refused(f"VERSION={text} does not come after {last}")
    return str(version)


def dated(changelog: str, version: str, day: datetime.date) -> str:
    """Return the changelog with what was unreleased as this version's section, under an empty Unreleased.

    Raises Refused if there is nothing, or no line that says what the owner of a stack does.
    """
    before, found, rest = changelog.partition(UNRELEASED)
    text = re.split(r"(?m)^## \[", rest)[0]
    if not found or not text.strip():
        raise Refused("CHANGELOG.md has nothing under [Unreleased]")
    if not re.search(r"(?m)^\*\*When you update:\*\* \S", text):
        raise Refused('the unreleased part of CHANGELOG.md has no line "**When you update:** …"')
    return f"{before}{UNRELEASED}\n## [{version}] - {day.isoformat()}\n{rest}"


def check_notes(upgrading: str, version: str) -> None:
    """Raise Refused unless the newest notes are this version's: Copier shows them after an update."""
    notes = re.findall(r"(?m)^### (\S+)$", upgrading.partition("## Notes per release")[2])
    if not notes or notes[0] != version:
        raise Refused(f"the first notes under 'Notes per release' in UPGRADING.md are not those of {version}")


def git(*words: str) -> str:
    """Run git and return what it prints. Raises CalledProcessError."""
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def unproved() -> list[str]:
    """Return the long tests that have not passed on these files, by what tests/extended.py keeps."""
    run = [sys.executable, "-m", "pytest", "-q", "--everything", "--collect-only", "-m", "long"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    if done.returncode not in (0, 5):  # 5: there is none
        raise Refused(f"pytest could not list the long tests:\n{done.stdout}{done.stderr}")
    return [line for line in done.stdout.splitlines() if line.startswith("tests/") and "::" in line]


def message(version: str, missing: list[str], although: str) -> str:
    """Return the commit's message. Raises Refused if long tests are missing and nothing is said about it."""
    title = f"Release v{version}"
    if not missing:
        return title
    if not although.strip():
        raise Refused(
            f"{len(missing)} long tests have not passed on these files, {missing[0]} among them: "
            "run 'make test-all', or say why not with ALTHOUGH='…'"
        )
    files = " ".join(sorted({test.split("::")[0] for test in missing}))
    return f"{title}\n\n{len(missing)} long tests have not passed on these files, in\n{files}:\n{although.strip()}"


def release(text: str = "", although: str = "") -> None:
    """Make the release. Raises Refused."""
    project = (ROOT / "pyproject.toml").read_text()
    last = re.search(r'(?m)^version = "(.+)"$', project)[1]
    version = next_version(text, last)
    if git("status", "--porcelain"):
        raise Refused("the work tree has changes that are not committed")
    changelog = dated((ROOT / "CHANGELOG.md").read_text(), version, datetime.date.today())
    check_notes((ROOT / "UPGRADING.md").read_text(), version)
    said = message(version, unproved(), although)
    try:
        (ROOT / "CHANGELOG.md").write_text(changelog)
        (ROOT / "pyproject.toml").write_text(project.replace(f'version = "{last}"', f'version = "{version}"', 1))
        run = [sys.executable, "tests/ledger.py", "add", f"v{version}"]
        subprocess.run(run, cwd=ROOT, check=True)
        run = [sys.executable, "-m", "pytest", "-q", *(f"tests/{name}" for name in GUARDS)]
        subprocess.run(run, cwd=ROOT, check=True)
        git("commit", "--all", "--message", said)
    except BaseException as error:
        git("checkout", "--", ".")
        if isinstance(error, subprocess.CalledProcessError):
            raise Refused("a step failed, and nothing was changed; see above") from None
        raise
    git("tag", "--annotate", f"v{version}", "--message", f"v{version}")
    print(f"release: v{version} is committed and tagged; 'git push --follow-tags' publishes it")


if __name__ == "__main__":
    try:
        release(*sys.argv[1:])
    except Refused as refused:
        sys.exit(f"release: error: {refused}")
