"""Every release x every named stack x the edits that owners make: an update to what is here meets none of them.

`make test` does three: two stacks of the newest release, and the team's of the oldest. `make update-matrix` does all,
and writes docs/updates.md. A line of the summary for each says how it went.
"""

import difflib
import functools
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ledger
import pytest
from combinations import ROOT, settings
from extended import releases
from rendering import compiled_once, render
from summary import say
from test_golden import SCENARIOS
from updates import HERE, commit, conflicts, edit, stack_from, texts, update, with_releases

WRITTEN_ONCE = settings()["_skip_if_exists"]

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

# The same wishes, written into files of the template: wish -> the file, and what is written.
ELSEWHERE: dict[str, tuple[str, Callable[[Path], None]]] = {
    "published port": ("compose.yaml", lambda it: edit(it, "${HTTP_PORT:-8080}", "9999")),
    "image tag": ("compose.yaml", lambda it: edit(it, "${MLFLOW_IMAGE:-demo-mlflow:", "${MLFLOW_IMAGE:-mine:")),
    "database user": ("compose.yaml", lambda it: edit(it, "DB_USER: mlflow", "DB_USER: me")),
    "memory limit": ("compose.yaml", lambda it: edit(it, "${MLFLOW_MEMORY:-2g}", "3g")),
    "variable": (
        "compose.yaml",
        lambda it: edit(it, "    TMPDIR: /var/tmp\n", "    TMPDIR: /var/tmp\n    MINE: 1\n"),
    ),
    "service": (
        "compose.yaml",
        lambda it: edit(it, "\nvolumes:\n", "\n  adminer:\n    image: adminer\n\nvolumes:\n"),
    ),
    "health check": ("compose.yaml", lambda it: edit(it, "interval: 5s", "interval: 60s")),
    "package": ("mlflow/requirements/base.in", lambda it: edit(it, "mlflow==", "my-plugin\nmlflow==")),
    "make target": ("Makefile", lambda it: edit(it, "\nlint:", "\nmine:\n\techo mine\n\nlint:")),
    "introduction": ("README.md", lambda it: edit(it, "# demo\n", "# demo\n\nRun by the platform team.\n")),
    "steps": ("README.md", lambda it: edit(it, "make up", "make up # ask Kim first")),
    "body size": ("compose.yaml", lambda it: edit(it, "${NGINX_MAX_BODY_SIZE:-0}", "5g")),
    "no README": ("README.md", Path.unlink),
    "volume driver": (
        "compose.yaml",
        lambda it: edit(it, "  postgres-data:\n", "  postgres-data:\n    driver: mine\n"),
    ),
    "location": (
        "nginx/templates/mlflow.conf.template",
        lambda it: edit(
            it, "    location / {\n", "    location = /mine {\n        return 204;\n    }\n\n    location / {\n"
        ),
    ),
    "CI job": (".github/workflows/ci.yml", lambda it: edit(it, "jobs:\n", "jobs:\n  mine:\n    steps: []\n")),
    "README section": (
        "README.md",
        lambda it: edit(it, "\n## Which files", "\n## Ours\n\nOurs.\n\n## Which files"),
    ),
    "pinned image": ("compose.yaml", lambda it: edit(it, "${NGINX_IMAGE:-nginx:", "${NGINX_IMAGE:-mirror/nginx:")),
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


@pytest.fixture(scope="module")
def fresh(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str]]:
    """Returns the texts of a named stack, rendered from what is here, with the edits; each is rendered once."""

    @functools.cache
    def named(name: str) -> dict[str, str]:
        folder = tmp_path_factory.mktemp("fresh") / "demo"
        give(render(source, folder, {"project_name": "demo", **SCENARIOS[name]}, vcs_ref=HERE))
        return texts(folder, own=())

    return named


promised = functools.cache(ledger.promised)


def could(version: str, name: str) -> bool:
    """Whether a release had the questions and values of a named stack."""
    had = promised(version).questions
    return all(it in had and (not had[it] or value in had[it]) for it, value in SCENARIOS[name].items())


def pairs() -> list[object]:
    """Return release and stack; those that only `make update-matrix` runs are marked."""
    known = list(releases())
    fast = {(known[0], "laptop"), (known[0], "cloud"), (known[-1], "team")} if known else set()
    every = [(version, name) for version in known for name in SCENARIOS if could(version, name)]
    return [pytest.param(*pair, marks=[] if pair in fast else pytest.mark.full, id="-".join(pair)) for pair in every]


@pytest.mark.parametrize(("version", "name"), pairs())
def test_an_update_from(
    version: str,
    name: str,
    source: Path,
    fresh: Callable[[str], dict[str, str]],
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    """No conflict, no edit lost, and the result is a fresh rendering of what is here plus those edits.

    A file that is the owner's from the first rendering on stays as the release had written it.
    """
    answers = {"project_name": "demo", **SCENARIOS[name]}
    stack = stack_from(source, tmp_path / "demo", answers, version)
    given = give(stack)
    kept = {name: text for name, text in texts(stack, own=()).items() if name in WRITTEN_ONCE}
    commit(stack, "Ours")
    started = time.monotonic()
    update(stack, HERE)
    seconds = time.monotonic() - started
    met = conflicts(stack)
    equal = texts(stack, own=()) == fresh(name) | kept
    say(
        pytestconfig,
        f"update from {version:8} {name:17} {len(given)} files of edits, {len(met)} conflicts, "
        f"{'equal' if equal else 'NOT equal'} to fresh, {seconds:.1f} s",
    )
    ROWS.append(f"| {version} | {name} | {len(given)} | {len(met)} | {'yes' if equal else 'NO'} | {seconds:.1f} |")
    assert met == []
    assert {edited: (stack / edited).read_text() for edited in given} == {edited: EDITS[edited] for edited in given}
    assert texts(stack, own=()) == fresh(name) | kept


def test_each_release_is_updated_from_in_many_stacks() -> None:
    """Those that a release could not make are left out, and no others."""
    for version in releases():
        assert len([name for name in SCENARIOS if could(version, name)]) >= 8, version
    assert not could("v0.2.0", "nginx-certificates") and could("v0.3.0", "nginx-certificates")


@dataclass(frozen=True)
class Edit:
    """A wish, written into a file of a stack: between which lines, and the lines that are new."""

    wish: str
    file: str
    first: int
    last: int
    lines: frozenset[str]

    def disturbs(self, other: "Edit") -> bool:
        """Whether an update could meet both at once."""
        return self.file == other.file and self.first < other.last + APART and other.first < self.last + APART


APART = 12


def edit_of(wish: str, stack: Path, scratch: Path) -> Edit:
    """Return what a wish does to a stack; a copy of the file is edited."""
    file, write = ELSEWHERE[wish]
    copy = scratch / wish / Path(file).name
    copy.parent.mkdir(parents=True)
    shutil.copy2(stack / file, copy)
    write(copy)
    before, after = ((path.read_text().splitlines() if path.exists() else []) for path in (stack / file, copy))
    steps = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    changed = [step for step in steps if step[0] != "equal"]
    return Edit(wish, file, changed[0][1], changed[-1][2], frozenset(after) - frozenset(before))


def rounds(edits: list[Edit]) -> list[list[Edit]]:
    """Return the edits in few rounds, none of which disturbs another of its round."""
    found: list[list[Edit]] = []
    for one in edits:
        for some in found:
            if not any(one.disturbs(other) for other in some):
                some.append(one)
                break
        else:
            found.append([one])
    return found


def met_by(edits: list[Edit], stack: Path) -> set[str]:
    """Return the wishes that an update has met. Each conflict must be one wish's, and no other line may be lost."""
    met: set[str] = set()
    for file in {one.file for one in edits}:
        text = (stack / file).read_text() if (stack / file).exists() else ""
        sides = [set(block.splitlines()) for block in re.findall(r"(?ms)^<{7} [^\n]*\n(.*?)^={7}$", text)]
        mine = [one for one in edits if one.file == file]
        for side in sides:
            (one,) = (one for one in mine if one.lines & side)
            met.add(one.wish)
        for one in mine:
            assert one.lines <= set(text.splitlines()), f"{one.wish} is lost without a word"
            assert one.lines or not text, f"{one.wish} is lost without a word"
    return met


@pytest.mark.full
@pytest.mark.parametrize("version", releases())
@compiled_once()
def test_edits_elsewhere(version: str, source: Path, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """Each edit written into a file of the template survives the update, or is a conflict that one sees."""
    start = stack_from(source, tmp_path / "start" / "demo", {"project_name": "demo", "purpose": "team"}, version)
    edits = [edit_of(wish, start, tmp_path / "edits") for wish in ELSEWHERE]
    met = set()
    for number, some in enumerate(rounds(edits)):
        stack = tmp_path / str(number) / "demo"
        shutil.copytree(start, stack, symlinks=True)
        for one in sorted(some, key=lambda one: -one.first):
            ELSEWHERE[one.wish][1](stack / one.file)
        commit(stack, "Edit")
        update(stack, HERE)
        found = met_by(some, stack)
        assert set(conflicts(stack)) == {one.file for one in some if one.wish in found}
        met |= found
    MET[version] = met
    named = [wish for wish in ELSEWHERE if wish in met]
    say(
        pytestconfig,
        f"edits outside their homes, update from {version}: {len(met)} of {len(ELSEWHERE)} meet it "
        f"({', '.join(named) or 'none'})",
    )


def test_who_met_it(tmp_path: Path) -> None:
    """A conflict is found and given to its wish; what is lost is found as well."""
    edits = [Edit("port", "a", 1, 2, frozenset(["9999"])), Edit("image", "a", 40, 41, frozenset(["mine"]))]
    text = "x\n<<<<<<< before updating\n9999\n=======\n8080\n>>>>>>> after updating\nmine\n"
    (tmp_path / "a").write_text(text)
    assert met_by(edits, tmp_path) == {"port"}
    (tmp_path / "a").write_text(text.replace("mine", "theirs"))
    with pytest.raises(AssertionError, match="image is lost"):
        met_by(edits, tmp_path)
    assert rounds(
        [*edits, Edit("limit", "a", 5, 6, frozenset(["3g"])), Edit("steps", "b", 1, 2, frozenset(["x"]))]
    ) == [
        [edits[0], edits[1], Edit("steps", "b", 1, 2, frozenset(["x"]))],
        [Edit("limit", "a", 5, 6, frozenset(["3g"]))],
    ]


# --- docs/updates.md

ROWS: list[str] = []  # of test_an_update_from
MET: dict[str, set[str]] = {}  # of test_edits_elsewhere
PAGE = ROOT / "docs" / "updates.md"
HEAD = """\
# Updates that were tried

Written by `make update-matrix`; do not edit. What is updated to is what came after the newest release of each table.
"""
HOMES = """
## Edits in their homes

Each release, rendered as each stack of `tests/golden` that it could make, with what owners change written into the
files that are theirs (`.env`, `compose.override.yaml`, `local.mk` and so on), and then updated. "Equal" says that the
result is, file by file, a fresh stack with the same edits. The seconds are those of the update alone.

| from | stack | files of edits | conflicts | equal to fresh | seconds |
| --- | --- | --- | --- | --- | --- |
{rows}
"""
OTHERS = """
## Edits elsewhere

The same wishes, written into the files of the template, in the stack of `purpose=team`. None is lost without a word:
it is merged, or a conflict in that file. [UPGRADING.md](../UPGRADING.md#which-files-are-yours) has the places where
they would have met nothing.

| wish | written into | {versions} |
| --- | --- | {dashes} |
{wishes}
| **conflicts** | **of {count}** | {sums} |
"""


def written(page: str, homes: str, others: str) -> str:
    """Return the page with the tables that are given; of the others it keeps its own."""
    rest, mark, old_others = page.partition("\n## Edits elsewhere\n")
    _, first, old_homes = rest.partition("\n## Edits in their homes\n")
    return HEAD + (homes or first + old_homes) + (others or mark + old_others)


@pytest.mark.full
def test_the_page(pytestconfig: pytest.Config) -> None:
    """What `make update-matrix` has seen is written down: each table, if all of it was seen."""
    if not pytestconfig.getoption("--golden-update"):
        return
    homes, others, known = "", "", list(releases())
    if len(ROWS) == len(pairs()):
        homes = HOMES.format(rows="\n".join(ROWS))
    if len(MET) == len(known):
        others = OTHERS.format(
            versions=" | ".join(known),
            dashes=" | ".join("---" for _ in known),
            wishes="\n".join(
                f"| {wish} | `{file}` | {' | '.join('conflict' if wish in MET[one] else 'merged' for one in known)} |"
                for wish, (file, _) in ELSEWHERE.items()
            ),
            count=len(ELSEWHERE),
            sums=" | ".join(f"**{len(MET[one])}**" for one in known),
        )
    PAGE.write_text(written(PAGE.read_text() if PAGE.exists() else "", homes, others))


def test_a_table_that_was_not_seen_anew_stays() -> None:
    """Either of them."""
    first, second = HOMES.format(rows="| 1 |"), OTHERS.format(versions=1, dashes=1, wishes=1, count=1, sums=1)
    page = written("", first, second)
    assert page == HEAD + first + second
    assert written(page, "", "") == page
    assert written(page, first.replace("| 1 |", "| 2 |"), "") == page.replace("| 1 |", "| 2 |", 1)
    assert written(page, "", second + "more\n") == page + "more\n"
    assert written("", "", second) == HEAD + second
