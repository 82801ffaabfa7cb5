"""What the tests of `stackops migrate` share: a server to move into, stores to move, and the command itself."""

import base64
import functools
import os
import secrets
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import jinja2
import psycopg2
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "template" / "stackops"
IMAGE = "postgres:18.6-trixie"
PASSWORD = "p@ss:w/o#rd%1[]\\"
# The rich store has rows over which a server without these would not start.
SWITCHED_ON = {"MLFLOW_ENABLE_WORKSPACES": "true", "MLFLOW_SQL_TRACE_ROLLUPS_ENABLED": "true"}
KEY = base64.urlsafe_b64encode(bytes(32)).decode()


def run(*command: str, **more) -> subprocess.CompletedProcess[str]:
    """Run a command; nothing of MLflow's or PostgreSQL's environment leaks in."""
    foreign = ("MLFLOW_", "PG", "DB_", "STACK")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    env = (
        clean | {"MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": KEY, "MLFLOW_DISABLE_TELEMETRY": "true"} | more.pop("env", {})
    )
    return subprocess.run(command, env=env, **({"text": True, "capture_output": True, "timeout": 300} | more))


@dataclass
class Server:
    """A PostgreSQL server in a container of the tests' own, with a role that is no superuser."""

    container: str
    port: int

    def dsn(self, database: str, user: str = "mlflow") -> str:
        """Return libpq's address of a database."""
        password = PASSWORD.replace("\\", "\\\\").replace("'", "\\'")
        return f"host=127.0.0.1 port={self.port} dbname={database} user={user} password='{password}'"

    def sql(self, statement: str, database: str = "postgres", user: str = "postgres") -> list[tuple]:
        """Execute one statement, outside of a transaction, and return its rows."""
        with closing(psycopg2.connect(self.dsn(database, user))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []

    def database(self, template: str = "fresh", options: str = "") -> str:
        """Create a database like `template`, owned by the plain role, and return its name."""
        name = f"t{secrets.token_hex(4)}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template} OWNER mlflow {options}")
        return name


def start_server() -> Server:
    """Start the container and wait until it answers over TCP."""
    name = f"mlflow-stack-test-migrate-{secrets.token_hex(4)}"
    run(
        "docker", "run", "--detach", "--name", name, "--env", f"POSTGRES_PASSWORD={PASSWORD}",
        "--publish", "127.0.0.1:0:5432", "--tmpfs", "/small:size=40m,mode=1777", "--shm-size", "256m", IMAGE,
        "-cfsync=off", "-cmax_connections=50", check=True,
    )  # fmt: skip
    port = int(run("docker", "port", name, "5432/tcp", check=True).stdout.split(":")[-1])
    server = Server(name, port)
    for _ in range(120):
        try:
            server.sql("SELECT 1")
            break
        except psycopg2.OperationalError:
            time.sleep(0.5)
    quoted = PASSWORD.replace("'", "''")
    server.sql(f"CREATE ROLE mlflow LOGIN NOSUPERUSER NOCREATEDB PASSWORD '{quoted}'")
    server.sql("CREATE DATABASE fresh OWNER mlflow ENCODING 'UTF8' TEMPLATE template0")
    return server


def make_schema(server: Server, database: str, users: bool = False) -> None:
    """Make MLflow's tables, or those of its users."""
    uri = f"postgresql+psycopg2://mlflow@127.0.0.1:{server.port}/{database}"
    command = ["mlflow.server.auth", "db", "upgrade", "--url"] if users else ["mlflow", "db", "upgrade"]
    done = run(sys.executable, "-m", *command, uri, env={"PGPASSWORD": PASSWORD})
    assert done.returncode == 0, done.stderr


@functools.cache
def pgloader_image() -> str:
    """Return the image of pgloader, built as a stack builds it."""
    name = "mlflow-stack-test-migrate-pgloader"
    text = (ROOT / "template/pgloader/Dockerfile.jinja").read_text()
    versions = yaml.safe_load((ROOT / "extensions/data/versions.yml").read_text())
    dockerfile = jinja2.Template(text, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True).render(
        versions=versions, uses_managed_postgres=True
    )
    done = run("docker", "build", "--tag", name, "--file", "-", str(ROOT / "template/pgloader"), input=dockerfile)
    assert done.returncode == 0, done.stderr
    return name


@dataclass
class Mover:
    """`stackops migrate` into one database of the server."""

    server: Server
    database: str
    folder: Path

    @property
    def dsn(self) -> str:
        """libpq's address of the target."""
        return self.server.dsn(self.database)

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment that Compose would give."""
        keys = self.folder / "secrets"
        keys.mkdir(exist_ok=True)
        (keys / "db_password").write_text(PASSWORD + "\n")
        (keys / "webhook_encryption_key").write_text(KEY)
        return {
            "PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1",
            "STACK_BACKEND": "postgres", "DB_HOST": "127.0.0.1", "DB_PORT": str(self.server.port),
            "DB_NAME": self.database, "DB_USER": "mlflow", "STACK_STORE": "local", "ARTIFACT_URI": str(self.folder),
            "STACK_AUTH": "none", "SECRETS_DIR": str(keys), "RUNTIME_DIR": str(self.folder / "run"),
            "TMPDIR": str(self.folder), "MLFLOW_DISABLE_TELEMETRY": "true", **SWITCHED_ON, **more,
        }  # fmt: skip

    def command(self, *words: str) -> list[str]:
        """Return the command line."""
        return [
            sys.executable,
            "-m",
            "stackops",
            "migrate",
            *map(str, words),
            "--backups",
            str(self.folder / "backups"),
        ]

    def pgloader(self) -> list[str]:
        """Return the command that loads what was prepared, in a container that is removed afterwards."""
        own = {"DB_HOST": "127.0.0.1", "DB_PORT": 5432, "DB_NAME": self.database, "DB_USER": "mlflow"}
        settings = {**own, "DB_SSLMODE": "prefer"}
        return [
            "docker", "run", "--rm", "--name", f"mlflow-stack-test-{self.database}", "--user", f"{os.getuid()}",
            "--network", f"container:{self.server.container}", "--memory", "2g", "--tmpfs", "/tmp", "--read-only",
            "--volume", f"{self.folder}:/var/tmp:ro", "--volume", f"{self.folder}/secrets:/run/secrets:ro",
            *(word for name, value in settings.items() for word in ("--env", f"{name}={value}")), pgloader_image(),
        ]  # fmt: skip

    def load(self, *words: object, engine: str = "copy", fails: bool = False) -> str:
        """Move with the engine, in the steps of scripts/migrate.sh; return what the command said."""
        if engine == "copy":
            return self.run(*words, fails=fails)
        self.run(*words, "--stage", "prepare")
        (self.folder / "pgloader.log").write_text(run(*self.pgloader()).stdout)
        return self.run(*words, "--stage", "finish", fails=fails)

    def run(self, *words: object, fails: bool = False, stdin: str = "", **env: str) -> str:
        """Run the command, which must succeed, or fail with one sentence; return its output."""
        done = subprocess.run(
            self.command(*words), env=self.environment(**env), text=True, capture_output=True, timeout=300, input=stdin
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        if fails:
            last = done.stderr.splitlines()[-1]
            assert last.startswith("stackops: error: ") and "Traceback" not in done.stderr, done.stderr
            assert "unexpectedly" not in last, done.stderr
            assert PASSWORD not in done.stderr
        return done.stdout + done.stderr


def copy(store: Path, folder: Path, *statements: str) -> Path:
    """Return a copy of a SQLite store after some statements."""
    path = folder / "source.db"
    shutil.copy(store, path)
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
    return path
