"""Stacks that break: parts that are killed, gone, full, wrong or older. Each fault ends with the data compared."""

import http.client
import os
import re
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from needs import engine
from stacks import PREFIX, ROOT, Stack, removed, rendered, run, stack

PATIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""A client that is not put off by a short absence of the server, and notices a long one."""

LOG = """
import hashlib, json, os, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from mlflow import MlflowClient

name, count = sys.argv[1], int(sys.argv[2])
ledger = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
client = MlflowClient()

def insist(action, *arguments):
    until = time.monotonic() + 150
    while True:
        try:
            return action(*arguments)
        except Exception:
            if time.monotonic() > until:
                raise
            time.sleep(1)

def acknowledged(**what):
    os.write(ledger, json.dumps(what).encode() + b"\\n")

def experiment():
    found = client.get_experiment_by_name(name)
    return found.experiment_id if found else client.create_experiment(name)

def log(number):
    run = insist(client.create_run, home).info.run_id
    acknowledged(run=run)
    insist(client.log_param, run, "number", number)
    acknowledged(run=run, param=str(number))
    insist(client.log_metric, run, "value", number / 7, 1_700_000_000_000 + number, number)
    acknowledged(run=run, metric=number / 7)
    file = folder / f"{number}.bin"
    file.write_bytes(os.urandom(2000 + number))
    insist(client.log_artifact, run, str(file))
    acknowledged(run=run, artifact=file.name, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    insist(client.set_terminated, run)

home = insist(experiment)
with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as two:
    folder = Path(folder)
    print(len(list(two.map(log, range(count)))))
"""
"""Logs runs as a careful user would, and writes down what the server has acknowledged."""

COMPARE = """
import hashlib, json, sys, tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from mlflow import MlflowClient

client, wanted = MlflowClient(), defaultdict(dict)
rows = [json.loads(line) for line in open(sys.argv[1])]
for row in rows:
    wanted[row["run"]] |= row

def compare(run, want):
    found = client.get_run(run).data
    assert "param" not in want or found.params == {"number": want["param"]}, (want, found)
    assert "metric" not in want or found.metrics == {"value": want["metric"]}, (want, found)
    if "artifact" in want:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(client.download_artifacts(run, want["artifact"], folder)).read_bytes()
        assert hashlib.sha256(data).hexdigest() == want["sha256"], want

with ThreadPoolExecutor(4) as four:
    list(four.map(compare, wanted, wanted.values()))
print(len(rows))
"""
"""Compares what the server has with what it has acknowledged."""


WHERE = "import sys, mlflow; print(mlflow.MlflowClient().get_run(sys.argv[1]).info.artifact_uri)"
NAMES = "import sys, mlflow; print([f.path for f in mlflow.MlflowClient().list_artifacts(sys.argv[1])])"
AGAIN = """
import sys
from pathlib import Path
from mlflow import MlflowClient
client, run, file = MlflowClient(), sys.argv[1], Path(sys.argv[2])
client.log_artifact(run, str(file))
down = file.with_name("down")
down.mkdir()
print(Path(client.download_artifacts(run, file.name, str(down))).read_bytes() == file.read_bytes())
"""
"""Uploads a file to a run and compares what comes back."""


def ledger_of(stack: Stack, name: str) -> Path:
    """Return the file in which a client notes what the server acknowledged in the experiment `name`."""
    return stack.folder.parent / f"{name}.jsonl"


def log(stack: Stack, name: str, count: int, **more: float) -> Path:
    """Log runs from outside; return the ledger."""
    ledger = ledger_of(stack, name)
    assert stack.client(LOG, name, str(count), str(ledger), **PATIENT, **more).strip() == str(count)
    assert len(ledger.read_text().splitlines()) >= 4 * count
    return ledger


def compare(stack: Stack, ledger: Path) -> None:
    """Fail unless all that was acknowledged is there, the artifacts byte for byte."""
    rows = len(ledger.read_text().splitlines())
    assert rows and stack.client(COMPARE, str(ledger), **PATIENT).strip() == str(rows)


def until(true: Callable[[], object], seconds: float, what: str) -> float:
    """Wait until something is true, and return after how many seconds it was; fail when the time is over."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.25)
    return time.monotonic() - start


def state(stack: Stack, service: str, what: str) -> str:
    """Return a field of `docker inspect` of a service's container, stopped or not."""
    container = stack.compose("ps", "--all", "--quiet", service).strip()
    return run("docker", "inspect", "--format", f"{{{{{what}}}}}", container).stdout.strip()


def health(stack: Stack, service: str) -> str:
    """Return `healthy`, `unhealthy` or `starting`."""
    return state(stack, service, ".State.Health.Status")


def ready(stack: Stack) -> subprocess.CompletedProcess[str]:
    """Ask the server whether it is ready."""
    return run("docker", "compose", "exec", "-T", "mlflow", "stackops", "ready", cwd=stack.folder)


def all_healthy(stack: Stack) -> bool:
    """Whether all long-running services are."""
    return all(health(stack, service) == "healthy" for service in ("postgres", "object-store", "mlflow", "nginx"))


def crash(stack: Stack, service: str) -> None:
    """SIGKILL for all processes of a container at once; the engine starts it again.

    Not by `docker kill`: a container that somebody stopped, by whatever signal, stays stopped.
    """
    before = int(state(stack, service, ".RestartCount"))
    os.kill(int(state(stack, service, ".State.Pid")), signal.SIGKILL)
    until(lambda: int(state(stack, service, ".RestartCount")) > before, 30, f"the engine starts {service} again")


def psql(stack: Stack, statement: str, database: str = "postgres") -> str:
    """Run SQL as the superuser and return what it prints."""
    return stack.compose(
        "exec", "-T", "postgres", "psql", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database, "-Atc", statement
    ).strip()


@pytest.fixture(scope="module")
def three_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """nginx with a login, PostgreSQL, SeaweedFS, proxied artifacts; each server, and its job, three times at once."""
    engine()
    made = rendered(tmp_path_factory.mktemp("flagship"), "faults", {"purpose": "team"})
    try:
        made.override({"services": {"migrate": {"scale": 3}, "mlflow": {"deploy": {"replicas": 3}}}})
        made.up()
        yield made
    finally:
        removed(made)


@pytest.fixture(scope="module")
def flagship(three_servers: Stack) -> Stack:
    """The same with one server; it lives through most of what follows."""
    (three_servers.folder / "compose.override.yaml").unlink(missing_ok=True)
    three_servers.make("up")
    return three_servers


@pytest.fixture(scope="module")
def ledger(flagship: Stack) -> Path:
    """What a few runs left in the flagship."""
    return log(flagship, "kept", 10)


def test_three_servers_at_once_on_an_empty_database(three_servers: Stack) -> None:
    """The tables are made once, all three come up, and all see the same."""
    until(lambda: not three_servers.compose("ps", "--quiet", "migrate"), 60, "all three jobs end")
    said = three_servers.compose("logs", "--no-log-prefix", "migrate").splitlines()
    assert sorted(re.sub(r" \(?\w+\)?$", "", line) for line in said if line.startswith("schema:")) == [
        "schema: creating the", "schema: now", "schema: up to date", "schema: up to date",
    ]  # fmt: skip
    servers = three_servers.compose("ps", "--quiet", "mlflow").split()
    assert len(servers) == 3
    ledger = log(three_servers, "three-servers", 8)
    for server in servers:
        assert run("docker", "exec", server, "stackops", "ready").returncode == 0
    compare(three_servers, ledger)


def test_each_part_is_killed_while_a_client_logs(flagship: Stack) -> None:
    """200 runs; after every 45 a part dies without warning. What was acknowledged is there afterwards."""
    ledger = ledger_of(flagship, "killed")
    with ThreadPoolExecutor(1) as one:
        client = one.submit(log, flagship, "killed", 200, timeout=400)

        def finished_runs() -> int:
            return ledger.exists() and ledger.read_text().count("sha256")

        for number, service in enumerate(("nginx", "mlflow", "postgres", "object-store")):
            goal = 20 + 45 * number
            until(lambda goal=goal: client.done() or finished_runs() >= goal, 200, f"{goal} runs")
            assert not client.done(), "the client was to be at work when a part dies"
            crash(flagship, service)
        client.result()
    compare(flagship, ledger)
    until(lambda: all_healthy(flagship), 60, "all parts recover by themselves")


SERVERS = """
import pathlib
for file in pathlib.Path("/proc").glob("[0-9]*/stat"):
    pid, _, rest = file.read_text().partition(" (")
    name, _, rest = rest.rpartition(") ")
    if b"serve" in file.with_name("cmdline").read_bytes() and "init" not in name:
        print(pid, rest.split()[1])
"""
"""Prints process and parent of all that serve."""


def test_a_worker_dies(flagship: Stack, ledger: Path) -> None:
    """Workers are forks of one process; one that is killed is replaced, while the other answers."""
    flagship.setting("MLFLOW_WORKERS", "2")
    flagship.make("up")

    def workers() -> set[str]:
        rows = flagship.compose("exec", "-T", "mlflow", "python", "-c", SERVERS).splitlines()
        pairs = [row.split() for row in rows]
        assert pairs, rows
        return {pid for pid, parent in pairs if parent in {pid for pid, _ in pairs}}

    until(lambda: len(workers()) == 2, 60, "both workers are there")
    killed = min(workers())
    flagship.compose("exec", "-T", "mlflow", "python", "-c", f"import os; os.kill({killed}, 9)")
    until(lambda: len(workers() - {killed}) == 2, 90, "the worker is replaced")
    compare(flagship, ledger)
    assert flagship.compose("ps", "--format", "{{.Health}}", "mlflow").strip() == "healthy"


def test_postgres_is_gone_for_a_minute(flagship: Stack) -> None:
    """Readiness says so, and which part it is, within 15 s; all of it comes back without help."""
    until(lambda: all_healthy(flagship), 60, "all is well before")
    ledger = ledger_of(flagship, "gone")
    with ThreadPoolExecutor(1) as one:
        client = one.submit(log, flagship, "gone", 30, timeout=300)
        until(lambda: ledger.exists() and ledger.read_text().count("sha256") > 3, 60, "the client is at work")
        flagship.compose("stop", "postgres")
        gone = time.monotonic()
        until(lambda: ready(flagship).returncode, 15, "readiness")
        assert "not ready: database" in ready(flagship).stderr
        until(lambda: health(flagship, "mlflow") == "unhealthy", 25, "the container's health")  # 10 s, and slack
        assert "not ready: database" in flagship.make("status", fails=True)
        time.sleep(max(0.0, 60 - (time.monotonic() - gone)))
        assert ready(flagship).returncode and not client.done()
        flagship.compose("start", "postgres")
        until(lambda: not ready(flagship).returncode, 30, "readiness after Postgres is back")
        client.result()
    until(lambda: all_healthy(flagship), 30, "the containers' health")
    assert "ready" in flagship.make("status")
    compare(flagship, ledger)


def test_postgres_hangs(flagship: Stack) -> None:
    """It accepts connections and says nothing: readiness does not hang with it."""
    flagship.compose("pause", "postgres")
    try:
        start = time.monotonic()
        assert "not ready: database" in ready(flagship).stderr
        assert time.monotonic() - start < 15
    finally:
        flagship.compose("unpause", "postgres")
    until(lambda: not ready(flagship).returncode, 30, "readiness after Postgres answers again")


def test_restart_up_twice_down_and_up(flagship: Stack, ledger: Path) -> None:
    flagship.make("restart")
    compare(flagship, ledger)
    before = flagship.compose("ps", "--quiet")
    flagship.make("up")
    assert flagship.compose("ps", "--quiet") == before, "a second `make up` changes nothing"
    flagship.make("down")
    assert not flagship.compose("ps", "--all", "--quiet")
    flagship.make("up")
    compare(flagship, ledger)


def engine_kit() -> Path:
    """Return the folder of the engine kit, or skip: only its engine may be restarted here.

    Nor is it while others use it, unless no test may be skipped.
    """
    kits = [folder / "shared" / "engine-kit" for folder in (ROOT.parent, ROOT.parent.parent)]
    kit = next((kit for kit in kits if (kit / "engine-up").exists()), None)
    if not kit or not Path("/run/engine-kit.pid").exists():
        pytest.skip("needs an engine that may be restarted: the engine kit's")
    names = run("docker", "ps", "--format", "{{.Names}}").stdout.split()
    if os.environ.get("MLFLOW_STACK_NO_SKIPS") != "1" and not all(n.startswith(f"{PREFIX}-faults-") for n in names):
        pytest.skip("the engine would be restarted under the containers of others")
    return kit


@pytest.mark.alone
def test_the_engine_restarts(flagship: Stack, ledger: Path) -> None:
    """As when the machine restarts: all parts come back in any order, and nobody runs Compose."""
    kit = engine_kit()
    for command in ("engine-down", "engine-up"):  # SIGTERM, and a new one
        done = run(str(kit / command))
        assert done.returncode == 0, done.stdout + done.stderr
    until(lambda: run("docker", "version").returncode == 0, 60, "the engine answers")
    until(lambda: all_healthy(flagship), 120, "all parts are back")
    compare(flagship, ledger)


def test_a_server_killed_during_an_upload(flagship: Stack, ledger: Path) -> None:
    """Half an artifact is no artifact, and nothing of it stays on the server's disk."""
    run_id = re.search(r'"run": "(\w+)"', ledger.read_text()).group(1)
    data = os.urandom(48 << 20)
    file = flagship.folder.parent / "half.bin"
    file.write_bytes(data)
    folder = flagship.client(WHERE, run_id).strip().removeprefix("mlflow-artifacts:/")
    login = b64encode(f"admin:{flagship.secret('admin_password')}".encode()).decode()
    address = next(iter(flagship.doors.values()))
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.putrequest("PUT", f"/api/2.0/mlflow-artifacts/artifacts/{folder}/half.bin")
    connection.putheader("Authorization", f"Basic {login}")
    connection.putheader("Content-Length", str(len(data)))
    connection.endheaders()
    connection.send(data[: 40 << 20])
    crash(flagship, "mlflow")
    try:
        connection.send(data[40 << 20 :])
        assert connection.getresponse().status >= 500
    except (OSError, http.client.HTTPException):
        pass  # the connection broke: that is an answer too
    finally:
        connection.close()
    until(lambda: not ready(flagship).returncode, 60, "the server is back")
    assert "half.bin" not in flagship.client(NAMES, run_id)
    assert not flagship.compose("exec", "-T", "mlflow", "find", "/var/tmp", "-type", "f"), "nothing is left on disk"
    assert flagship.client(AGAIN, run_id, str(file)).strip() == "True"
    compare(flagship, ledger)


OLD_SERVER = """
import sys, mlflow
client = mlflow.MlflowClient(sys.argv[1])
home = client.create_experiment("older", artifact_location="mlflow-artifacts:/older")
for number in range(20):
    run = client.create_run(home).info.run_id
    client.log_param(run, "number", number)
    client.log_metric(run, "value", number / 7, 1_700_000_000_000, number)
    print('{"run": "%s", "param": "%s", "metric": %r}' % (run, number, number / 7))
"""
"""What a server of the version before would have written into the database."""


def test_a_database_of_the_version_before(flagship: Stack, tmp_path: Path) -> None:
    """The server refuses it and changes nothing; `make up` upgrades it, after its checks, and the data is there."""
    requirements = ROOT / "tests" / "clients" / "mlflow-3.16.txt"
    older = {"VIRTUAL_ENV": str(tmp_path / "older")}
    for command in ("venv --quiet older", f"pip install --quiet --require-hashes -r {requirements}"):
        made = run(
            "uv",
            *command.split(),
            cwd=tmp_path,
            env=older | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        )
        assert made.returncode == 0, made.stderr
    flagship.compose("stop", "mlflow")
    psql(flagship, "alter database mlflow rename to mlflow_now")
    psql(flagship, "create database mlflow owner mlflow encoding 'UTF8' template template0")
    try:
        address = state(flagship, "postgres", "range .NetworkSettings.Networks}}{{.IPAddress}}{{end")
        passfile = tmp_path / "pgpass"
        passfile.write_text(f"*:*:*:mlflow:{flagship.secret('db_password')}\n")
        passfile.chmod(0o600)
        uri = f"postgresql+psycopg2://mlflow@{address}/mlflow"
        python, env = str(tmp_path / "older" / "bin" / "python"), {"PGPASSFILE": str(passfile)}
        upgraded = run(python, "-m", "mlflow", "db", "upgrade", uri, cwd=tmp_path, env=env)
        assert upgraded.returncode == 0, upgraded.stderr
        wrote = run(python, "-c", OLD_SERVER, uri, cwd=tmp_path, env=env)
        assert wrote.returncode == 0, wrote.stderr
        ledger = ledger_of(flagship, "older")
        ledger.write_text("".join(line + "\n" for line in wrote.stdout.splitlines() if line.startswith("{")))

        version = "select version_num from alembic_version"
        tables = "select count(*) from information_schema.tables where table_schema = 'public'"
        before = psql(flagship, version, "mlflow"), psql(flagship, tables, "mlflow")
        alone = run(
            "docker", "compose", "run", "--rm", "-T", "--no-deps", "mlflow", cwd=flagship.folder, timeout=60
        )  # fmt: skip
        said = [line for line in alone.stderr.splitlines() if "error" in line]
        assert alone.returncode and len(said) == 1 and "make up" in said[0], alone.stdout + alone.stderr
        assert f"schema is at {before[0]}" in said[0]
        assert (psql(flagship, version, "mlflow"), psql(flagship, tables, "mlflow")) == before

        flagship.make("up")
        job = flagship.compose("logs", "--no-log-prefix", "migrate").splitlines()
        after = psql(flagship, version, "mlflow")
        assert job[-4:] == [
            "database: ok",
            "artifact store: ok",
            f"schema: upgrading from {before[0]} to {after}",
            f"schema: now {after}",
        ]
        assert after != before[0]
        compare(flagship, ledger)
    finally:
        flagship.compose("stop", "mlflow")
        psql(flagship, "drop database mlflow with (force)")
        psql(flagship, "alter database mlflow_now rename to mlflow")
        flagship.make("up")


def fails(stack: Stack) -> str:
    """Return the one sentence with which `make up` ends, which has to be soon."""
    start = time.monotonic()
    said = [
        line for line in stack.make("up", fails=True).splitlines() if line.startswith(("up: error:", "init: error:"))
    ]
    assert time.monotonic() - start < 90, "`make up` takes too long to give up"
    assert len(said) == 1, said
    return said[0]


@contextmanager
def secret(stack: Stack, name: str, text: str) -> Iterator[None]:
    """Let a secret have another text for a while."""
    path = stack.folder / "secrets" / name
    before = path.read_text()
    path.write_text(text)
    try:
        yield
    finally:
        path.write_text(before)


def run_as_root(stack: Stack, volume: str, command: str, *options: str) -> None:
    """Run a shell command with the volume at /volume, as the administrator of the machine could."""
    image = stack.settings()["MLFLOW_IMAGE"]
    done = run(
        "docker", "run", "--rm", "--user", "0", *options, "--volume", f"{stack.name}_{volume}:/volume",
        "--entrypoint", "sh", image, "-c", command,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_secrets_and_disks_that_are_not_as_they_were(flagship: Stack, ledger: Path) -> None:
    """Each ends with its cause, and when it is mended all is as it was."""
    flagship.make("down")
    user = ":".join(flagship.settings()[name] for name in ("STACK_UID", "STACK_GID"))
    run_as_root(flagship, "postgres-data", "chown 0:0 /volume && chmod 700 /volume")
    assert re.search(r"postgres does not start, 'make logs SERVICE=postgres' .*Permission denied", fails(flagship))
    run_as_root(flagship, "postgres-data", f"chown {user} /volume")
    with secret(flagship, "db_password", "wrong\n"):
        assert re.search(r"database mlflow .* password authentication failed .* secret db_password", fails(flagship))
    with secret(flagship, "db_password", ""):
        assert "the secret db_password is missing or empty" in fails(flagship)
    lost = flagship.folder / "secrets" / "db_password"
    lost.rename(lost.with_name("elsewhere"))  # a new one would not be the database's
    assert re.search(r"lost from secrets/, .*: db_password; put back your copy", fails(flagship))
    lost.with_name("elsewhere").rename(lost)
    key = flagship.secret("s3_credentials")
    with secret(flagship, "s3_credentials", key[:-4] + "ZZZZ\n"):
        assert re.search(r"artifact store .* secret key is wrong; check the secret with the S3", fails(flagship))
    with secret(flagship, "s3_credentials", re.sub(r"(key_id = \w{16})\w{4}", r"\1ZZZZ", key) + "\n"):
        assert re.search(r"artifact store .* access key is unknown there; check the secret", fails(flagship))
    flagship.make("up")
    compare(flagship, ledger)


def test_services_elsewhere_that_refuse(flagship: Stack, ledger: Path, tmp_path: Path) -> None:
    """A managed database and a bucket that are not as .env says: one after the other, until it works.

    Both are the flagship's: seen from this stack they are services elsewhere.
    """
    answers = {"backend": "managed", "artifact_store": "s3", "artifact_access": "proxied"}
    elsewhere = {"DB_HOST": "nowhere.invalid", "DB_SSLMODE": "disable", "S3_BUCKET": "missing"}
    psql(flagship, "create role guest login password 'guest-password'")
    psql(flagship, "create database guest template template0")
    try:
        with stack(tmp_path, "elsewhere", answers | {"reverse_proxy": "none", "auth": "none"}, elsewhere) as cloud:
            inside = {
                "networks": ["edge", "neighbour"],
                "environment": {"MLFLOW_S3_ENDPOINT_URL": "http://object-store:8333"},
            }
            cloud.override(
                {
                    "services": {"mlflow": inside, "migrate": inside},
                    "networks": {"neighbour": {"external": True, "name": f"{flagship.name}_data"}},
                }
            )
            secrets = cloud.folder / "secrets"
            assert re.search(r"secrets/db_password is empty", fails(cloud))
            cloud.make("build")  # a first build takes what it takes
            (secrets / "db_password").write_text("wrong\n")
            assert re.search(r"database mlflow on nowhere.invalid:5432 did not answer within .*reachable", fails(cloud))
            for name, value in (("DB_HOST", "postgres"), ("DB_NAME", "guest"), ("DB_USER", "guest")):
                cloud.setting(name, value)
            assert re.search(r"database guest on postgres:5432 .*password authentication failed", fails(cloud))
            (secrets / "db_password").write_text("guest-password\n")
            assert re.search(r"role guest may not create tables; make it the database's owner", fails(cloud))
            psql(flagship, "alter database guest owner to guest")
            (secrets / "s3_credentials").write_text(flagship.secret("s3_credentials") + "\n")
            assert re.search(r"artifact store s3://missing .* access is denied; the bucket must exist", fails(cloud))
            cloud.setting("S3_BUCKET", flagship.answers["bucket"])
            cloud.make("up")
            compare(cloud, log(cloud, "elsewhere", 2))
    finally:
        psql(flagship, "drop database guest with (force)")
        psql(flagship, "drop role guest")
    compare(flagship, ledger)


FILL = """
import os, sys, time
from pathlib import Path
from mlflow import MlflowClient
client, folder = MlflowClient(), Path(sys.argv[1])
run = client.create_run("0").info.run_id
print(run)
for number in range(20):
    file = folder / f"{number}.bin"
    file.write_bytes(os.urandom(20 << 20))
    try:
        client.log_artifact(run, str(file))
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
        file.unlink()
        break
"""
"""Uploads until that fails, and tells why."""

INTACT = """
import sys, tempfile
from pathlib import Path
from mlflow import MlflowClient
client, run = MlflowClient(), sys.argv[1]
files = sorted(Path(sys.argv[2]).iterdir())
assert sorted(f.path for f in client.list_artifacts(run)) == sorted(f.name for f in files)
with tempfile.TemporaryDirectory() as down:
    for file in files:
        assert Path(client.download_artifacts(run, file.name, down)).read_bytes() == file.read_bytes()
print(len(files))
"""


def test_a_full_store_and_a_database_file_of_another(tmp_path: Path) -> None:
    """The client hears why, soon; what was stored is intact; with more room it goes on.

    A database file that may not be written ends `make up`; its owner mends it.
    """
    answers = {"backend": "sqlite", "artifact_store": "seaweedfs", "artifact_access": "proxied"}
    with stack(tmp_path, "full", answers | {"reverse_proxy": "none", "auth": "none"}) as small:
        disk = {"type": "tmpfs", "device": "tmpfs", "o": "size=200m,mode=1777"}
        small.override({"volumes": {"object-store-data": {"driver_opts": disk}}})
        small.up()
        files = tmp_path / "files"
        files.mkdir()
        start = time.monotonic()
        run_id, failure = small.client(FILL, str(files)).strip().split("\n", 1)
        assert time.monotonic() - start < 120, "the client hangs"
        assert "artifact store" in failure and "disk may be full" in failure, failure
        assert 5 <= len(list(files.iterdir())) < 10
        assert small.client(INTACT, run_id, str(files)).strip() == str(len(list(files.iterdir())))
        assert not ready(small).returncode, "reading goes on"
        run_as_root(small, "object-store-data", "mount -o remount,size=600m /volume", "--privileged")
        ledger = log(small, "again", 3)
        # And, while it is here, a database file that belongs to somebody else.
        small.compose("rm", "--stop", "--force", "mlflow", "migrate")
        user = ":".join(small.settings()[name] for name in ("STACK_UID", "STACK_GID"))
        run_as_root(small, "mlflow-data", "chown -R 0:0 /volume && chmod 755 /volume")
        assert re.search(r"the database file /data/mlflow.db cannot be used: .* belongs to the user", fails(small))
        run_as_root(small, "mlflow-data", f"chown -R {user} /volume")
        small.make("up")
        compare(small, ledger)
        assert small.client(INTACT, run_id, str(files)).strip() == str(len(list(files.iterdir())))
