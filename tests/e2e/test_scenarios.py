"""Every scenario of the covering array as its owner runs it: rendered, filled in, `make up`, `make check`, used by the
stock client from outside, looked at from all sides, `make down`.

A check is a function here that takes the running scenario; each is a subtest of its scenario. Those in `FURTHER` take
long and run on one scenario each.
"""

import contextlib
import http.client
import json
import re
import socket
import ssl
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import outside
import pytest
from covering import Scenario, core, scenarios
from stacks import HERE, Stack, leftovers, run, stack

STOCK_CLIENT = (HERE / "stock_client.py").read_text()
STORES_OF_OUR_OWN = ("seaweedfs", "minio")
SCENARIOS = scenarios()
# The core starts every value; pairs of values are started when what is rendered has changed, or how it is tested.
HELPERS = (f"tests/e2e/{name}.py" for name in ("covering", "outside", "stacks", "stock_client"))
PAIRS = pytest.mark.watches("template/*", "extensions/*", "copier.yml", *HELPERS)


@dataclass
class Running:
    """A scenario whose stack runs."""

    stack: Stack
    services: dict[str, outside.Outside]  # question -> the service outside that its answer needs
    known: dict[str, str] = field(default_factory=dict)  # the run and the trace that the stock client left

    def answer(self, name: str) -> str:
        """Return an answer."""
        return self.stack.answers[name]

    @property
    def has_s3(self) -> bool:
        """Whether artifacts are in an S3 store."""
        return self.answer("artifact_store") in (*STORES_OF_OUR_OWN, "s3")

    def client(self, *words: str, script: str = STOCK_CLIENT) -> str:
        """Run the stock client, or another program with MLflow.

        What it reaches besides the server, and with which key, follows from the access.
        """
        access, doors, variables = self.answer("artifact_access"), {}, {}
        service = self.services.get("artifact_store")
        if service and access != "proxied":
            doors = service.doors
        if access == "direct":
            key = "s3_credentials" if service else "client_s3_credentials"
            endpoint = f"{self.stack.scheme}://{list(self.stack.doors)[-1]}"
            own = {"MLFLOW_S3_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"}
            variables = service.client if service else own
            if self.has_s3:
                variables = variables | {"AWS_SHARED_CREDENTIALS_FILE": str(self.stack.folder / "secrets" / key)}
        return self.stack.client(script, *words, doors=doors, **variables)

    def trust(self, names: bool = True) -> ssl.SSLContext:
        """Return what trusts the stack's certificate; without `names`, also at its address."""
        context = ssl.create_default_context(cafile=next(iter(self.stack.trust().values()), None))
        context.check_hostname = names
        return context

    def inside(self, script: str, **more: Any) -> str:
        """Run a Python program inside the server's container."""
        return self.stack.compose("exec", "-T", "mlflow", "python", "-c", script, **more)

    def ask(
        self,
        path: str,
        data: bytes | None = None,
        login: str | None = "admin",
        method: str | None = None,
        prefix: bool = True,
        **headers: str,
    ) -> http.client.HTTPResponse | urllib.error.HTTPError:
        """Send a request to the stack's published port, by default as admin under its public name; return the answer.

        Its body is JSON, if it has one. `prefix` is whether the path is below the stack's.
        """
        public, address = next(iter(self.stack.doors.items()))
        headers = {"Host": public, "Content-Type": "application/json"} | headers
        url = f"{self.stack.scheme}://{address}{self.answer('url_prefix') if prefix else ''}{path}"
        request = urllib.request.Request(url, data, headers, method=method)
        if login and self.answer("auth") != "none":
            word = self.stack.secret("admin_password") if login == "admin" else "wrong-password"
            request.add_header("Authorization", "Basic " + b64encode(f"admin:{word}".encode()).decode())
        try:
            with urllib.request.urlopen(request, timeout=30, context=self.trust(names=False)) as answer:
                answer.text = answer.read()
                return answer
        except urllib.error.HTTPError as error:
            return error


def check_as_in_the_readme(it: Running) -> None:
    """`make check` passes."""
    assert re.search(r"^OK \(", it.stack.make("check"), re.MULTILINE)


def hosts_and_origins(it: Running) -> None:
    """The public name and the stack's own pages are answered; other names and other people's pages are not."""
    search, body = "/ajax-api/2.0/mlflow/experiments/search", b'{"max_results": 1}'
    own, strange = f"{it.stack.scheme}://{next(iter(it.stack.doors))}", "http://evil.example.net"
    neighbours = ("http://localhost:9", "https://127.0.0.1:8888", "http://localhost")  # MLflow's own rule
    inside = "http://127.0.0.1:5000/health"
    assert it.inside(f"import urllib.request; print(urllib.request.urlopen('{inside}').status)").strip() == "200"
    for path in ("/health", "/metrics") if it.answer("reverse_proxy") != "none" else ():
        assert it.ask(path).status == 404, f"{path} is not for people outside"
    assert it.ask(search + "?max_results=1").status == 200
    assert it.ask(search, body).status == 200
    for origin in (own, *neighbours):
        assert it.ask(search, body, Origin=origin).status == 200, origin
    assert it.ask(search + "?max_results=1", Host="evil.example.net").status == 403
    assert it.ask(search.replace("ajax-", ""), body, Origin=strange).status == 403
    for path in (search, "/graphql", "/v1/traces"):
        assert it.ask(path, body, Origin=strange).status == 403, path
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        allowed = it.ask(path, method="OPTIONS", Origin=strange, **asked).headers.get("Access-Control-Allow-Origin")
        assert allowed not in ("*", strange), f"{path}: {allowed}"
    if it.answer("url_prefix"):
        assert it.ask("/health", prefix=False, login=None).status in (401, 404)


def encrypted(it: Running) -> None:
    """The certificate is good for the public names, http leads on to https, old TLS is refused, HSTS is as chosen."""
    for door, address in it.stack.doors.items():
        host, port = address.split(":")
        name = door.rpartition(":")[0]
        plain = socket.create_connection((host, int(port)), 10)
        with plain, it.trust().wrap_socket(plain, server_hostname=name) as tls:
            assert tls.version() == "TLSv1.3", tls.version()
        old = it.trust()
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        old.set_ciphers("ALL:@SECLEVEL=0")
        with socket.create_connection((host, int(port)), 10) as plain, pytest.raises((ssl.SSLError, OSError)):
            old.wrap_socket(plain, server_hostname=name)
        for ciphers, good in (("ECDHE+AESGCM", True), ("ECDHE+AES:!AESGCM:!AESCCM", False), ("kRSA", False)):
            some = it.trust()
            some.maximum_version = ssl.TLSVersion.TLSv1_2
            some.set_ciphers(f"{ciphers}:@SECLEVEL=0")
            with socket.create_connection((host, int(port)), 10) as plain:
                try:
                    some.wrap_socket(plain, server_hostname=name).close()
                    assert good, f"{door} takes {ciphers}"
                except (ssl.SSLError, OSError) as error:
                    assert not good, f"{door} refuses {ciphers}: {error}"
    public = next(iter(it.stack.doors))
    connection = http.client.HTTPConnection("127.0.0.1", int(it.answer("http_port")), timeout=10)
    with contextlib.closing(connection):
        host = f"{public.rpartition(':')[0]}:{it.answer('http_port')}"
        connection.request("POST", "/graphql?a=b%20c", b"{}", {"Host": host})
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Location")) == (308, f"https://{public}/graphql?a=b%20c")
    promise = {"files": "max-age=0", "acme": "max-age=31536000"}.get(it.answer("tls"))
    assert it.ask("/health").headers.get("Strict-Transport-Security") == promise


def cookies_are_for_https_alone(it: Running) -> None:
    """Every cookie is `Secure`: MLflow's form for new users sets one, and single sign-on as it leads to a login."""
    paths = {"mlflow": ["/signup"], "oidc": ["/signup", "/oauth2/start"]}.get(it.answer("auth"), [])
    public, address = next(iter(it.stack.doors.items()))
    found = []
    for path in ("/", *paths):
        connection = http.client.HTTPSConnection(address, timeout=30, context=it.trust(names=False))
        with contextlib.closing(connection):
            headers = {"Host": public}
            if it.answer("auth") != "none" and "oauth2" not in path:
                login = f"admin:{it.stack.secret('admin_password')}"
                headers["Authorization"] = "Basic " + b64encode(login.encode()).decode()
            connection.request("GET", it.answer("url_prefix") + path, headers=headers)
            found.append(connection.getresponse().headers.get_all("Set-Cookie") or [])
    assert all(found[1:]), f"a page that was to set a cookie does not: {found}"
    for cookie in (cookie for page in found for cookie in page):
        assert [word.strip().lower() for word in cookie.split(";")].count("secure") == 1, cookie


def no_signed_link_is_logged(it: Running) -> None:
    """A signed link is a key to its object for some minutes; the proxy's log has the object's name and no more."""
    said = it.stack.compose("logs", "--no-log-prefix", it.answer("reverse_proxy"))
    assert it.known["run"] in said and "artifacts/folder/4k.bin" in said, "the client's transfers are in the log"
    assert not re.search("(?i)x-amz-|signature", said)


def doctor_looks_at_the_certificate(it: Running) -> None:
    """The one that the proxy really shows, wherever it comes from: nothing is wrong with it, and that is said."""
    said = run("scripts/doctor.sh", cwd=it.stack.folder, env={"JSON": "1"}).stdout
    found = [one for one in json.loads(said)["findings"] if one["check"] in ("certificate", "served certificate")]
    assert ("served certificate", "ok") in [(one["check"], one["level"]) for one in found], found


def a_new_certificate_is_taken(it: Running) -> None:
    """A certificate that is near its end is made again, and served, by the next `make up`; the authority stays."""
    held = {name: it.stack.secret(name) for name in ("tls.pem", "tls_ca.pem")}
    folder, same = it.stack.folder / "secrets", ("-copy_extensions", "copyall")
    request = run("openssl", "x509", "-x509toreq", *same, "-in", "tls.pem", "-signkey", "tls.key", cwd=folder)
    assert request.returncode == 0, request.stderr
    authority = ("-CA", "tls_ca.pem", "-CAkey", "tls_ca.key", "-set_serial", "7")
    short = run(
        "openssl", "x509", "-req", "-days", "20", *authority, *same, "-out", "tls.pem", cwd=folder, input=request.stdout
    )
    assert short.returncode == 0, short.stderr
    it.stack.make("up")
    now = {name: it.stack.secret(name) for name in held}
    assert now["tls_ca.pem"] == held["tls_ca.pem"] and now["tls.pem"] != held["tls.pem"]
    host, port = next(iter(it.stack.doors.values())).split(":")
    served = ssl.get_server_certificate((host, int(port)))
    assert served.strip() == now["tls.pem"]


def compressed(it: Running) -> None:
    """The user interface's files arrive compressed, and may be kept."""
    page = it.ask("/").text.decode()
    script = re.search(r'src="(static-files/[^"]+\.js)"', page)
    assert script, page[:2000]
    for taken, encoding in (("gzip", "gzip"), ("gzip, deflate, br, zstd", "br")):
        answer = it.ask("/" + script[1], **{"Accept-Encoding": taken})
        assert answer.headers["Content-Encoding"] == encoding and "max-age=2419200" in answer.headers["Cache-Control"]


def who_gets_in(it: Running) -> None:
    """With a login nothing is answered without it: no API, page, artifact or trace."""
    login = it.answer("auth") != "none"
    for path, data in (
        ("/api/2.0/mlflow/experiments/search?max_results=1", None),
        ("/ajax-api/2.0/mlflow/experiments/search", b'{"max_results": 1}'),
        ("/api/2.0/mlflow-artifacts/artifacts", None),
        ("/graphql", b"{}"),
        ("/v1/traces", b""),
        (f"/get-artifact?run_uuid={it.known['run']}&path=folder/4k.bin", None),
    ):
        for who in (None, "somebody with a wrong password"):
            found = it.ask(path, data, login=who).status
            assert (found == 401) == login, f"{path} as {who}: {found}"


def locked_down_containers(it: Running) -> None:
    """Every container is a plain user on a read-only file system, and publishes on this machine only."""
    for one in json.loads(run("docker", "inspect", *containers(it.stack)).stdout):
        name, host = one["Name"], one["HostConfig"]
        user = one["Config"]["User"].split(":")[0]
        assert user.isdigit() and user != "0", f"{name} runs as {user!r}"
        assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and host["Memory"] > 0, name
        assert host["PidsLimit"] > 0 and {"max-size", "max-file"} <= host["LogConfig"]["Config"].keys(), name
        # The authority's key is for `make init` alone, and no container sees all secrets.
        secrets = it.stack.folder / "secrets"
        sources = [Path(mount["Source"]) for mount in one["Mounts"] if mount["Type"] == "bind"]
        assert not {secrets, it.stack.folder, secrets / "tls_ca.key"} & set(sources), f"{name}: {sources}"
        assert "no-new-privileges:true" in host["SecurityOpt"] and not host["Privileged"], name
        bound = [binding["HostIp"] for bindings in (host["PortBindings"] or {}).values() for binding in bindings]
        assert set(bound) <= {"127.0.0.1"}, f"{name} listens on {bound}"
        if one["State"]["Running"]:
            outcome = run("docker", "exec", one["Id"], "sh", "-c", "id -u; touch /usr/x")
            if "executable file not found" in outcome.stdout + outcome.stderr:
                continue  # an image of one program, without even a shell
            assert outcome.stdout.strip() == user and "Read-only" in outcome.stderr, f"{name}: {outcome}"


def no_secret_shows(it: Running) -> None:
    """No secret's value is in a description, a process list, a log, an image's history or a file outside secrets/."""
    values = secret_values(it.stack)
    assert len(values) >= 2
    if it.answer("auth") != "none":  # as it was sent to the stack
        login = f"admin:{it.stack.secret('admin_password')}"
        values[b64encode(login.encode()).decode()] = "the admin's login"
    for container in containers(it.stack):
        description = run("docker", "inspect", container).stdout
        image = json.loads(description)[0]["Image"]
        places = {
            "its description": description,
            "its processes": run("docker", "top", container, "-eo", "pid,args").stdout,
            "its log": (log := run("docker", "logs", container)).stdout + log.stderr,
            "its image": run("docker", "image", "inspect", image).stdout,
            "its image's history": run("docker", "history", "--no-trunc", image).stdout,
        }
        for place, text in places.items():
            shown = [name for value, name in values.items() if value in text]
            assert not shown, f"{json.loads(description)[0]['Name']}: {shown} in {place}"
    for path in it.stack.folder.rglob("*"):
        if path.is_file() and "secrets" not in path.relative_to(it.stack.folder).parts:
            shown = [name for value, name in values.items() if value.encode() in path.read_bytes()]
            assert not shown, f"{shown} in {path}"


def containers(stack: Stack) -> list[str]:
    """Return the ids of all containers of a stack, those of finished jobs too."""
    return stack.compose("ps", "--all", "--quiet").split()


def secret_values(stack: Stack) -> dict[str, str]:
    """Return what must not show: value -> the secret that it is from. Names and identifiers are not secret."""
    found = {}
    for path in (stack.folder / "secrets").iterdir():
        if path.is_dir() or path.name in ("passwd", "db_ca.pem", "oidc_ca.pem", "tls.pem", "tls_ca.pem"):
            continue
        text = path.read_text().strip()
        words = re.findall(
            r'(?:secret_access_key = |secretKey": "|AccountKey=|private_key": "|^admin:)([^\s;",]+)', text
        )
        found |= dict.fromkeys(words or [text], path.name)
    assert all(len(value) >= 16 for value in found), found
    return found


ROLE = """
import json, os
from stackops.backends import postgres
found = {}
with postgres.connect(os.environ) as connection, connection.cursor() as cursor:
    cursor.execute("select rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls from pg_roles "
                   "where rolname = current_user")
    found["rights"] = cursor.fetchone()
    cursor.execute("select pg_get_userbyid(datdba) = current_user from pg_database where datname = current_database()")
    found["owns"] = cursor.fetchone()[0]
    cursor.execute("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
    found["tls"] = cursor.fetchone()[0]
    cursor.execute("select count(*) from pg_auth_members where member = (select oid from pg_roles "
                   "where rolname = current_user)")
    found["memberships"] = cursor.fetchone()[0]
for name in ("postgres", "other"):
    try:
        with postgres.connect({**os.environ, "DB_NAME": name}) as connection, connection.cursor() as cursor:
            cursor.execute("select * from secret")
            found[name] = "read"
    except Exception as error:
        found[name] = str(error)
try:
    postgres.connect({**os.environ, "DB_SSLMODE": "disable"})
    found["in the clear"] = "let in"
except Exception as error:
    found["in the clear"] = str(error)
print(json.dumps(found))
"""


def plain_database_role(it: Running) -> None:
    """The server's role owns its database, has no other right and cannot read another database."""
    if it.answer("backend") == "postgres":
        for database, sql in (("postgres", "create database other"), ("other", "create table secret (x int)")):
            it.stack.compose("exec", "-T", "postgres", "psql", "-qU", "postgres", "-d", database, "-c", sql)
    found = json.loads(it.inside(ROLE))
    assert found["rights"] == [False] * 5 and found["owns"] and found["memberships"] == 0, found
    assert "denied" in found["postgres"] + found["other"] and "read" not in (found["postgres"], found["other"]), found
    if it.answer("backend") == "managed":
        assert found["tls"] and "no pg_hba.conf entry" in found["in the clear"], found


# Standard input: the keys. Standard output: what came of each try.
KEYS = """
import json, os, sys, boto3
from botocore import UNSIGNED
from botocore.config import Config
given = json.load(sys.stdin)
endpoint = os.environ["MLFLOW_S3_ENDPOINT_URL"]

def connect(service, key):
    config = Config(retries={"total_max_attempts": 1}, **({} if key else {"signature_version": UNSIGNED}))
    return boto3.client(service, endpoint_url=endpoint, region_name="us-east-1", config=config, **key)

admin = connect("s3", given["admin"])
if "other-bucket" not in [bucket["Name"] for bucket in admin.list_buckets()["Buckets"]]:
    admin.create_bucket(Bucket="other-bucket")
admin.put_object(Bucket="other-bucket", Key="secret", Body=b"x")
admin.put_object(Bucket=given["bucket"], Key="probe", Body=b"x")
found = {}
for who, key in given["keys"].items():
    s3, iam = connect("s3", key), connect("iam", key)
    everyone = json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": "*",
        "Action": "s3:GetObject", "Resource": "arn:aws:s3:::" + given["bucket"] + "/*"}]})
    for name, attempt in {
        "read": lambda: s3.get_object(Bucket=given["bucket"], Key="probe"),
        "write": lambda: s3.put_object(Bucket=given["bucket"], Key="own", Body=b"x"),
        "list": lambda: s3.list_objects_v2(Bucket=given["bucket"]),
        "delete": lambda: s3.delete_object(Bucket=given["bucket"], Key="own"),
        "read another's": lambda: s3.get_object(Bucket="other-bucket", Key="secret"),
        "write another's": lambda: s3.put_object(Bucket="other-bucket", Key="mine", Body=b"x"),
        "list another's": lambda: s3.list_objects_v2(Bucket="other-bucket"),
        "delete another's": lambda: s3.delete_object(Bucket="other-bucket", Key="secret"),
        "copy from another's": lambda: s3.copy_object(Bucket=given["bucket"], Key="copy",
            CopySource={"Bucket": "other-bucket", "Key": "secret"}),
        "make a bucket": lambda: s3.create_bucket(Bucket="a-third-bucket"),
        "open the bucket": lambda: s3.put_bucket_policy(Bucket=given["bucket"], Policy=everyone),
        "delete the other bucket": lambda: s3.delete_bucket(Bucket="other-bucket"),
        "make a user": lambda: iam.create_user(UserName="mallory"),
        "list users": lambda: iam.list_users(),
        "see buckets": lambda: [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]],
    }.items():
        try:
            result = attempt()
            found[f"{who}: {name}"] = result if isinstance(result, list) else "ok"
        except Exception as error:
            status = getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode")
            found[f"{who}: {name}"] = "refused" if status in (401, 403) else repr(error)
try:
    found["admin: users"] = [user["UserName"] for user in connect("iam", given["admin"]).list_users()["Users"]]
except Exception as error:
    found["admin: users"] = repr(error)
print(json.dumps(found))
"""
OWN_RIGHTS = ("read", "write", "list", "delete")


def scoped_store_keys(it: Running) -> None:
    """The server's key, and the clients', reach the bucket and nothing else; without a key nobody reaches anything."""
    folder = it.stack.folder / "secrets"
    names = [name for name in ("s3_credentials", "client_s3_credentials") if (folder / name).exists()]
    keys = {name: read_key(folder / name) for name in names}
    if it.answer("artifact_store") == "minio":
        admin = {
            "aws_access_key_id": it.stack.secret("object_store_root_user"),
            "aws_secret_access_key": it.stack.secret("object_store_root_password"),
        }
    elif it.answer("artifact_store") == "seaweedfs":
        admin = read_key(folder / "object_store_admin")
    else:
        admin = it.services["artifact_store"].admin
    given = {"bucket": it.answer("bucket"), "admin": admin, "keys": keys | {"nobody": {}}}
    found = json.loads(it.inside(KEYS, input=json.dumps(given)))
    for attempt, outcome in found.items():
        who, name = attempt.split(": ")
        if who != "nobody" and name in OWN_RIGHTS:
            assert outcome == "ok", f"{attempt}: {outcome}"
        elif name == "see buckets" and isinstance(outcome, list):
            assert set(outcome) <= ({it.answer("bucket")} if who != "nobody" else set()), f"{attempt}: {outcome}"
        elif "user" in name:
            # Amazon's interface for users, where the store has it; "users" is the admin's list of what came of it.
            assert outcome != "ok" and "mallory" not in outcome, f"{attempt}: {outcome}"
        else:
            assert outcome == "refused", f"{attempt}: {outcome}"
    if it.answer("artifact_store") == "minio":
        for name, key in keys.items():
            url = "http://{aws_access_key_id}:{aws_secret_access_key}@127.0.0.1:9000\n".format(**key)
            for words in ("info own", "user list own", "policy list own", "user add own mallory mallorys-password"):
                command = f"read -r MC_HOST_own && export MC_HOST_own && HOME=/tmp mc admin {words}"
                answer = run(
                    "docker", "compose", "exec", "-T", "object-store", "sh", "-c", command,
                    cwd=it.stack.folder, input=url,
                )  # fmt: skip
                assert answer.returncode != 0 and "denied" in (answer.stdout + answer.stderr).lower(), (
                    f"{name} {answer}"
                )


def read_key(path: Path) -> dict[str, str]:
    """Return a key from a file as the AWS tools write it."""
    lines = (line.partition(" = ") for line in path.read_text().splitlines())
    return {name: value for name, sign, value in lines if sign}


def up_twice_changes_nothing(it: Running) -> None:
    """A second `make up` recreates no container."""
    before = it.stack.compose("ps", "--quiet")
    it.stack.make("up")
    assert it.stack.compose("ps", "--quiet") == before


def restart(it: Running) -> None:
    """`make restart` comes back ready."""
    it.stack.make("restart")
    assert "ready" in it.stack.make("status")


def data_stays(it: Running) -> None:
    """After `make down` nothing is left but data; after `make up` run, artifact, model and trace are read back."""
    it.stack.make("down")
    assert leftovers(it.stack.name, "container", "network") == []
    it.stack.make("up")
    it.client("read", it.known["run"], it.known["trace"])


def a_missing_database_is_named(it: Running) -> None:
    """Readiness goes through to the database: without it the server is alive and not ready."""
    it.stack.compose("exec", "-T", "mlflow", "stackops", "ready")
    it.stack.compose("stop", "postgres")
    try:
        answer = run("docker", "compose", "exec", "-T", "mlflow", "stackops", "ready", cwd=it.stack.folder)
        assert answer.returncode == 1 and "database" in answer.stderr, answer
        assert it.ask("/").status == 200, "the server itself lives"
    finally:
        it.stack.compose("start", "postgres")
    it.stack.compose("exec", "-T", "mlflow", "stackops", "ready", "--wait", "30")


OLD_RUN = """
import mlflow
mlflow.set_experiment("from-sqlite")
with mlflow.start_run(run_name="old"):
    mlflow.log_metrics({"a": 1.5, "b": float("inf")})
"""
# Infinity is the largest number in MLflow's databases.
FIND_OLD_RUN = """
import sys, mlflow
(run,) = mlflow.search_runs(experiment_names=["from-sqlite"], output_format="list")
assert run.info.run_name == "old" and run.data.metrics == {"a": 1.5, "b": sys.float_info.max}, run
mlflow.set_experiment("new")
with mlflow.start_run():
    pass
"""


def pgloader_loads_a_sqlite_file(it: Running) -> None:
    """`make migrate ENGINE=pgloader` in place of what is there; afterwards new experiments do not collide."""
    laptop = it.stack.folder.parent / "laptop"
    laptop.mkdir()
    made = run(
        sys.executable, "-c", OLD_RUN, cwd=laptop,
        env={"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db", "GIT_PYTHON_REFRESH": "quiet"},
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    it.stack.make("migrate", f"FROM={laptop}/mlflow.db", "ENGINE=pgloader", "REPLACE=1")
    it.stack.client(FIND_OLD_RUN)


DELETE_ONE = """
import mlflow
from mlflow import MlflowClient
mlflow.set_experiment("clean-up")
for label in ("kept", "gone"):
    with mlflow.start_run() as run:
        mlflow.log_text(label, "label.txt")
    print(run.info.run_id)
MlflowClient().delete_run(run.info.run_id)
"""
LOAD = """
import sys, mlflow
assert mlflow.artifacts.load_text(f"runs:/{sys.argv[1]}/label.txt") == "kept"
"""
IN_STORE = """
from stackops import settings
env = settings.adopt()
print(*(name for name, _, _ in settings.store(env).items(env)), sep="\\n")
"""


def deleted_runs_go_for_good(it: Running) -> None:
    """`make gc` removes a deleted run with its file, and nothing that lives."""
    kept, gone = re.findall(r"^[0-9a-f]{32}$", it.client(script=DELETE_ONE), re.MULTILINE)
    before = set(it.inside(IN_STORE).splitlines())
    own = {name for name in before if gone in name}
    assert own and any(kept in name for name in before)
    assert "nothing was removed" in it.stack.make("gc", "OLDER_THAN=0m")
    assert "removed: " in it.stack.make("gc", "OLDER_THAN=0m", "APPLY=1")
    after = set(it.inside(IN_STORE).splitlines())
    assert not any(gone in name for name in after) and any(kept in name for name in after)
    it.client(kept, script=LOAD)


def a_busy_port_is_one_sentence(it: Running) -> None:
    """A stranger holds the port: `make up` says so and ends; with the port free again, all is well."""
    it.stack.make("down")
    port = int(next(iter(it.stack.doors.values())).rpartition(":")[2])
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", port))
        stranger.listen()
        output = it.stack.make("up", fails=True)
        said = [line for line in output.splitlines() if line.startswith("up: error:")]
        assert len(said) == 1 and "is in use" in said[0] and "HTTP_PORT" in said[0], output
    it.stack.make("up")


Check = Callable[[Running], None]
# What takes long, by the purpose that is started with nothing but its defaults.
FURTHER: dict[str, list[Check]] = {
    "solo": [restart, a_busy_port_is_one_sentence, data_stays],
    "team": [up_twice_changes_nothing, a_missing_database_is_named, data_stays, pgloader_loads_a_sqlite_file],
    "cloud": [pgloader_loads_a_sqlite_file],
}


# One scenario for each way to each store.
CLEANED = {(s.answers["artifact_store"], s.answers["artifact_access"]): s.name for s in SCENARIOS}


def checks(it: Running, scenario: Scenario) -> Iterable[Check]:
    """Return the checks of a scenario, in order: those that stop something come last."""
    yield check_as_in_the_readme
    yield hosts_and_origins
    yield who_gets_in
    yield compressed
    if it.answer("tls") != "none":
        yield encrypted
        yield cookies_are_for_https_alone
        yield doctor_looks_at_the_certificate
    if it.answer("artifact_access") == "presigned" and it.answer("artifact_store") in STORES_OF_OUR_OWN:
        yield no_signed_link_is_logged
    yield locked_down_containers
    if it.answer("backend") != "sqlite":
        yield plain_database_role
    if it.has_s3:
        yield scoped_store_keys
    if scenario.name in CLEANED.values():
        yield deleted_runs_go_for_good
    yield no_secret_shows
    if it.answer("tls") == "self-signed":
        yield a_new_certificate_is_taken
    if scenario.given.keys() == {"purpose"}:
        yield from FURTHER[scenario.given["purpose"]]


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(scenario, id=scenario.name, marks=[] if scenario in core(SCENARIOS) else PAIRS)
        for scenario in SCENARIOS
    ],
)
def test_scenario(
    scenario: Scenario, tmp_path: Path, subtests: pytest.Subtests, in_table: Callable[[str, Stack], Any]
) -> None:
    """Run one scenario from its rendering to `make down`."""
    with contextlib.ExitStack() as exits:
        services = {
            question: exits.enter_context(start())
            for (question, value), start in outside.FOR.items()
            if scenario.answers[question] == value
        }
        answers = scenario.given | {k: v for service in services.values() for k, v in service.answers.items()}
        it = Running(exits.enter_context(stack(tmp_path, scenario.name, answers)), services)
        row = in_table(scenario.name, it.stack)

        def passes(name: str, check: Callable[[], None]) -> None:
            row.checks += 1
            with subtests.test(msg=name):
                check()
                it.stack.passed.append(name)

        if services:
            passes("init_names_what_is_missing", lambda: init_names_what_is_missing(it))
        for service in services.values():
            service.fill(it.stack)
        if it.stack.answers.get("monitoring"):
            it.stack.without_grafana()
        it.stack.up()
        results = json.loads(it.client("write").splitlines()[-1])
        it.known = results["known"]
        for name, error in results["errors"].items():
            passes(f"stock_client_{name}", lambda error=error: pytest.fail(error) if error else None)
        passes("the_client_needed_nothing_else", lambda: nothing_else(it))
        for check in checks(it, scenario):
            passes(check.__name__, lambda check=check: check(it))
        it.stack.make("down")
        assert leftovers(it.stack.name, "container", "network") == []


MAY_BE_EMPTY = {"db_ca.pem", "oidc_ca.pem", "tls_ca.pem"}


def init_names_what_is_missing(it: Running) -> None:
    """`make init` names every secret, and the address, that only the owner has; an authority is a matter of choice."""
    said = it.stack.make("init")
    for service in it.services.values():
        for name in {*service.secrets, *service.settings} & {*service.secrets, "DB_HOST"} - MAY_BE_EMPTY:
            assert re.search(rf"\b{name}( in \.env)? is empty", said), f"{name} is not in: {said}"


def nothing_else(it: Running) -> None:
    """The client tried to reach nothing but what the stack publishes (and, past the server, the store)."""
    assert it.stack.fence_log() == []
