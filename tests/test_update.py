"""`copier update`, really run between tags, with the owner's files and edits in place and without --trust."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from combinations import Answers
from rendering import copy_template, render
from updates import OWNED, commit, conflicts, edit, git, stack_from, texts, update

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

IGNORED = {".env", "secrets/crypto_kek_passphrase"}


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
    edit(
        source / "UPGRADING.md",
        "\n## Notes per release\n",
        "\n## Notes per release\n\n### 1.1.0\n\nTurn the new key.\n",
    )
    (source / "template/docs").mkdir()
    (source / "template/docs/new.md").write_text("# New\n")
    commit(source, "two", "v1.1.0")
    return source


def give_to_owner(stack: Path) -> None:
    """Write every owned file that makes sense in this stack, and commit."""
    for name, text in OWNED.items():
        if (stack / name).parent.parent.exists() and (name.split("/")[0] != "nginx" or (stack / "nginx").exists()):
            (stack / name).parent.mkdir(exist_ok=True)
            (stack / name).write_text(text)
    commit(stack, "Ours")


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


def run(stack: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a stack, with the tests' own copier in the PATH."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(command, cwd=stack, env=os.environ | {"PATH": path}, capture_output=True, text=True)


def test_make_update_shows_the_notes_of_the_newest_release(tagged: Path, tmp_path: Path) -> None:
    """As a person runs it: what came, what to do for it, and not what older releases asked for."""
    stack = stack_from(tagged, tmp_path / "demo", {}, "v1.0.0")
    done = run(stack, "make", "update")
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "demo is updated. The notes of the newest release, 1.1.0:\n\n  Turn the new key.\n" in said, said
    assert "### " not in said and said.rstrip().endswith("where the stack does not run.")


def test_the_workflow_opens_one_request_with_the_update(tagged: Path, tmp_path: Path) -> None:
    """The step of .github/workflows/update.yml, run here, with a stand-in for GitHub's own command."""
    stack = stack_from(tagged, tmp_path / "demo", {}, "v1.0.0")
    git(tmp_path, "init", "--quiet", "--bare", "origin")
    git(stack, "remote", "add", "origin", str(tmp_path / "origin"))
    (bin_ := tmp_path / "bin").mkdir()
    (bin_ / "gh").write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/asked\n')
    (bin_ / "gh").chmod(0o755)
    steps = yaml.safe_load((stack / ".github/workflows/update.yml").read_text())["jobs"]["update"]["steps"]
    script = steps[-1]["run"].replace("/tmp/update.txt", str(tmp_path / "update.txt"))

    def weekly(folder: Path) -> None:
        done = run(
            folder, "env", f"PATH={bin_}:{Path(sys.executable).parent}:{os.environ['PATH']}", "bash", "-ec", script
        )
        assert done.returncode == 0, done.stderr

    git(stack, "push", "--quiet", "origin", "main")
    for number in range(2):  # once more while the request is open: nothing new
        git(tmp_path, "clone", "--quiet", "--branch", "main", str(tmp_path / "origin"), f"checkout{number}")
        weekly(tmp_path / f"checkout{number}")
        assert git(tmp_path / "origin", "branch", "--format", "%(refname:short)").split() == ["main", "update-v1.1.0"]
        (asked,) = (tmp_path / "asked").read_text().splitlines()
        assert "--head update-v1.1.0" in asked and "Turn the new key." in (tmp_path / "update.txt").read_text()
    git(tmp_path / "origin", "branch", "--force", "main", "update-v1.1.0")
    git(tmp_path, "clone", "--quiet", "--branch", "main", str(tmp_path / "origin"), "merged")
    assert "new:" in (tmp_path / "merged" / "Makefile").read_text()
    weekly(tmp_path / "merged")
    assert len((tmp_path / "asked").read_text().splitlines()) == 1


def test_check_update(tagged: Path, tmp_path: Path) -> None:
    """The exit code is for cron and CI: 2 when there is a newer release, 0 when not, 1 when nobody can tell."""
    for version, code, word in (("v1.0.0", 2, "newer"), ("v1.1.0", 0, "newest")):
        stack = stack_from(tagged, tmp_path / version / "demo", {}, version)
        done = run(stack, "scripts/update.sh", "check")
        assert (done.returncode, word in done.stdout) == (code, True), done
        assert (run(stack, "make", "check-update").returncode == 0) == (code == 0)
        assert git(stack, "status", "--porcelain") == ""
    edit(stack / ".copier-answers.yml", str(tagged), str(tmp_path / "gone"))
    commit(stack, "Moved")
    done = run(stack, "scripts/update.sh", "check")
    assert done.returncode == 1
    assert done.stderr.endswith("update: error: the template's releases cannot be read\n")


def test_a_template_that_has_moved(tagged: Path, tmp_path: Path) -> None:
    """As UPGRADING.md says: the new address goes to _src_path, and updates go on from there."""
    stack = stack_from(tagged, tmp_path / "demo", {}, "v1.0.0")
    moved = tagged.rename(tagged.with_name("moved"))
    try:
        edit(stack / ".copier-answers.yml", str(tagged), str(moved))
        commit(stack, "The template has moved")
        update(stack, "v1.1.0")
        assert conflicts(stack) == [] and "new:" in (stack / "Makefile").read_text()
    finally:
        moved.rename(tagged)


def test_a_fork_that_merges(tagged: Path, tmp_path: Path) -> None:
    """A repository and its fork, both brought to one release before they merge: nothing meets."""
    upstream = stack_from(tagged, tmp_path / "upstream" / "demo", {}, "v1.0.0")
    fork = tmp_path / "fork" / "demo"
    git(tmp_path, "clone", "--quiet", str(upstream), str(fork))
    (upstream / "local.mk").write_text("theirs:\n")
    (fork / "compose.override.yaml").write_text("services: {}\n")
    for repository in (upstream, fork):
        commit(repository, "Ours")
        update(repository, "v1.1.0")
        commit(repository, "Update")
    git(fork, "pull", "--quiet", "--no-rebase", "--no-edit", "origin", "main")
    assert conflicts(fork) == [] and git(fork, "status", "--porcelain") == ""
    assert (fork / "local.mk").exists() and (fork / "compose.override.yaml").exists()


@pytest.mark.parametrize("name", ["laptop", "team"])
def test_eject(tagged: Path, tmp_path: Path, name: str) -> None:
    """What only updates need goes, everything else stays as it is, and it can be taken back."""
    stack = stack_from(tagged, tmp_path / "demo", STACKS[name], "v1.0.0")
    before = texts(stack, own=())
    (stack / "mine").write_text("x")
    refused = run(stack, "make", "eject")
    assert refused.returncode != 0 and "not committed" in refused.stderr and texts(stack, own=("mine",)) == before
    commit(stack, "Mine")
    done = run(stack, "make", "eject")
    assert done.returncode == 0, done.stderr
    gone = {
        ".copier-answers.yml",
        ".github/workflows/update.yml",
        "renovate.json",
        "scripts/update.sh",
        "scripts/eject.sh",
    }
    after = {path: (stack / path).read_text() for path in git(stack, "ls-files").splitlines()}
    assert set(before) - set(after) == gone
    changed = {path for path in after if path != "mine" and after[path] != before[path]}
    assert changed == {"Makefile", "README.md"}
    for path in ("Makefile", "README.md"):
        assert len(after[path].splitlines()) < len(before[path].splitlines())
        assert not re.search("template|copier|check-update|eject|make update", after[path]), path
    printed = run(stack, "make")
    assert printed.returncode == 0 and "make up" in printed.stdout and "update" not in printed.stdout
    git(stack, "checkout", "HEAD", "--", ".")
    assert texts(stack, own=("mine",)) == before
