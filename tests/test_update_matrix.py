"""Every release x every named stack x the edits that owners make: an update to what is here meets none of them.

`make test` does three: two stacks of the newest release, and the team's of the oldest. `make update-matrix` does all.
A line of the summary for each says how it went.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from extended import releases
from rendering import render
from summary import say
from test_golden import SCENARIOS
from updates import HERE, commit, conflicts, edit, stack_from, texts, update, with_releases

OVERRIDE = """\
services:
  mlflow:
    environment:
      MINE: 1
    healthcheck:
      interval: 60s
    volumes: ["scratch:/scratch"]
  adminer:
    image: adminer
volumes:
  scratch:
    driver_opts: {type: tmpfs, device: tmpfs}
"""

# What people change in stacks, in the place that is made for it, as one finds it in forks of compose repositories:
# a port, an image, the database's user, a limit, a variable, a service, a health check, a package, a make target, an
# introduction, steps, a body size; and a second service, a volume driver, a location, a CI job, a text.
EDITS: dict[str, str] = {
    ".env": "HTTP_PORT=9999\nMLFLOW_IMAGE=mine/mlflow:1\nDB_USER=me\nMLFLOW_MEMORY=3g\nNGINX_MAX_BODY_SIZE=5g\n",
    "secrets/crypto_kek_passphrase": "mine\n",
    "compose.override.yaml": OVERRIDE,
    "mlflow/requirements.extra.txt": "mlflow-my-plugin==1.0\n",
    "local.mk": "mine: ## do mine\n\techo mine\n",
    "nginx/local.d/mine.conf": "location = /mine { return 204; }\n",
    "NOTES.md": "# Ours\n\nRun by the platform team.\n\n## Steps\n\n1. Ask Kim.\n",
    ".github/workflows/ours.yml": "name: Ours\non: push\njobs: {}\n",
    "docs/ours.md": "# Ours\n",
}

# The same wishes, written into files of the template.
ELSEWHERE: dict[str, Callable[[Path], None]] = {
    "published port": lambda it: edit(it / "compose.yaml", "${HTTP_PORT:-8080}", "9999"),
    "image tag": lambda it: edit(it / "compose.yaml", "${MLFLOW_IMAGE:-demo-mlflow:", "${MLFLOW_IMAGE:-mine:"),
    "database user": lambda it: edit(it / "compose.yaml", "DB_USER: mlflow", "DB_USER: me"),
    "memory limit": lambda it: edit(it / "compose.yaml", "${MLFLOW_MEMORY:-2g}", "3g"),
    "variable": lambda it: edit(it / "compose.yaml", "    TMPDIR: /var/tmp\n", "    TMPDIR: /var/tmp\n    MINE: 1\n"),
    "service": lambda it: edit(it / "compose.yaml", "\nvolumes:\n", "\n  adminer:\n    image: adminer\n\nvolumes:\n"),
    "health check": lambda it: edit(it / "compose.yaml", "interval: 5s", "interval: 60s"),
    "package": lambda it: edit(it / "mlflow/requirements/base.in", "mlflow==", "my-plugin\nmlflow=="),
    "make target": lambda it: edit(it / "Makefile", "\nlint:", "\nmine:\n\techo mine\n\nlint:"),
    "introduction": lambda it: edit(it / "README.md", "# demo\n", "# demo\n\nRun by the platform team.\n"),
    "steps": lambda it: edit(it / "README.md", "make up", "make up # ask Kim first"),
    "body size": lambda it: edit(it / "compose.yaml", "${NGINX_MAX_BODY_SIZE:-0}", "5g"),
    "no README": lambda it: (it / "README.md").unlink(),
    "volume driver": lambda it: edit(it / "compose.yaml", "  postgres-data:\n", "  postgres-data:\n    driver: mine\n"),
    "location": lambda it: edit(
        it / "nginx/templates/mlflow.conf.template",
        "    location / {\n",
        "    location = /mine {\n        return 204;\n    }\n\n    location / {\n",
    ),
    "CI job": lambda it: edit(it / ".github/workflows/ci.yml", "jobs:\n", "jobs:\n  mine:\n    steps: []\n"),
    "README section": lambda it: edit(it / "README.md", "\n## Which files", "\n## Ours\n\nOurs.\n\n## Which files"),
    "pinned image": lambda it: edit(it / "compose.yaml", "${NGINX_IMAGE:-nginx:", "${NGINX_IMAGE:-mirror/nginx:"),
}


def give(stack: Path) -> list[str]:
    """Write the edits that make sense in this stack; return which."""
    given = [name for name in EDITS if not name.startswith("nginx/") or (stack / "nginx").exists()]
    for name in given:
        (stack / name).parent.mkdir(parents=True, exist_ok=True)
        (stack / name).write_text(EDITS[name])
    return given


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template's repository with its releases, and what is here as the newest."""
    return with_releases(tmp_path_factory.mktemp("source") / "template")


def pairs() -> list[object]:
    """Return release and stack; those that only `make update-matrix` runs are marked."""
    known = list(releases())
    fast = {(known[0], "laptop"), (known[0], "cloud"), (known[-1], "team")} if known else set()
    every = [(version, name) for version in known for name in SCENARIOS]
    return [pytest.param(*pair, marks=[] if pair in fast else pytest.mark.full, id="-".join(pair)) for pair in every]


@pytest.mark.parametrize(("version", "name"), pairs())
def test_an_update_from(version: str, name: str, source: Path, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """No conflict, no edit lost, and the result is a fresh rendering of what is here plus those edits."""
    answers = {"project_name": "demo", **SCENARIOS[name]}
    stack = stack_from(source, tmp_path / "demo", answers, version)
    given = give(stack)
    commit(stack, "Ours")
    started = time.monotonic()
    update(stack, HERE)
    seconds = time.monotonic() - started
    met = conflicts(stack)
    fresh = render(source, tmp_path / "fresh" / "demo", answers, vcs_ref=HERE)
    give(fresh)
    equal = texts(stack, own=()) == texts(fresh, own=())
    say(
        pytestconfig,
        f"update from {version:8} {name:17} {len(given)} files of edits, {len(met)} conflicts, "
        f"{'equal' if equal else 'NOT equal'} to fresh, {seconds:.1f} s",
    )
    assert met == []
    assert {edited: (stack / edited).read_text() for edited in given} == {edited: EDITS[edited] for edited in given}
    assert texts(stack, own=()) == texts(fresh, own=())


@pytest.mark.full
@pytest.mark.parametrize("version", releases())
def test_edits_elsewhere(version: str, source: Path, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """Each edit written into a file of the template survives the update, or is a conflict that one sees."""
    met = []
    for number, (wish, write) in enumerate(ELSEWHERE.items()):
        answers = {"project_name": "demo", "purpose": "team"}
        stack = stack_from(source, tmp_path / str(number) / "demo", answers, version)
        before = texts(stack, own=())
        write(stack)
        after = texts(stack, own=())
        mine = {
            line for name, text in after.items() for line in set(text.splitlines()) - set(before[name].splitlines())
        }
        commit(stack, "Edit")
        update(stack, HERE)
        files = conflicts(stack)
        met += [wish] if files else []
        kept = {line for text in texts(stack, own=()).values() for line in text.splitlines()}
        assert files or mine <= kept, f"{wish} is lost without a word"
        assert (stack / "README.md").exists() == (wish != "no README")
    say(
        pytestconfig,
        f"edits outside their homes, update from {version}: {len(met)} of {len(ELSEWHERE)} meet it "
        f"({', '.join(met) or 'none'})",
    )
