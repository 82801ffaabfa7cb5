"""A running stack after `make update`: `make up` starts anew what has changed and nothing else, and nothing is lost."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from extended import releases
from needs import engine
from stacks import HERE as E2E
from stacks import Stack, image_tag, removed, rendered, run, swept
from summary import say
from updates import HERE, commit, conflicts, edit, git, update, with_releases

pytestmark = pytest.mark.docker

NEXT = "v99.1.0"
CLIENT = (E2E / "stock_client.py").read_text()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template with its releases, what is here, and one more that changes a line of nginx and adds a setting."""
    template = with_releases(tmp_path_factory.mktemp("source") / "template")
    edit(template / "template/nginx/nginx.conf", "worker_connections 4096", "worker_connections 4095")
    edit(template / "template/.env.example.jinja", "\n# Images", "\n# New.\nNEW_SETTING=7\n\n# Images")
    commit(template, "Next", NEXT)
    return template


@pytest.fixture(scope="module")
def team(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A team's stack of the newest release, running, in a repository of its own."""
    engine()
    version = next(iter(releases()))
    one = rendered(tmp_path_factory.mktemp("running"), "running", {"purpose": "team"}, None, source, version)
    try:
        git(one.folder, "init", "--quiet")
        commit(one.folder, "Start")
        one.up()
        yield one
    finally:
        removed(one)


@pytest.fixture(scope="module")
def known(team: Stack) -> dict[str, str]:
    """What the stock client has written to that stack."""
    return json.loads(team.client(CLIENT, "write").splitlines()[-1])["known"]


def running(one: Stack) -> dict[str, tuple[str, str]]:
    """Return each running service's container, and when that was started."""
    found = {}
    for service in one.compose("ps", "--status", "running", "--services").split():
        name = one.container(service)
        found[service] = (name, run("docker", "inspect", "--format", "{{.State.StartedAt}}", name).stdout.strip())
    return found


def wanted(one: Stack) -> dict[str, str]:
    """Return what each service is to be by the files: Compose's own hash of it, and its image."""
    hashes = dict(line.split() for line in one.compose("config", "--hash", "*").splitlines())
    model = json.loads(one.compose("config", "--format", "json"))["services"]
    return {
        name: value + run("docker", "image", "inspect", "--format", "{{.Id}}", model[name]["image"]).stdout
        for name, value in hashes.items()
    }


def started_anew(one: Stack, before: dict[str, tuple[str, str]]) -> set[str]:
    """Return the services that are not what they were; all that ran must run."""
    now = running(one)
    assert now.keys() == before.keys()
    return {name for name in now if now[name] != before[name]}


def follow(one: Stack, version: str, **answers: str) -> None:
    """`make update` to a version, as updates.py has it; the image gets the name that its content has."""
    update(one.folder, version, **answers)
    assert conflicts(one.folder) == []
    commit(one.folder, f"Update to {version}")
    one.setting("MLFLOW_IMAGE", image_tag(one.folder))


def still_there(one: Stack, known: dict[str, str]) -> None:
    """The run of the beginning, its artifact, model and trace come back."""
    one.client(CLIENT, "read", known["run"], known["trace"])


def test_make_up_twice_starts_nothing_anew(team: Stack) -> None:
    before = running(team)
    team.make("up")
    assert started_anew(team, before) == set()


def test_an_update_from_the_newest_release(team: Stack, known: dict[str, str], pytestconfig: pytest.Config) -> None:
    before, was = running(team), wanted(team)
    settings = team.settings()
    follow(team, HERE)
    team.make("up")
    now = wanted(team)
    nginx = git(team.folder, "diff", "--name-only", "HEAD~", "--", "nginx")
    expected = {name for name in before if now[name] != was[name]} | ({"nginx"} if nginx else set())
    anew = started_anew(team, before)
    say(pytestconfig, f"an update of a running stack starts anew: {', '.join(sorted(anew)) or 'nothing'}")
    assert anew == expected
    assert settings.items() - {("MLFLOW_IMAGE", settings["MLFLOW_IMAGE"])} <= team.settings().items()
    still_there(team, known)


def test_an_update_of_the_proxy_alone(team: Stack, known: dict[str, str]) -> None:
    before = running(team)
    follow(team, NEXT)
    team.make("up")
    assert started_anew(team, before) == {"nginx"}
    assert "worker_connections 4095" in team.compose("exec", "-T", "nginx", "nginx", "-T")
    assert team.settings()["NEW_SETTING"] == "7"
    still_there(team, known)


def test_a_location_of_ones_own(team: Stack) -> None:
    before = running(team)
    (team.folder / "nginx/local.d/mine.conf").write_text("location = /mine { return 418; }\n")
    team.make("up")
    assert started_anew(team, before) == {"nginx"}
    with pytest.raises(urllib.error.HTTPError, match="418"):
        urllib.request.urlopen(f"{team.url}/mine", timeout=10)


def test_other_answers_with_data(source: Path, tmp_path: Path) -> None:
    """From SQLite and local files to PostgreSQL, an object store and a proxy in the same folder; nothing is lost."""
    engine()
    one = rendered(tmp_path, "switched", {}, None, source, HERE)
    try:
        git(one.folder, "init", "--quiet")
        commit(one.folder, "Start")
        (one.folder / "NOTES.md").write_text("# Ours\n")
        commit(one.folder, "Ours")
        one.up()
        known = json.loads(one.client(CLIENT, "write").splitlines()[-1])["known"]
        follow(one, NEXT, backend="postgres", artifact_store="seaweedfs", reverse_proxy="nginx")
        del one.answers
        assert (one.folder / "nginx").exists() and not (one.folder / "scripts/local.sh").exists()
        assert (one.folder / "NOTES.md").read_text() == "# Ours\n"
        one.make("up")
        one.make("artifacts-move", "FROM=local")
        one.make("migrate", "FROM=local")
        still_there(one, known)
        one.make("check")
    finally:
        swept(one.name)  # the volumes of the parts that went stay for their owner
        removed(one)
