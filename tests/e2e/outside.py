"""Services that stand outside a stack, as a cloud's do: a context manager each, which starts one and removes it.

Each listens on one address only, the gateway of Docker's own bridge: a stack's containers and clients on this machine
reach it there under the same name, and nobody else does. What it gives back is what the owner of a stack would know
of a service that somebody else runs: which answers, settings and secrets belong to it.
"""

import base64
import contextlib
import functools
import html
import json
import os
import re
import secrets
import shutil
import ssl
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from needs import engine
from stacks import PREFIX, ROOT, Stack, free_port, run

IMAGES = yaml.safe_load((ROOT / "extensions/data/versions.yml").read_text())
AZURITE = "mcr.microsoft.com/azure-storage/azurite"
# What a stack is brought from to its own version.
OLD_POSTGRES = "postgres:17-trixie"
# What podman, which plays a cluster's node, is installed on.
NODE_BASE = "debian:forky-slim"
# A real emulator of Google Cloud Storage; built once from its Go module, which any machine with Go can do.
FAKE_GCS = "github.com/fsouza/fake-gcs-server@v1.56.1"
# A real OpenID Connect provider. Its module cannot be installed as it is: it replaces one of its own modules.
DEX = "github.com/dexidp/dex@v0.0.0-20260806151424-ab64ed778070"
DEX_API = "github.com/dexidp/dex/api/v2@v2.4.1-0.20260806151424-ab64ed778070"
OWNER = f"{PREFIX}={os.getpid()}"  # the label of the containers that this process has started
PATIENCE = 60
NAMES = ("localhost", "mlflow.example.com", "s3.example.com")  # under which the scenarios' stacks are reached


@dataclass
class Outside:
    """A service outside the stack, as the stack's owner knows it."""

    answers: dict[str, Any] = field(default_factory=dict)  # for Copier
    settings: dict[str, str] = field(default_factory=dict)  # for .env
    secrets: dict[str, str] = field(default_factory=dict)  # for secrets/: name -> text
    server: dict[str, str] = field(default_factory=dict)  # what only an emulator needs, for the server's environment
    client: dict[str, str] = field(default_factory=dict)  # what a client that reaches the service directly sets
    doors: dict[str, str] = field(default_factory=dict)  # where that client reaches it, for its fence
    admin: dict[str, str] = field(default_factory=dict)  # the key of whoever runs the service

    def fill(self, stack: Stack) -> None:
        """Put into the stack's files what its owner would put there."""
        for name, value in self.settings.items():
            stack.setting(name, value)
        for name, text in self.secrets.items():
            (stack.folder / "secrets" / name).write_text(text)
        if self.server:
            services = ("mlflow", "migrate", "check")
            stack.override({"services": {service: {"environment": self.server} for service in services}})


@functools.cache
def gateway() -> str:
    """Return the address of this machine on Docker's own bridge."""
    engine()
    return run("docker", "network", "inspect", "bridge", "-f", "{{(index .IPAM.Config 0).Gateway}}").stdout.strip()


def free_ports(count: int) -> list[str]:
    """Return ports of the gateway that nobody listens on."""
    return [str(free_port(gateway())) for _ in range(count)]


@contextlib.contextmanager
def container(kind: str, image: str, *command: str, options: tuple[str, ...] = ()) -> Iterator[str]:
    """Run a container on this machine's own network; give back its name, and remove it afterwards."""
    engine()
    name = f"{PREFIX}-outside-{kind}-{secrets.token_hex(3)}"
    here = ("--init", "--network", "host", "--name", name, "--label", OWNER)
    started = run("docker", "run", "--detach", *here, *options, image, *command)
    try:
        assert started.returncode == 0, started.stderr
        yield name
    finally:
        run("docker", "rm", "--force", "--volumes", name)


def wait(name: str, ready: Callable[[], Any]) -> None:
    """Return when `ready` neither raises nor gives back False; fail with the container's log if it never does."""
    until, reason = time.monotonic() + PATIENCE, ""
    while time.monotonic() < until:
        try:
            if ready() is not False:
                return
        except Exception as error:  # whatever a client of a service that is not there yet raises
            reason = repr(error)
        time.sleep(0.3)
    log = run("docker", "logs", "--tail", "20", name)
    raise AssertionError(f"{name} did not become ready: {reason}\n{log.stdout}{log.stderr}")


def key_pair(key: Mapping[str, str]) -> str:
    """Return a key as the AWS tools read it."""
    return "[default]\n" + "".join(f"{name} = {value}\n" for name, value in key.items())


def s3_client(endpoint: str, key: Mapping[str, str]) -> Any:
    """Return a boto3 client of an S3 server."""
    import boto3
    from botocore.config import Config

    once = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 1})
    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", config=once, **key)


@contextlib.contextmanager
def s3() -> Iterator[Outside]:
    """An S3 server with a bucket, and a key that reaches this bucket and nothing else."""
    bucket = "somebody-elses-bucket"
    keys = {
        who: {"aws_access_key_id": secrets.token_hex(10).upper(), "aws_secret_access_key": secrets.token_hex(20)}
        for who in ("admin", "scoped")
    }
    rights = {
        "admin": ["Admin", "Read", "Write", "List", "Tagging"],
        "scoped": [f"{right}:{bucket}" for right in ("Read", "Write", "List", "Tagging")],
    }
    identities = [
        {
            "name": who,
            "credentials": [{"accessKey": key["aws_access_key_id"], "secretKey": key["aws_secret_access_key"]}],
            "actions": rights[who],
        }
        for who, key in keys.items()
    ]
    port, *others = free_ports(8)
    inner = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "s3.json"
        config.write_text(json.dumps({"identities": identities}))
        with container(
            "s3", IMAGES["seaweedfs_image"],
            "-logtostderr=true", "server", "-dir=/tmp", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            "-master.telemetry=false", "-master.electionTimeout=1s", "-master.volumeSizeLimitMB=64", "-volume.max=0",
            "-filer", "-filer.disableHttp",
            "-s3", f"-s3.ip.bind={gateway()}", f"-s3.port={port}", f"-s3.port.grpc={others[6]}",
            "-s3.port.iceberg=0", "-s3.port.lance=0",  # else both are at fixed ports, and only one such server fits
            "-s3.config=/s3.json", *(f"-{name}={number}" for name, number in zip(inner, others, strict=False)),
            options=("--volume", f"{config}:/s3.json:ro", "--user", "0", "--entrypoint", "weed"),
        ) as name:  # fmt: skip
            endpoint = f"http://{gateway()}:{port}"
            wait(name, lambda: s3_client(endpoint, keys["admin"]).create_bucket(Bucket=bucket))
            yield Outside(
                answers={"bucket": bucket},
                settings={"MLFLOW_S3_ENDPOINT_URL": endpoint},
                secrets={"s3_credentials": key_pair(keys["scoped"])},
                client={"MLFLOW_S3_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"},
                doors={f"{gateway()}:{port}": f"{gateway()}:{port}"},
                admin=keys["admin"],
            )


@contextlib.contextmanager
def azurite() -> Iterator[Outside]:
    """Azurite, Microsoft's emulator of Blob Storage, with an account and a container in it."""
    from azure.storage.blob import BlobServiceClient

    account, bin_name = "devstoreaccount1", "artifacts"
    key = base64.b64encode(secrets.token_bytes(64)).decode()
    (port,) = free_ports(1)
    connection = (
        f"DefaultEndpointsProtocol=http;AccountName={account};AccountKey={key};"
        f"BlobEndpoint=http://{gateway()}:{port}/{account};"
    )
    with container(
        "azurite", AZURITE,
        "azurite-blob", "--blobHost", gateway(), "--blobPort", port, "--inMemoryPersistence", "--skipApiVersionCheck",
        "--disableTelemetry", "--silent",
        options=("--env", f"AZURITE_ACCOUNTS={account}:{key}"),
    ) as name:  # fmt: skip
        service = BlobServiceClient.from_connection_string(connection, retry_total=0, connection_timeout=2)
        with service:
            wait(name, lambda: service.create_container(bin_name))
        yield Outside(
            answers={"azure_account": account, "azure_container": bin_name},
            secrets={"azure_connection_string": connection},
            client={"AZURE_STORAGE_CONNECTION_STRING": connection},
            doors={f"{gateway()}:{port}": f"{gateway()}:{port}"},
        )


def built(name: str, module: str, build: Callable[[Path, Callable[..., str]], Path]) -> Path:
    """Return a program that is built from its Go module on its first use. Skips where there is no Go."""
    place = ROOT / "build"
    program = place / f"{name}-{module.rpartition('@v')[2]}"
    if not program.exists():
        if not (go := shutil.which("go", path=f"{os.environ['PATH']}:/usr/local/go/bin")):
            pytest.skip(f"needs Go to build {name}")
        place.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as folder:

            def work(*words: str, **env: str) -> str:
                done = run(go, *words, cwd=Path(folder), env={"CGO_ENABLED": "0", **env})
                assert done.returncode == 0, done.stderr
                return done.stdout

            os.replace(build(Path(folder), work), program)
    return program


@functools.cache
def fake_gcs() -> Path:
    """Return the emulator's program."""

    def build(folder: Path, go: Callable[..., str]) -> Path:
        go("install", FAKE_GCS, GOBIN=str(folder))
        return folder / "fake-gcs-server"

    return built("fake-gcs-server", FAKE_GCS, build)


@functools.cache
def dex() -> Path:
    """Return the provider's program."""

    def build(folder: Path, go: Callable[..., str]) -> Path:
        module, _, version = DEX.partition("@")
        go("mod", "init", "build")
        go("mod", "edit", f"-replace={DEX_API.partition('@')[0]}={DEX_API}")
        go("get", f"{module}/cmd/dex@{version}")
        go("build", "-o", "dex", f"{module}/cmd/dex")
        return folder / "dex"

    return built("dex", DEX, build)


@contextlib.contextmanager
def gcs() -> Iterator[Outside]:
    """An emulator of Google Cloud Storage with a bucket. It asks for no key: Google's own library sees to that."""
    bucket = "somebody-elses-bucket"
    (port,) = free_ports(1)
    endpoint = f"http://{gateway()}:{port}"
    with container(
        "gcs", IMAGES["debian_image"],
        "fake-gcs-server", "-scheme", "http", "-host", gateway(), "-port", port, "-external-url", endpoint,
        "-public-host", f"{gateway()}:{port}", "-backend", "memory",
        options=("--volume", f"{fake_gcs()}:/usr/local/bin/fake-gcs-server:ro"),
    ) as name:  # fmt: skip
        made = urllib.request.Request(
            f"{endpoint}/storage/v1/b?project=test",
            json.dumps({"name": bucket}).encode(),
            {"Content-Type": "application/json"},
        )
        wait(name, lambda: urllib.request.urlopen(made, timeout=2).close())
        emulator = {"STORAGE_EMULATOR_HOST": endpoint}
        key = {"type": "service_account", "private_key": secrets.token_hex(40), "client_email": "mlflow@example.com"}
        yield Outside(
            answers={"bucket": bucket},
            secrets={"gcs_credentials.json": json.dumps(key)},
            server=emulator,
            client=emulator,
            doors={f"{gateway()}:{port}": f"{gateway()}:{port}"},
        )


PASSWORD = "password"
HASH = "$2a$10$2b2cU8CPhOTaGrs1HRQuAueS7JTT5ZHsHSzYiFPm1leZck7Mc8T4W"  # bcrypt of it, as the provider wants it
# What the provider knows: mail address -> groups.
PEOPLE = {
    "ada@example.com": ["mlflow-admins", "research"],
    "rosa@example.com": ["research"],
    "max@example.com": ["sales"],
}
TOKEN_SECONDS = 60


@dataclass
class Provider(Outside):
    """An OpenID Connect provider with the people above."""

    issuer: str = ""
    folder: Path = Path()  # its configuration
    container: str = ""

    def fill(self, stack: Stack) -> None:
        """Here a stack's address may be http under a name of its own, for which the default is https."""
        super().fill(stack)
        if stack.url.startswith("http:"):
            stack.setting("OIDC_COOKIE_SECURE", "false")

    def token(self, grant: str = "password", client: str = "", **more: str) -> str:
        """Return a token of the provider, for a person (username=) or for a program (grant `client_credentials`)."""
        client = client or self.settings["OIDC_CLIENT_ID"]
        words = {"grant_type": grant, "scope": "openid email groups", "password": PASSWORD, **more}
        login = base64.b64encode(f"{client}:{self.secrets['oidc_client_secret']}".encode()).decode()
        request = urllib.request.Request(
            f"{self.issuer}/token", urllib.parse.urlencode(words).encode(), {"Authorization": f"Basic {login}"}
        )
        with urllib.request.urlopen(request, timeout=10, context=self.trust()) as answer:
            found = json.load(answer)
        return found["id_token" if grant == "password" else "access_token"]

    def trust(self) -> ssl.SSLContext | None:
        """Return how a client trusts the provider."""
        ca = self.folder / "ca.pem"
        return ssl.create_default_context(cafile=ca) if ca.exists() else None

    def ready(self) -> None:
        """Return when it answers."""
        wait(
            self.container,
            lambda: urllib.request.urlopen(f"{self.issuer}/healthz", timeout=2, context=self.trust()).close(),
        )

    def renew(self) -> str:
        """Give its clients a new secret, and return it; the old one is worth nothing."""
        path, old, new = self.folder / "dex.yaml", self.secrets["oidc_client_secret"], secrets.token_hex(20)
        path.write_text(path.read_text().replace(old, new))
        self.secrets["oidc_client_secret"] = new
        assert run("docker", "restart", "--time", "3", self.container).returncode == 0
        self.ready()
        return new

    def log_in(self, url: str, mail: str) -> requests.Session:
        """Log in on the provider's page, where a stack leads whoever opens it; return what a browser would be then."""
        visit = requests.Session()
        visit.headers["Accept"], visit.trust_env = "text/html", False
        if (ca := self.folder / "ca.pem").exists():
            visit.verify = str(ca)
        page = visit.get(f"{url}/", timeout=30)
        assert page.url.startswith(self.issuer), f"{page.status_code} {page.url}"
        form = urllib.parse.urljoin(page.url, html.unescape(re.search(r'<form[^>]* action="([^"]+)"', page.text)[1]))
        visit.post(form, {"login": mail, "password": PASSWORD}, timeout=30)
        return visit


@contextlib.contextmanager
def provider(private: bool = False) -> Iterator[Provider]:
    """Dex, an OpenID Connect provider with a login page of its own, which knows the stack at any of its addresses.

    With `private` it speaks TLS, with a certificate of an authority of its own.
    """
    (port,) = free_ports(1)
    ports = {"http_port": free_port(), "https_port": free_port()}
    issuer, secret = f"http{'s' if private else ''}://{gateway()}:{port}/dex", secrets.token_hex(20)
    addresses = [
        f"{scheme}://{host}:{ports[f'{scheme}_port']}{prefix}/oauth2/callback"
        for scheme in ("http", "https")
        for host in ("localhost", "mlflow.example.com")
        for prefix in ("", "/mlflow")
    ]
    config = {
        "issuer": issuer,
        "storage": {"type": "memory"},
        "web": {"https": f"{gateway()}:{port}", "tlsCert": "/dex/server.pem", "tlsKey": "/dex/server.key"}
        if private
        else {"http": f"{gateway()}:{port}"},
        "expiry": {"idTokens": f"{TOKEN_SECONDS}s"},
        "oauth2": {
            "skipApprovalScreen": True,
            "passwordConnector": "local",
            "grantTypes": ["authorization_code", "refresh_token", "password", "client_credentials"],
        },
        "staticClients": [
            {"id": "mlflow-stack", "name": "MLflow", "secret": secret, "redirectURIs": addresses},
            {"id": "another-application", "name": "Another", "secret": secret, "redirectURIs": addresses},
        ],
        "enablePasswordDB": True,
        "staticPasswords": [
            {"email": mail, "hash": HASH, "username": mail.split("@")[0], "userID": mail, "emailVerified": True,
             "groups": groups}
            for mail, groups in PEOPLE.items()
        ],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        (home := Path(folder)).joinpath("dex.yaml").write_text(yaml.safe_dump(config))
        if private:
            certificates(home, f"IP:{gateway()}")
        for path in (home, *home.iterdir()):
            path.chmod(0o755)
        with container(
            "oidc", IMAGES["debian_image"], "dex", "serve", "/dex/dex.yaml",
            options=("--volume", f"{dex()}:/usr/local/bin/dex:ro", "--volume", f"{home}:/dex:ro"),
        ) as name:  # fmt: skip
            made = Provider(
                answers=ports,
                settings={"OIDC_ISSUER": issuer, "OIDC_CLIENT_ID": "mlflow-stack"},
                secrets={"oidc_client_secret": secret},
                doors={f"{gateway()}:{port}": f"{gateway()}:{port}"},
                issuer=issuer,
                folder=home,
                container=name,
            )
            if private:
                made.secrets["oidc_ca.pem"] = (home / "ca.pem").read_text()
            made.ready()
            yield made


# The role owns its database and nothing else; the other database is somebody else's.
ROLES = """\
CREATE ROLE stack_owner LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD '{password}';
CREATE DATABASE stack_data OWNER stack_owner;
REVOKE ALL ON DATABASE stack_data FROM PUBLIC;
CREATE DATABASE other;
REVOKE ALL ON DATABASE other FROM PUBLIC;
"""


@contextlib.contextmanager
def managed_postgres() -> Iterator[Outside]:
    """A PostgreSQL that speaks TLS only, with an authority of its own, and gives a plain role with its database."""
    # What people really choose as a password.
    password = f"p@ss:w/o#rd%1[{secrets.token_hex(8)}]"
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        certificates(home, f"IP:{gateway()}")
        (home / "pg_hba.conf").write_text("local all all trust\nhostssl all all all scram-sha-256\n")
        (home / "roles.sql").write_text(ROLES.format(password=password))
        for path in (home, *home.iterdir()):
            path.chmod(0o755)  # the container's own user reads them
        with container(
            "postgres", IMAGES["postgres_image"],
            # The server wants its key for itself.
            "-c", 'install -o postgres -m 600 /given/server.key /tmp/ && exec docker-entrypoint.sh "$@"', "sh",
            "postgres", "-p", port, f"-clisten_addresses={gateway()}", "-chba_file=/given/pg_hba.conf",
            "-cssl=on", "-cssl_cert_file=/given/server.pem", "-cssl_key_file=/tmp/server.key", "-cfsync=off",
            options=(
                "--entrypoint", "sh", "--env", "POSTGRES_PASSWORD=" + secrets.token_hex(20),
                "--volume", f"{home}:/given:ro",
                "--volume", f"{home}/roles.sql:/docker-entrypoint-initdb.d/roles.sql:ro",
            ),
        ) as name:  # fmt: skip
            wait(name, lambda: run("docker", "exec", name, "pg_isready", "-h", gateway(), "-p", port).returncode == 0)
            yield Outside(
                settings={"DB_HOST": gateway(), "DB_PORT": port, "DB_NAME": "stack_data", "DB_USER": "stack_owner"},
                secrets={"db_password": password, "db_ca.pem": (home / "ca.pem").read_text()},
            )


def certificates(folder: Path, names: str) -> None:
    """Write ca.pem, and server.pem and server.key for some names (in OpenSSL's words), which that authority signed."""
    make = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "200")
    for words in (
        # Python 3.13 and later trust no authority without a key usage.
        ("-subj", "/CN=an authority of its own", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
         "-keyout", "ca.key", "-out", "ca.pem"),
        ("-subj", "/CN=server", "-addext", f"subjectAltName={names}", "-addext", "basicConstraints=CA:FALSE",
         "-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", "server.key", "-out", "server.pem"),
    ):  # fmt: skip
        done = run(*make, *words, cwd=folder)
        assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def certificate_files() -> Iterator[Outside]:
    """A certificate for the names of the scenarios, from an authority that is not public."""
    with tempfile.TemporaryDirectory() as folder:
        certificates(home := Path(folder), ",".join(f"DNS:{name}" for name in NAMES))
        files = {"tls.pem": "server.pem", "tls.key": "server.key", "tls_ca.pem": "ca.pem"}
        yield Outside(secrets={name: (home / file).read_text() for name, file in files.items()})


# An ACME server, and what stands for the public way to the stack: under an address of its own, the names' port 80.
ACME = """\
{
    admin off
    skip_install_trust
    auto_https disable_redirects
}
https://%(address)s:%(port)s {
    bind %(address)s
    tls internal
    acme_server {
        challenges http-01
    }
}
http:// {
    bind %(public)s
    reverse_proxy 127.0.0.1:%(stack)s
}
"""


@contextlib.contextmanager
def acme() -> Iterator[Outside]:
    """An authority that certifies whoever answers at port 80 under the name: Caddy's own ACME server."""
    (port,), stack = free_ports(1), free_port()
    public = f"127.88.{os.getpid() // 250 % 250}.{os.getpid() % 250 + 1}"
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "Caddyfile"
        config.write_text(ACME % {"address": gateway(), "port": port, "public": public, "stack": stack})
        hosts = [word for name in NAMES[1:] for word in ("--add-host", f"{name}:{public}")]
        with container(
            "acme", IMAGES["caddy_image"],
            options=("--volume", f"{config}:/etc/caddy/Caddyfile:ro", *hosts),
        ) as name:  # fmt: skip
            root = ("docker", "exec", name, "cat", "/data/caddy/pki/authorities/local/root.crt")
            wait(name, lambda: run(*root).returncode == 0)
            yield Outside(
                answers={"http_port": str(stack)},
                settings={"ACME_CA": f"https://{gateway()}:{port}/acme/local/directory", "HTTP_BIND": "127.0.0.1"},
                secrets={"tls_ca.pem": run(*root).stdout},
            )


# What has to stand outside for an answer.
Start = Callable[[], contextlib.AbstractContextManager[Outside]]
FOR: dict[tuple[str, str], Start] = {
    ("backend", "managed"): managed_postgres,
    ("artifact_store", "s3"): s3,
    ("artifact_store", "azure"): azurite,
    ("artifact_store", "gcs"): gcs,
    ("tls", "files"): certificate_files,
    ("tls", "acme"): acme,
    ("auth", "oidc"): provider,
}
