"""Named stacks as real files under tests/golden/: a review shows what a change does to what users get.

After a change that is meant: `pytest tests/test_golden.py --golden-update` (or `make golden`), and read the diff.
"""

import re
import shutil
from pathlib import Path

import pytest
from combinations import Answers
from rendering import Tree, read_tree, render

GOLDEN = Path(__file__).parent / "golden"

SCENARIOS: dict[str, Answers] = {
    "laptop": {},
    "team": {"purpose": "team"},
    "team-mlflow-auth": {
        "purpose": "team",
        "artifact_store": "minio",
        "artifact_access": "direct",
        "auth": "mlflow",
    },
    "cloud": {"purpose": "cloud"},
    "azure": {
        "purpose": "cloud",
        "artifact_store": "azure",
        "auth": "mlflow",
        "url_prefix": "/mlflow",
        "domain": "mlflow.example.com",
    },
    "cluster": {"purpose": "cloud", "kubernetes": "kustomize"},
    "gcs": {
        "backend": "postgres",
        "artifact_store": "gcs",
        "artifact_access": "direct",
        "reverse_proxy": "none",
        "auth": "none",
    },
    "shared-disk": {
        "backend": "postgres",
        "artifact_store": "local",
        "reverse_proxy": "nginx",
        "auth": "mlflow",
        "url_prefix": "/mlflow",
    },
    "caddy-certificates": {
        "purpose": "team",
        "artifact_access": "presigned",
        "tls": "acme",
        "domain": "mlflow.example.com",
        "store_domain": "s3.example.com",
    },
    "nginx-certificates": {
        "backend": "postgres",
        "artifact_store": "seaweedfs",
        "artifact_access": "direct",
        "reverse_proxy": "nginx",
        "tls": "self-signed",
        "auth": "mlflow",
        "url_prefix": "/mlflow",
        "domain": "mlflow.example.com",
    },
    "sqlite-minio": {
        "backend": "sqlite",
        "artifact_store": "minio",
        "artifact_access": "proxied",
        "reverse_proxy": "none",
        "auth": "mlflow",
    },
}

# Copied byte for byte (test_plain_files_are_copied_byte_for_byte), and large: copies of the lock files and of
# stackops would hide what a review is for. Which of them a stack has is told by the table in invariants.py.
LEFT_OUT = re.compile(r"mlflow/requirements/.*\.txt|stackops/.*|transfer/artifacts_move/.*")


def golden_files(tree: Tree) -> dict[str, tuple[str, bool]]:
    """Return text and executability of each file that is compared; the template's address and version are left out."""
    files = {}
    for name, text in tree.files.items():
        if not LEFT_OUT.fullmatch(name):
            if name == ".copier-answers.yml":
                text = re.sub(r"(?m)^(_src_path|_commit):.*\n", "", text)
            files[name] = (text, bool(tree.modes[name] & 0o100))
    return files


def write(folder: Path, files: dict[str, tuple[str, bool]]) -> None:
    """Write the files of a scenario anew."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, (text, runs) in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755 if runs else 0o644)


def differences(rendered: dict[str, tuple[str, bool]], kept: dict[str, tuple[str, bool]]) -> list[str]:
    """Return which files differ, and the first line that does."""
    found = [f"{name}: is new" for name in sorted(rendered.keys() - kept.keys())]
    found += [f"{name}: is gone" for name in sorted(kept.keys() - rendered.keys())]
    for name in sorted(rendered.keys() & kept.keys()):
        (text, runs), (old, ran) = rendered[name], kept[name]
        if runs != ran:
            found.append(f"{name}: can {'now' if runs else 'no longer'} be run")
        if text != old:
            lines = zip(text.splitlines() + [""], old.splitlines() + [""], strict=False)
            number, (new_line, old_line) = next(
                ((n, pair) for n, pair in enumerate(lines, 1) if pair[0] != pair[1]), (0, ("more or fewer lines", ""))
            )
            found.append(f"{name}:{number}: was {old_line!r}, is {new_line!r}")
    return found


@pytest.mark.parametrize("name", SCENARIOS)
def test_golden(name: str, template: Path, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """The rendered scenario equals its folder, file modes too."""
    answers = {"project_name": name} | SCENARIOS[name]
    rendered = golden_files(read_tree(render(template, tmp_path / name, answers), answers))
    if pytestconfig.getoption("--golden-update"):
        write(GOLDEN / name, rendered)
    assert (GOLDEN / name).is_dir(), "run 'make golden' to write it, and read it"
    kept = golden_files(read_tree(GOLDEN / name, answers))
    assert differences(rendered, kept) == [], "run 'make golden' if that is meant, and read the diff"


def test_no_scenario_is_left_over(pytestconfig: pytest.Config) -> None:
    """A scenario that was renamed leaves no folder behind."""
    there = {path.name for path in GOLDEN.iterdir()} if GOLDEN.exists() else set()
    if pytestconfig.getoption("--golden-update"):
        for name in there - SCENARIOS.keys():
            shutil.rmtree(GOLDEN / name)
        return
    assert there == set(SCENARIOS)


def test_a_difference_is_found(template: Path, tmp_path: Path) -> None:
    """A text, a mode, a new and a missing file are each seen."""
    rendered = golden_files(read_tree(render(template, tmp_path / "demo", {}), {}))
    write(tmp_path / "golden", rendered)
    assert differences(rendered, golden_files(read_tree(tmp_path / "golden", {}))) == []
    (tmp_path / "golden/Makefile").write_text("other\n")
    (tmp_path / "golden/NOTES.md").unlink()
    (tmp_path / "golden/extra").write_text("x\n")
    (tmp_path / "golden/scripts/up.sh").chmod(0o644)
    faults = differences(rendered, golden_files(read_tree(tmp_path / "golden", {})))
    assert [fault.partition(":")[0] for fault in faults] == ["NOTES.md", "extra", "Makefile", "scripts/up.sh"]
