"""Users come, change and go while the server runs on; wrong passwords are limited, and slow nobody who is in."""

import base64
import concurrent.futures
import http.client
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stacks import Stack, run, stack

pytestmark = pytest.mark.docker

WHO = "import mlflow; print(len(mlflow.search_experiments()))"
READ = "/api/2.0/mlflow/experiments/search?max_results=1"
LONG = "p@ss:w/o#rd%1[]\\ and more"


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def basic(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with a list of users, behind either proxy."""
    answers = {"reverse_proxy": request.param, "auth": "basic"}
    with stack(tmp_path_factory.mktemp("basic"), f"e-basic-{request.param}", answers) as one:
        one.up()
        yield one


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with MLflow's own users behind nginx, and two server processes."""
    answers = {"reverse_proxy": "nginx", "auth": "mlflow"}
    settings = {"MLFLOW_WORKERS": "2"}
    with stack(tmp_path_factory.mktemp("accounts"), "e-accounts", answers, settings) as one:
        one.up()
        yield one


def ask(one: Stack, path: str = READ, name: str = "", password: str = "", **headers: str) -> http.client.HTTPResponse:
    """Send one GET as it is written, and return the answer, read."""
    address = one.doors[one.url.split("//")[1].split("/")[0]]
    connection = http.client.HTTPConnection(address, timeout=60)
    if name:
        headers["Authorization"] = "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()
    connection.putrequest("GET", path, skip_host=True)
    for key, value in {"Host": one.url.split("//")[1].split("/")[0], **headers}.items():
        connection.putheader(key.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    answer.body = answer.read()
    connection.close()
    return answer


def status(one: Stack, name: str = "", password: str = "", path: str = READ) -> int:
    """Return the status of an API read."""
    return ask(one, path, name, password).status


def come_change_and_go(one: Stack) -> None:
    """Add a user, change the password, remove the user; a running client notices each within two seconds."""
    said = one.make("user-add", "NAME=ann", input=f"{LONG}\n")
    assert "added ann" in said and LONG not in said
    login = {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": LONG}
    assert one.client(WHO, **login).strip().isdigit()
    assert "there is a user ann already" in one.make("user-add", "NAME=ann", input=f"{LONG}\n", fails=True)
    assert "12 to 200" in one.make("user-password", "NAME=ann", input="short\n", fails=True)
    assert status(one, "ann", LONG) == 200

    said = one.make("user-password", "NAME=ann", input="")  # nothing: a random one, printed once
    new = said.partition("shown this once: ")[2].strip()
    time.sleep(2)  # nginx does not ask again in the second after a login was right
    assert len(new) == 24 and status(one, "ann", LONG) == 401 and status(one, "ann", new) == 200
    assert [line.split()[0] for line in one.make("user-list").splitlines()] == ["admin", "ann"]

    one.make("user-remove", "NAME=ann")
    time.sleep(2)
    assert status(one, "ann", new) == 401
    assert "there is no user ann" in one.make("user-remove", "NAME=ann", fails=True)
    for words, said in (
        (("user-remove", "NAME=admin"), "admin stays"),
        (("user-password", "NAME=admin"), "secrets/admin_password"),
        (("user-add",), "say who"),
    ):
        assert said in one.make(*words, fails=True, input="", env={"NAME": "from the shell"})
    assert status(one, "admin", one.secret("admin_password")) == 200
    logs = one.compose("logs", "--no-log-prefix")
    assert LONG not in logs and new not in logs


def limited(one: Stack) -> None:
    """Somebody guesses from the same address; who is in works on, at the same speed."""
    admin = one.secret("admin_password")

    def reads(count: int = 40) -> float:
        start = time.monotonic()
        assert [status(one, "admin", admin) for _ in range(count)] == [200] * count
        return time.monotonic() - start

    alone = min(reads() for _ in range(3))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        guesses = [pool.submit(ask, one, READ, "admin2", f"guess {n}") for n in range(80)]
        answers = [guess.result() for guess in guesses]
    seen = [answer.status for answer in answers]
    assert set(seen) == {401, 429}, seen
    assert 10 <= seen.count(401) <= 10 * 2 + 4, seen  # ten for each of at most two processes, and what leaks meanwhile
    refused = next(answer for answer in answers if answer.status == 429)
    assert 1 <= int(refused.headers["Retry-After"]) <= 16 and b"Too many failed logins" in refused.body
    assert "www-authenticate" in next(answer.headers for answer in answers if answer.status == 401)
    # A lie about the address changes nothing.
    for header in ("X_Real_IP", "X_Forwarded_For"):
        lie = ask(one, READ, "admin2", "guess", **{header: "9.9.9.9"})
        assert lie.status == 429, header
    locked = min(reads() for _ in range(3))
    assert locked < 2 * alone + 1, (alone, locked)


def test_basic_users_come_change_and_go(basic: Stack) -> None:
    come_change_and_go(basic)
    proxy = basic.answers["reverse_proxy"]
    lines = [x for x in basic.compose("logs", "--no-log-prefix", proxy).splitlines() if READ.split("?")[0] in x]
    assert any('"user":"ann"' in x and '"status":200' in x for x in lines), "the access log names the user"
    assert not any('"user":"ann"' in x and '"status":401' in x for x in lines), "it names who was not let in"


def test_basic_only_the_proxy_asks_for_logins(basic: Stack) -> None:
    """The path that the proxy asks is nobody else's, however it is written."""
    admin = basic.secret("admin_password")
    tricks = (
        "/stackops/login", "/stackops/login/", "//stackops/login", "/./stackops/login", "/x/../stackops/login",
        "/stackops%2flogin", "/%73tackops/login", "/stackops/login?x", "/stackops//login", "/stackops/./login",
        "/stackops/x/../login", "/static-files/../stackops/login", "/stackops/login%3Fx", "/stackops/",
    )  # fmt: skip
    for trick in tricks:
        for name in ("", "admin"):
            # Caddy asks for the login first, whatever the path.
            expected = 401 if basic.answers["reverse_proxy"] == "caddy" and not name else 404
            found = status(basic, name, admin, trick)
            assert found == expected, (trick, name, found)
    assert status(basic) == 401 and status(basic, path="/") == 401
    assert ask(basic).headers["WWW-Authenticate"] == f'Basic realm="{basic.name}"'
    # A refusal of MLflow's stays what it is.
    refused = ask(basic, READ, "admin", admin, Host="evil.example.com")
    assert refused.status == 403 and "Retry-After" not in refused.headers


def test_basic_bodies_go_to_mlflow_alone(basic: Stack) -> None:
    """The question about the login has no body, so none is left on the connection for the next request."""
    login = base64.b64encode(f"admin:{basic.secret('admin_password')}".encode()).decode()
    address = basic.doors[basic.url.split("//")[1].split("/")[0]]
    for length in (1, 5000, 300_000) * 5:
        body = b'{"max_results": 1' + b" " * length + b"}"
        for chunked in (False, True):
            connection = http.client.HTTPConnection(address, timeout=60)
            headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
            sent = iter([body]) if chunked else body
            connection.request("POST", READ.partition("?")[0], sent, headers, encode_chunked=chunked)
            answer = connection.getresponse()
            # Behind a streaming proxy MLflow takes a chunked body for none, and says so.
            assert answer.status == 200 or (chunked and b"max_results" in answer.read()), (length, chunked)
            connection.close()
    assert status(basic, "admin", basic.secret("admin_password")) == 200


def test_basic_wrong_passwords_are_limited(basic: Stack) -> None:
    limited(basic)


def test_basic_a_list_that_was_replaced_by_hand_is_told(basic: Stack) -> None:
    path = basic.folder / "secrets" / "htpasswd"
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    os.chown(copy, path.stat().st_uid, path.stat().st_gid)
    copy.chmod(0o600)
    copy.replace(path)
    said = basic.make("user-add", "NAME=bob", input=f"{LONG}\n", fails=True)
    assert "added bob" in said and "run 'make restart'" in said and status(basic, "bob", LONG) in (401, 429)
    basic.make("restart")
    assert status(basic, "bob", LONG) == 200


def test_basic_the_admins_password_is_the_secrets(basic: Stack) -> None:
    (basic.folder / "secrets" / "admin_password").write_text("quite another password\n")
    basic.make("up")
    assert status(basic, "admin", "quite another password") == 200


def test_mlflow_users_come_change_and_go(accounts: Stack) -> None:
    come_change_and_go(accounts)


def test_mlflow_grants(accounts: Stack) -> None:
    accounts.client("import mlflow; mlflow.set_experiment('one'); mlflow.MlflowClient().create_registered_model('m')")
    accounts.make("user-add", "NAME=eve", input=f"{LONG}\n")
    eve = {"MLFLOW_TRACKING_USERNAME": "eve", "MLFLOW_TRACKING_PASSWORD": LONG}
    log = "import mlflow; mlflow.set_experiment('one'); mlflow.start_run(); mlflow.log_metric('x', 1)"
    read = "import mlflow; c = mlflow.MlflowClient(); print(c.get_experiment_by_name('one').name)"
    model = "import mlflow; print(mlflow.MlflowClient().get_registered_model('m').name)"
    assert "no permission yet" in accounts.make("grant", "USER=eve", env={"EXPERIMENT": ""})
    assert "Permission denied" in accounts.client(read, fails=True, **eve)

    accounts.make("grant", "USER=eve", "EXPERIMENT=one", "PERMISSION=read")
    assert accounts.client(read, **eve).strip() == "one"
    assert "Permission denied" in accounts.client(log, fails=True, **eve)
    accounts.make("grant", "USER=eve", "EXPERIMENT=1", "PERMISSION=EDIT")
    accounts.client(log, **eve)
    assert "Permission denied" in accounts.client(model, fails=True, **eve)
    accounts.make("grant", "USER=eve", "MODEL=m", "PERMISSION=READ")
    assert accounts.client(model, **eve).strip() == "m"
    shown = accounts.make("grant", "USER=eve")
    assert "EDIT    experiment        one (id 1)" in shown and "READ    registered_model  m" in shown

    accounts.make("grant", "USER=eve", "EXPERIMENT=one", "PERMISSION=NO_PERMISSIONS")
    assert "Permission denied" in accounts.client(read, fails=True, **eve)
    for words, said in (
        (("USER=eve", "EXPERIMENT=two", "PERMISSION=READ"), "there is no experiment two"),
        (("USER=eve", "MODEL=n", "PERMISSION=READ"), "there is no model n"),
        (("USER=zoe", "EXPERIMENT=one", "PERMISSION=READ"), "there is no user zoe"),
        (("USER=eve", "EXPERIMENT=one", "PERMISSION=ALL"), "the permission is ALL: there are READ, USE"),
        (("USER=eve", "PERMISSION=READ"), "say for what"),
        (("EXPERIMENT=one", "PERMISSION=READ"), "say who"),
    ):
        assert said in accounts.make("grant", *words, fails=True, env={"USER": "root"})


def test_mlflow_wrong_passwords_are_limited(accounts: Stack) -> None:
    limited(accounts)


def test_the_scripts_hold_no_password_in_an_argument(basic: Stack, tmp_path: Path) -> None:
    """What the script starts is written down by a stand-in for docker."""
    log, fake = tmp_path / "log", tmp_path / "docker"
    fake.write_text(f'#!/bin/sh\necho "$@" >>{log}\nenv >>{log}\ncat >/dev/null\n')
    fake.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "WHO": "ann"}
    done = run("scripts/users.sh", "add", cwd=basic.folder, env=env, input=f"{LONG}\n")
    assert done.returncode == 0, done.stderr
    assert "user add -- ann" in log.read_text() and LONG not in log.read_text()
