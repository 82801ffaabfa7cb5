"""`make rotate-secrets` on real stacks, with a client at work, and killed; and `make doctor` before and after."""

import http.client
import json
import os
import re
import signal
import subprocess
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import outside
import pytest
import requests
from stacks import Stack, run, stack
from test_faults import compare, ledger_of, log, until

PUT = """
from stackops import settings
env = settings.adopt()
from mlflow.entities.webhook import WebhookEvent
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Tracking
tracking = Tracking(env["MLFLOW_BACKEND_STORE_URI"], "mlflow-artifacts:/")
tracking.create_gateway_secret("key", {"api_key": "sk-of-a-provider"}, provider="openai")
event = WebhookEvent.from_str("registered_model.created")
registry = Registry(env["MLFLOW_BACKEND_STORE_URI"])
registry.create_webhook("hook", "https://8.8.8.8/x", [event], secret="hmac-of-the-hook")
"""
GET = """
from stackops import settings
env = settings.adopt()
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Tracking
tracking = Tracking(env["MLFLOW_BACKEND_STORE_URI"], "mlflow-artifacts:/")
key = tracking.get_secret_info(secret_name="key").secret_id
registry = Registry(env["MLFLOW_BACKEND_STORE_URI"])
print(tracking._get_decrypted_secret(key)["api_key"], registry.list_webhooks()[0].secret)
"""
"""What MLflow stores encrypted, and back."""

LOGIN = """
import os, sys, psycopg2
user, database = ("postgres", "postgres") if sys.argv[1] == "postgres_password" else ("mlflow", "mlflow")
try:
    psycopg2.connect(host="postgres", user=user, dbname=database, password=sys.stdin.read().strip()).close()
    print("in")
except psycopg2.OperationalError as error:
    print("refused" if "authentication failed" in str(error) else error)
"""
KEY = """
import os, sys, boto3
from botocore.exceptions import ClientError
from stackops.rotation import pair
try:
    s3 = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"], **pair.key(sys.stdin.read()))
    s3.list_objects_v2(Bucket=os.environ["ARTIFACT_URI"].removeprefix("s3://"), MaxKeys=1)
    print("in")
except ClientError as error:
    print("refused" if error.response["ResponseMetadata"]["HTTPStatusCode"] == 403 else error)
"""


def secrets_of(made: Stack) -> dict[str, str]:
    """Return name -> text."""
    return {path.name: path.read_text() for path in (made.folder / "secrets").iterdir() if path.is_file()}


def inside(made: Stack, script: str, *words: str, text: str = "") -> str:
    """Run a Python program in the server's container; return its last line."""
    said = made.compose("exec", "-T", "mlflow", "python", "-c", script, *words, input=text).strip()
    return said.splitlines()[-1] if said else ""


def admin(made: Stack, password: str) -> int:
    """Ask as admin from outside; return the status."""
    public, address = next(iter(made.doors.items()))
    host, port = address.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    token = b64encode(f"admin:{password}".encode()).decode()
    path = "/api/2.0/mlflow/experiments/search?max_results=1"
    connection.request("GET", path, headers={"Host": public, "Authorization": f"Basic {token}"})
    return connection.getresponse().status


def doctor(made: Stack) -> tuple[int, list[dict[str, str]]]:
    """Return the exit code of `make doctor`, and what it found besides what is well."""
    done = run("scripts/doctor.sh", cwd=made.folder, env={"JSON": "1"})
    findings = json.loads(done.stdout)["findings"]
    # The harness gives every stack a port for its store; this machine's disk is not the stack's.
    found = [one for one in findings if one["level"] != "ok" and "STORE_PORT" not in one["text"]]
    found = [one for one in found if (one["level"], one["check"]) != ("warn", "disk")]
    return done.returncode, found


def serious(made: Stack) -> str:
    """Return the texts of serious findings, which there must be."""
    code, found = doctor(made)
    assert code == 1
    assert all(one["command"] for one in found)
    return "\n".join(one["text"] for one in found if one["level"] == "serious")


def nothing_old_works(made: Stack, old: dict[str, str]) -> None:
    """The old secrets are refused, the new ones are not, and no copy of an old one is left."""
    new = secrets_of(made)
    assert {name for name in old if old[name] == new.get(name)} <= {"passwd", "object_store_root_user"}
    assert new.keys() == old.keys()
    if "postgres_password" in old:
        for name in ("db_password", "postgres_password"):
            assert (inside(made, LOGIN, name, text=old[name]), inside(made, LOGIN, name, text=new[name])) == (
                "refused",
                "in",
            )
    for name in ("s3_credentials", "object_store_admin"):
        if name in old:
            assert (inside(made, KEY, text=old[name]), inside(made, KEY, text=new[name])) == ("refused", "in")
    if "admin_password" in old:
        assert (admin(made, old["admin_password"]), admin(made, new["admin_password"])) == (401, 200)


def shown(made: Stack, said: str, *of: dict[str, str]) -> list[str]:
    """Return the secrets whose value is in `said` or in what the engine describes and logs."""
    places = said + "".join(
        run("docker", *what, container).stdout
        for container in made.compose("ps", "--all", "--quiet").split()
        for what in (("inspect",), ("logs",))
    )
    return [name for secrets in of for name, text in secrets.items() if name != "passwd" and text.strip() in places]


def test_everything_is_changed_while_a_client_logs(tmp_path: Path) -> None:
    """The stock client only waits, nothing that was acknowledged is lost, and what was stored encrypted can be read."""
    with stack(tmp_path, "rotation", {"purpose": "team"}) as made:
        made.setting("HTTP_BIND", "127.0.0.1")
        (made.folder / ".env").chmod(0o600)
        made.up()
        assert doctor(made) == (0, [])
        inside(made, PUT)
        old, ledger = secrets_of(made), ledger_of(made, "rotated")
        client_login = made.login()
        with ThreadPoolExecutor(1) as one:
            # The login is kept: a client has the password that it was started with until somebody gives it the new one.
            client = one.submit(log, made, "rotated", 150, timeout=400)
            until(lambda: ledger.exists() and ledger.read_text().count("sha256") > 3, 90, "the client is at work")
            said = made.make("rotate-secrets", "SECRET=keys,database,store")
            assert not client.done(), "the client was to be at work meanwhile"
            client.result()
        assert client_login == made.login()
        said += made.make("rotate-secrets", "SECRET=login")
        compare(made, ledger)
        nothing_old_works(made, old)
        assert inside(made, GET) == "sk-of-a-provider hmac-of-the-hook"
        assert shown(made, said, old, secrets_of(made)) == []
        assert doctor(made) == (0, [])
        killed(made, ledger)
        planted_faults(made)


def killed(made: Stack, ledger: Path) -> None:
    """kill -9 while the new secrets are made, and in the midst of putting them into force: the next run finishes."""
    old = secrets_of(made)
    for sign in (".*.next", ".*.old"):
        begun = subprocess.Popen(
            ["scripts/rotate-secrets.sh"], cwd=made.folder, start_new_session=True, stderr=subprocess.DEVNULL
        )
        until(lambda sign=sign: [*(made.folder / "secrets").glob(sign)], 120, f"there is a {sign}")
        os.killpg(begun.pid, signal.SIGKILL)
        begun.wait()
        for container in run("docker", "ps", "-q", "--filter", f"name={made.name}-mlflow-run").stdout.split():
            run("docker", "kill", container)
        assert "a change of secrets was interrupted" in serious(made)
        finish(made)
        assert not [*(made.folder / "secrets").glob(".*")]
    nothing_old_works(made, old)
    compare(made, ledger)
    assert inside(made, GET) == "sk-of-a-provider hmac-of-the-hook"


def finish(made: Stack) -> None:
    """Finish what was interrupted; meanwhile `make up` and a second rotation change nothing and say who is at work."""
    begun = subprocess.Popen(["make", "rotate-secrets"], cwd=made.folder, stdout=-1, stderr=-1, text=True)
    until((made.folder / ".rotate-secrets.lock").is_symlink, 30, "the lock is there")
    for target in ("up", "rotate-secrets"):
        said = made.make(target, fails=True)
        assert "rotate-secrets' (process " in said and "wait until it has ended" in said, said
    assert begun.poll() is None, "it was to be at work meanwhile"
    said = "".join(begun.communicate(timeout=300))
    assert begun.returncode == 0, said


def planted_faults(made: Stack) -> None:
    """A doctor finds on a real stack what was spoilt."""
    (made.folder / "secrets" / "db_password").chmod(0o644)
    made.setting("HTTP_BIND", "0.0.0.0")
    made.compose("stop", "nginx")
    said = serious(made)
    assert "others may read secrets/db_password (mode 644)" in said
    assert "nginx answers other machines at 0.0.0.0" in said and "nginx is exited" in said
    made.setting("HTTP_BIND", "127.0.0.1")
    (made.folder / "secrets" / "db_password").chmod(0o600)
    # Only 'make check' reads this one.
    (made.folder / "secrets" / "admin_password").write_text("admin")
    assert "secrets/admin_password is a word that attackers try first" in serious(made)
    made.compose("down")
    assert "the stack does not run" in serious(made)


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("rot-minio", {"artifact_store": "minio", "auth": "mlflow"}),
    ],
)
def test_another_stack(tmp_path: Path, name: str, answers: dict[str, str]) -> None:
    """SQLite, the other store, MLflow's own users: all at once."""
    with stack(tmp_path, name, answers) as made:
        (made.folder / ".env").chmod(0o600)
        made.up()
        inside(made, PUT)
        ledger, old = log(made, "before", 2), secrets_of(made)
        said = made.make("rotate-secrets")
        nothing_old_works(made, old)
        compare(made, ledger)
        assert inside(made, GET) == "sk-of-a-provider hmac-of-the-hook"
        assert shown(made, said, old, secrets_of(made)) == []
        assert doctor(made) == (0, [])
        assert "no secret 'nonsense'" in made.make("rotate-secrets", "SECRET=nonsense", fails=True)


SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"


def test_single_sign_on(tmp_path: Path) -> None:
    """People log in again, programs get new tokens, the provider's new secret is taken over, and no old one works.

    The provider's certificate is of a private authority.
    """
    with (
        outside.provider(private=True) as provider,
        stack(tmp_path, "rot-oidc", {"auth": "oidc"} | provider.answers) as made,
    ):
        (made.folder / ".env").chmod(0o600)
        provider.fill(made)
        authority = made.folder / "secrets" / "oidc_ca.pem"
        authority.write_text("")
        said = made.make("up", fails=True)
        assert "up: error: oauth2-proxy does not start" in said and "certificate signed by unknown authority" in said
        authority.write_text(provider.secrets["oidc_ca.pem"])
        made.up()
        assert doctor(made) == (0, [])

        ada, old = provider.log_in(made.url, "ada@example.com"), secrets_of(made)
        token = re.search(r"mst_\w+", made.make("token", "NAME=ci"))[0]

        def works(bearer: str) -> list[int]:
            """Ask as the person who logged in before, as a program with the old token, and with one of the provider."""
            headers = {"Authorization": f"Bearer {bearer}"}
            return [
                ada.get(made.url + SEARCH, timeout=30, allow_redirects=False).status_code,
                requests.get(made.url + SEARCH, auth=("ci", token), timeout=30).status_code,
                requests.get(made.url + SEARCH, headers=headers, timeout=30).status_code,
            ]

        assert works(provider.token(username="rosa@example.com")) == [200, 200, 200]
        said = made.make("rotate-secrets")
        assert "programs need new tokens" in said and "SECRET=provider" in said
        new = secrets_of(made)
        assert {name for name in old if old[name] == new[name]} == {"oidc_client_secret", "oidc_ca.pem"}
        ada.headers["Accept"] = "application/json"
        assert works(provider.token(username="rosa@example.com")) == [401, 401, 200]
        assert shown(made, said, old, new) == []
        script = PAST_NGINX.replace("KEY", repr((old["identity_key"], new["identity_key"])))
        assert inside(made, script) == "401 200"
        ada = provider.log_in(made.url, "ada@example.com")
        token = re.search(r"mst_\w+", made.make("token", "NAME=ci"))[0]
        assert works(provider.token(username="rosa@example.com")) == [200, 200, 200]

        # The provider's own secret.
        (file := tmp_path / "new").write_text(provider.renew() + "\n")
        nobody = provider.log_in(made.url, "ada@example.com")  # the provider knows her, and not the stack
        answer = nobody.get(made.url + SEARCH, timeout=30, allow_redirects=False)
        assert answer.status_code == 302 and "/dex/auth" in answer.headers["Location"]
        assert "is issued elsewhere" in made.make("rotate-secrets", "SECRET=provider", fails=True)
        made.make("rotate-secrets", "SECRET=provider", f"FROM={file}")
        assert made.secret("oidc_client_secret") == provider.secrets["oidc_client_secret"]
        ada = provider.log_in(made.url, "ada@example.com")
        assert works(provider.token(username="rosa@example.com")) == [200, 200, 200]
        assert doctor(made) == (0, [])


PAST_NGINX = """
import urllib.error, urllib.request
found = []
for key in KEY:
    headers = {"X-Stack-User": "ada@example.com", "X-Stack-Key": key}
    url = "http://127.0.0.1:5000/api/2.0/mlflow/experiments/search?max_results=5"
    try:
        found.append(urllib.request.urlopen(urllib.request.Request(url, headers=headers)).status)
    except urllib.error.HTTPError as error:
        found.append(error.code)
print(*found)
"""
