"""Single sign-on with a real provider: people log in on its own page, programs with tokens, and nobody else gets in."""

import base64
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import outside
import pytest
from browser import Visit, undisturbed
from journeys import Shell
from playwright.sync_api import expect
from stacks import HERE, ROOT, Stack, stack
from test_journeys import environment, gone_afterwards, template

# Chromium drops its connections whenever a container comes or goes.
pytestmark = pytest.mark.alone

SEARCH = "/api/2.0/mlflow/experiments/search?max_results=5"
WHO = "/ajax-api/2.0/mlflow/users/current"
STOCK_CLIENT = (HERE / "stock_client.py").read_text()
LOG = """
import mlflow
mlflow.set_experiment("by-a-person")
with mlflow.start_run():
    mlflow.log_metric("loss", 0.5)
    mlflow.log_text("hello", "greeting.txt")
"""


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that runs under a path, with its provider beside it; the scenarios have some without a path."""
    answers = {"auth": "oidc", "url_prefix": "/mlflow"}
    with (
        outside.provider() as provider,
        stack(tmp_path_factory.mktemp("oidc"), "oidc", answers | provider.answers) as made,
    ):
        said = made.make("init")
        for wanted in ("OIDC_ISSUER in .env", "OIDC_CLIENT_ID in .env", "secrets/oidc_client_secret"):
            assert f"{wanted} is empty" in said
        assert "up: error: OIDC_ISSUER in .env is empty" in made.make("up", fails=True)
        provider.fill(made)
        secret = made.folder / "secrets" / "oidc_client_secret"
        secret.write_text(secret.read_text() + "\n")  # as an editor leaves it
        made.setting("OIDC_ALLOWED_GROUPS", "research")
        made.up()
        made.provider = provider
        yield made


def ask(stack: Stack, path: str, token: str = "", basic: tuple[str, str] | None = None, **headers: str) -> tuple:
    """Return status and text of the stack's answer to a program."""
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if basic:
        headers["Authorization"] = "Basic " + base64.b64encode(":".join(basic).encode()).decode()
    try:
        with urllib.request.urlopen(urllib.request.Request(stack.url + path, headers=headers), timeout=30) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def make_token(stack: Stack, name: str, *words: str) -> dict[str, str]:
    """Return the variables that `make token` prints."""
    said = stack.make("token", f"NAME={name}", *words)
    return dict(re.findall(r"^export (MLFLOW_TRACKING_(?:USERNAME|PASSWORD))=(\S+)$", said, re.MULTILINE))


def sign_in(seen: Visit, url: str, mail: str) -> None:
    """Open the stack and log in on the provider's page, where the stack leads."""
    page = seen.page
    page.goto(f"{url}/")
    expect(page).to_have_url(re.compile(r"/dex/auth/local"))
    page.locator("input[name=login]").fill(mail)
    page.locator("input[name=password]").fill(outside.PASSWORD)
    page.locator("button[type=submit]").click()


def sign_in_and_out(stack: Stack, seen: Visit, word: str) -> None:
    """An administrator sees MLflow's pages, makes a token on the page for it, and signs out."""
    page, url = seen.page, stack.url
    sign_in(seen, url, "ada@example.com")
    expect(page).to_have_url(re.compile(re.escape(url) + "/"))
    seen.sees("Experiments")
    seen.keep("signed-in")
    (cookie,) = [one for one in page.context.cookies() if one["name"] == "stack_session"]
    assert cookie["httpOnly"] and cookie["sameSite"] == "Lax" and cookie["path"] == (stack.answers["url_prefix"] or "/")

    page.goto(f"{url}/stackops/token")
    seen.sees("ada@example.com")
    page.get_by_role("button", name="Make a token").click()
    lines = page.locator("pre").inner_text()
    seen.keep("token")
    token = re.search(r"PASSWORD=(mst_\w+)", lines)[1]
    assert ask(stack, SEARCH, basic=("ada@example.com", token))[0] == 200
    assert json.loads(ask(stack, WHO, basic=("ada@example.com", token))[1])["user"]["is_admin"]
    page.get_by_role("button", name="Revoke").click()
    seen.sees("Your token is revoked.")
    assert seen.troubles == []

    page.get_by_role("link", name="Sign out").click()
    expect(page.get_by_text("You are signed out here.")).to_be_visible()
    page.goto(f"{url}/")
    expect(page).to_have_url(re.compile(r"/dex/auth/local"))


def refused_at_the_door(stack: Stack, seen: Visit, word: str) -> None:
    """Whoever is in no group that is let in gets 403 after the provider's login, and nothing of MLflow."""
    with seen.page.expect_response(re.compile(r"/oauth2/callback\?")) as answer:
        sign_in(seen, stack.url, "max@example.com")
    assert answer.value.status == 403
    assert ask(stack, SEARCH)[0] == 401
    seen.keep("refused")


def test_people_log_in_at_the_provider(started: Stack) -> None:
    """In a real browser: in, around, out; and not in."""
    doors = started.doors | started.provider.doors
    undisturbed(started, partial(sign_in_and_out, started), doors, signs_in=False)
    undisturbed(started, partial(refused_at_the_door, started), doors, signs_in=False)


def test_the_page_leads_to_a_login(tmp_path: Path) -> None:
    """docs/single-sign-on.md from nothing to a logged-in browser, its commands as printed; then somebody logs in."""
    page = ROOT / "docs" / "single-sign-on.md"
    with outside.provider() as provider:
        port = provider.answers["http_port"]
        made = Stack(tmp_path / "mlflow-stack")
        shell = Shell(tmp_path, environment(), template("mlflow-stack", port))
        with gone_afterwards(made):
            try:
                shell.play(page, "## From nothing to a logged-in browser", "### 3. Fill in what the provider gives you")
                outside.Outside.fill(provider, made)  # and nothing else: the page says no more
                shell.play(page, "### 3. Fill in what the provider gives you", "## Who gets in, and what they may do")
            finally:
                shell.close()
            undisturbed(made, partial(logged_in, made), made.doors | provider.doors, signs_in=False)


def logged_in(stack: Stack, seen: Visit, word: str) -> None:
    """Somebody logs in on the provider's page and sees MLflow's."""
    sign_in(seen, stack.url, "ada@example.com")
    seen.sees("Experiments")


def test_a_program_works_with_a_token_of_the_stack(started: Stack) -> None:
    """`make token`: a new user without rights, who may do everything with what it makes, and nothing with the rest."""
    ours = make_token(started, "ci", "DAYS=7")
    assert ours["MLFLOW_TRACKING_USERNAME"] == "ci"
    done = json.loads(started.client(STOCK_CLIENT, "write", **ours).splitlines()[-1])
    assert set(done["errors"].values()) == {None}, done["errors"]
    run = done["known"]["run"]

    other = make_token(started, "other")
    who = ("other", other["MLFLOW_TRACKING_PASSWORD"])
    assert ask(started, SEARCH, basic=who)[0] == 200
    for path in (f"/api/2.0/mlflow/runs/get?run_id={run}", f"/get-artifact?run_uuid={run}&path=folder/4k.bin"):
        assert ask(started, path, basic=who)[0] == 403, path
    (experiment,) = json.loads(ask(started, SEARCH, basic=("ci", ours["MLFLOW_TRACKING_PASSWORD"]))[1])["experiments"]
    place = f"/api/2.0/mlflow-artifacts/artifacts/{experiment['experiment_id']}/{run}/artifacts/folder/4k.bin"
    assert ask(started, place, basic=("ci", ours["MLFLOW_TRACKING_PASSWORD"]))[0] == 200
    assert ask(started, place, basic=who)[0] == 403

    # One user's token is no other's, a changed one is none, and a new one replaces the old one.
    assert ask(started, SEARCH, basic=("ci", who[1]))[0] == 401
    assert ask(started, SEARCH, basic=("other", who[1][:-1] + ("0" if who[1][-1] != "0" else "1")))[0] == 401
    started.make("token-revoke", "NAME=other")
    assert ask(started, SEARCH, basic=who)[0] == 401
    for words, sentence in (
        ((), "who is it for?"),
        (("NAME=nobody@example.com",), "there is no user"),
        (("NAME=admin",), "has no token"),
        (("NAME=ci", "DAYS=400"), "is not a number from 1 to 366"),
    ):
        assert sentence in started.make("token", *words, fails=True)


AGED = """
import pathlib
from stackops import token
print(token.new(pathlib.Path("/run/secrets/flask_secret_key").read_text(), "ci", 1))
"""


def test_tokens_that_are_worth_nothing(started: Stack) -> None:
    """Expired, of another audience, of another provider, changed, unsigned: 401 each, and the header alone too."""
    provider = started.provider
    good = provider.token(username="rosa@example.com")
    until = time.time() + outside.TOKEN_SECONDS
    assert json.loads(ask(started, WHO, good)[1])["user"] == {
        "id": pytest.approx(3, abs=100), "username": "rosa@example.com", "is_admin": False,
    }  # fmt: skip
    started.client(LOG, MLFLOW_TRACKING_TOKEN=good, MLFLOW_TRACKING_USERNAME="", MLFLOW_TRACKING_PASSWORD="")
    head, body, signature = good.split(".")
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').decode().rstrip("=")
    with outside.provider() as foreign:
        bad = {
            "another audience": provider.token(client="another-application", username="rosa@example.com"),
            "another provider": foreign.token(username="ada@example.com"),
            "another key": ".".join([*foreign.token(username="ada@example.com").split(".")[:2], signature]),
            "another body": ".".join([head, foreign.token(username="ada@example.com").split(".")[1], signature]),
            "no signature": f"{unsigned}.{body}.",
            "no group that gets in": provider.token(username="max@example.com"),
            "no token": "nonsense",
        }
    for what, token in bad.items():
        status, text = ask(started, SEARCH, token)
        assert (status, json.loads(text)["error_code"]) == (401, "UNAUTHENTICATED"), what
    aged = started.compose("exec", "-T", "mlflow", "python", "-c", AGED).strip()
    assert ask(started, SEARCH, basic=("ci", aged))[0] == 401
    for headers in (
        {"X-Stack-User": "ada@example.com", "X-Stack-Key": started.secret("identity_key")},
        {"X-Auth-Request-Email": "ada@example.com", "X-Forwarded-User": "ada@example.com"},
    ):
        assert ask(started, SEARCH, **headers)[0] == 401, headers
    assert ask(started, "/oauth2/auth")[0] == 404
    assert ask(started, "/stackops/token", good)[0] == 403, "a token that ends soon gives none that lasts"
    time.sleep(max(0, until - time.time()) + 1)
    assert ask(started, SEARCH, good)[0] == 401, "an expired token"


PAST_NGINX = """
import sys, urllib.error, urllib.request
for headers in ({}, {"X-Stack-User": "ada@example.com"}, {"X-Stack-User": "ada@example.com", "X-Stack-Key": "wrong"}):
    url = "http://127.0.0.1:5000/api/2.0/mlflow/experiments/search?max_results=5"
    request = urllib.request.Request(url, headers=headers)
    try:
        print(urllib.request.urlopen(request).status)
    except urllib.error.HTTPError as error:
        print(error.code)
"""


def test_only_nginx_says_who_somebody_is(started: Stack) -> None:
    """Past nginx, the header that names a person is worth nothing without the key."""
    assert started.compose("exec", "-T", "mlflow", "python", "-c", PAST_NGINX).split() == ["401"] * 3


ROLES = """
import mlflow.server.auth.client as auth, sys
client = auth.AuthServiceClient(sys.argv[1])
role = client.create_role("default", "group:research")
client.add_role_permission(role.id, "experiment", "*", "READ")
"""


def test_groups_give_roles(started: Stack) -> None:
    """MLflow's role `group:research` is what the provider's group gets, from the next minute on."""
    rosa = {"Authorization": "Bearer " + started.provider.token(username="rosa@example.com")}
    assert "Default" not in ask(started, SEARCH, **rosa)[1]
    started.client(ROLES, started.url)
    until = time.monotonic() + 120
    while "Default" not in ask(started, SEARCH, token=started.provider.token(username="rosa@example.com"))[1]:
        assert time.monotonic() < until, "the role is not given"
        time.sleep(5)


def test_a_permission_is_given_by_command(started: Stack) -> None:
    """`make grant`: a user sees what somebody gave to them, and no more."""
    who = ("granted", make_token(started, "granted")["MLFLOW_TRACKING_PASSWORD"])
    assert "Default" not in ask(started, SEARCH, basic=who)[1]
    assert "granted: READ on experiment" in started.make(
        "grant", "USER=granted", "EXPERIMENT=Default", "PERMISSION=READ"
    )
    assert "Default" in ask(started, SEARCH, basic=who)[1]
    assert "there is no user nobody" in started.make("grant", "USER=nobody", fails=True)


def test_wrong_passwords_are_limited_and_people_are_not(started: Stack) -> None:
    """Guesses of the admin's password end with 429; whom nginx names, and who has a token, are not slowed."""
    who = ("known", make_token(started, "known")["MLFLOW_TRACKING_PASSWORD"])
    assert ask(started, SEARCH, basic=who)[0] == 200
    found = [ask(started, SEARCH, basic=("admin", f"wrong password {number}"))[0] for number in range(15)]
    assert found[0] == 401 and found[-1] == 429, found
    assert ask(started, SEARCH, basic=who)[0] == 200
    assert ask(started, SEARCH, started.provider.token(username="rosa@example.com"))[0] == 200
