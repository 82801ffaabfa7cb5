"""`copier update`, really run between tags, with the owner's files and edits in place and without --trust."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import copier
import pytest
from combinations import ROOT, Answers
from extended import releases
from rendering import copy_template, read_tree, render

STACKS: dict[str, Answers] = {
    "laptop": {},
    "team": {"purpose": "team"},
    "cloud": {"purpose": "cloud"},
    "minio-direct": {
        "backend": "postgres",
        "artifact_store": "minio",
        "artifact_access": "direct",
        "reverse_proxy": "nginx",
        "auth": "mlflow",
        "url_prefix": "/mlflow",
        "domain": "mlflow.example.com",
    },
}

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
IGNORED = {".env", "secrets/crypto_kek_passphrase"}


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


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the template as it is at v1.0.0, and with a typical change of each kind at v1.1.0."""
    source = copy_template(tmp_path_factory.mktemp("tagged"))
    git(source, "init", "--quiet")
    commit(source, "one", "v1.0.0")
    # A change of a default, a new setting, a new target, a new section, a new version, a new file.
    edit(source / "extensions/compose/mlflow.yaml.jinja", "stop_grace_period: 30s", "stop_grace_period: 45s")
    edit(
        source / "extensions/compose/mlflow-image.yaml.jinja",
        "    TMPDIR: /var/tmp\n",
        "    TMPDIR: /var/tmp\n    MLFLOW_NEW:\n",
    )
    edit(source / "template/.env.example.jinja", "\n# Images", "\n# New.\n#MLFLOW_NEW=1\n\n# Images")
    edit(source / "template/Makefile.jinja", "\n-include", "\nnew: ## do something new\n\t@echo new\n\n-include")
    edit(source / "template/README.md.jinja", "\n## Which files", "\n## New\n\nNew.\n\n## Which files")
    edit(source / "extensions/data/versions.yml", "nginx_image: nginx:1", "nginx_image: nginx:2")
    edit(source / "template/NOTES.md", "# Notes", "# Notes of your team")
    (source / "template/docs").mkdir()
    (source / "template/docs/new.md").write_text("# New\n")
    commit(source, "two", "v1.1.0")
    return source


def stack_from(template: Path, folder: Path, answers: Answers, version: str) -> Path:
    """Render a version into a repository of its own and commit it, as a new owner does."""
    render(template, folder, answers, vcs_ref=version)
    git(folder, "init", "--quiet")
    commit(folder, "Start")
    return folder


def give_to_owner(stack: Path) -> None:
    """Write every owned file that makes sense in this stack, and commit."""
    for name, text in OWNED.items():
        if (stack / name).parent.parent.exists() and (name.split("/")[0] != "nginx" or (stack / "nginx").exists()):
            (stack / name).parent.mkdir(exist_ok=True)
            (stack / name).write_text(text)
    commit(stack, "Ours")


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


def texts(folder: Path) -> dict[str, str]:
    """Return every text of a stack but those of its owner; the answers file without what names the template."""
    files = read_tree(folder, {}).files
    answers = re.sub(r"(?m)^(_src_path|_commit):.*\n", "", files[".copier-answers.yml"])
    return {name: text for name, text in (files | {".copier-answers.yml": answers}).items() if name not in OWNED}


@pytest.mark.parametrize("name", STACKS)
def test_an_update_is_a_fresh_rendering_plus_what_is_yours(tagged: Path, tmp_path: Path, name: str) -> None:
    """No conflict, every file of the owner untouched, and everything else as if rendered today."""
    stack = stack_from(tagged, tmp_path / "demo", STACKS[name], "v1.0.0")
    give_to_owner(stack)
    mine = {name for name in OWNED if (stack / name).exists()}
    assert len(mine) >= 6
    update(stack, "v1.1.0")
    assert conflicts(stack) == []
    fresh = render(tagged, tmp_path / "fresh" / "demo", STACKS[name] | {"project_name": "demo"}, vcs_ref="v1.1.0")
    assert texts(stack) == texts(fresh)
    assert "new:" in (stack / "Makefile").read_text() and (stack / "docs/new.md").exists()
    for path in mine:
        assert (stack / path).read_text() == OWNED[path], path
    assert IGNORED.isdisjoint(git(stack, "ls-files").splitlines())
    assert "_commit: v1.1.0" in (stack / ".copier-answers.yml").read_text()


def test_seams_take_the_edits(tagged: Path, tmp_path: Path) -> None:
    """Edits of the files that the template does write survive an update that changes other lines of them."""
    stack = stack_from(tagged, tmp_path / "demo", STACKS["team"], "v1.0.0")
    edit(stack / "README.md", "# demo\n", "# demo\n\nRun by the platform team.\n")
    edit(stack / "compose.yaml", "${NGINX_TIMEOUT:-3600s}", "${NGINX_TIMEOUT:-60s}")
    commit(stack, "Edit")
    update(stack, "v1.1.0")
    assert conflicts(stack) == []
    assert "Run by the platform team." in (stack / "README.md").read_text()
    assert "NGINX_TIMEOUT:-60s" in (stack / "compose.yaml").read_text()
    assert "## New\n" in (stack / "README.md").read_text()


def test_an_edit_of_the_same_line_is_a_visible_conflict(tagged: Path, tmp_path: Path) -> None:
    """The other tests find conflicts if there are any: here is one."""
    stack = stack_from(tagged, tmp_path / "demo", STACKS["laptop"], "v1.0.0")
    edit(stack / "compose.yaml", "stop_grace_period: 30s", "stop_grace_period: 10s")
    commit(stack, "Edit")
    update(stack, "v1.1.0")
    assert conflicts(stack) == ["compose.yaml"]
    # scripts/update.sh says so in one sentence and fails; a stand-in for copier, because the update is done.
    (bin_ := tmp_path / "bin").mkdir()
    (bin_ / "copier").write_text("#!/bin/sh\n")
    (bin_ / "copier").chmod(0o755)
    done = subprocess.run(
        ["scripts/update.sh"], cwd=stack, env={"PATH": f"{bin_}:/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("update: error: ") and done.stderr.endswith("compose.yaml\n")


def test_an_update_to_the_same_version_changes_nothing(tagged: Path, tmp_path: Path) -> None:
    """Twice is once."""
    stack = stack_from(tagged, tmp_path / "demo", STACKS["team"], "v1.1.0")
    give_to_owner(stack)
    update(stack, "v1.1.0")
    assert git(stack, "status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("before", "after", "gone", "come"),
    [
        (
            {},
            {"backend": "postgres", "artifact_store": "seaweedfs"},
            {"scripts/local.sh", "stackops/stackops/backends/sqlite.py", "stackops/stackops/stores/local.py"},
            {"postgres/initdb.d/10-mlflow.sh", "object-store/Dockerfile", "stackops/stackops/bucket.py"},
        ),
        (
            {"purpose": "team"},
            {"artifact_store": "s3", "backend": "managed", "auth": "mlflow"},
            {"object-store/Dockerfile", "postgres/initdb.d/10-mlflow.sh", "stackops/stackops/htpasswd.py"},
            {"stackops/stackops/accounts.py", "mlflow/requirements/auth.txt"},
        ),
        (
            {"purpose": "team"},
            {"backend": "sqlite", "artifact_store": "local", "artifact_access": "proxied"},
            {"pgloader/migration.load", "stackops/stackops/stores/s3.py"},
            {"scripts/local.sh"},
        ),
        (
            {"reverse_proxy": "nginx", "auth": "basic"},
            {"reverse_proxy": "none", "auth": "none"},
            {"nginx/nginx.conf", "stackops/stackops/htpasswd.py"},
            set(),
        ),
    ],
)
def test_another_answer_on_update(
    tagged: Path, tmp_path: Path, before: Answers, after: Answers, gone: set[str], come: set[str]
) -> None:
    """Files come and go with the answers, and what is the owner's stays."""
    stack = stack_from(tagged, tmp_path / "demo", before, "v1.0.0")
    give_to_owner(stack)
    assert gone <= set(texts(stack))
    update(stack, "v1.1.0", **after)
    assert conflicts(stack) == []
    assert not gone & set(texts(stack)) and come <= set(texts(stack))
    for path in ("NOTES.md", "mlflow/requirements.extra.txt", ".env", "local.mk", "compose.override.yaml"):
        assert (stack / path).read_text() == OWNED[path]
    answers = {"project_name": "demo"} | before | after
    # The port is an answer of its own, which stays what it was.
    port = int(re.findall(r"http_port: (\d+)", (stack / ".copier-answers.yml").read_text())[0])
    fresh = render(tagged, tmp_path / "fresh" / "demo", answers | {"http_port": port}, vcs_ref="v1.1.0")
    assert texts(stack) == texts(fresh)


def test_a_refused_pair_on_update_leaves_the_stack_alone(tagged: Path, tmp_path: Path) -> None:
    """A pair that cannot work is refused on update too, and nothing is changed."""
    stack = stack_from(tagged, tmp_path / "demo", {}, "v1.0.0")
    with pytest.raises(ValueError, match="artifact_access=direct cannot work with artifact_store=local"):
        update(stack, "v1.1.0", artifact_access="direct")
    assert git(stack, "status", "--porcelain") == ""


# --- Releases -----------------------------------------------------------------------------------------------------


def test_every_release_updates_to_what_is_here(tmp_path: Path) -> None:
    """From every released version, stacks update without a conflict to what a fresh rendering gives.

    From the newest one each of the stacks above, from older ones the team's, to save time. Before the first
    release, and in a clone without history, there is nothing to update from.
    """
    known = releases()
    source = tmp_path / "template"
    if known:
        subprocess.run(["git", "clone", "--quiet", "--no-tags", str(ROOT), str(source)], check=True)
        for version, sha in known.items():
            git(source, "tag", "--annotate", version, sha, "--message", version)
        for path in source.iterdir():  # the working tree as it is, committed or not
            if path.name in ("copier.yml", "extensions", "template"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        copy_template(source)
        git(source, "add", "--all")
        git(source, "commit", "--quiet", "--allow-empty", "--message", "Here")
        git(source, "tag", "--annotate", "v99.0.0", "--message", "v99.0.0")
    for number, version in enumerate(known):
        for name in STACKS if number == 0 else ["team"]:
            answers = STACKS[name]
            folder = tmp_path / version / name
            stack = stack_from(source, folder / "demo", answers, version)
            give_to_owner(stack)
            update(stack, "v99.0.0")
            assert conflicts(stack) == [], (version, name)
            fresh = render(source, folder / "fresh" / "demo", answers | {"project_name": "demo"}, vcs_ref="v99.0.0")
            assert texts(stack) == texts(fresh), (version, name)
