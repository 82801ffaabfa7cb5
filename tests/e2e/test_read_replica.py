"""A stack whose database has a copy that is only read from: a real PostgreSQL that streams to a second one.

The copy is stopped in its tracks and let go again, which shows which reads go there, and what a client then sees.
"""

import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from outside import IMAGES, container, free_ports, gateway, wait
from stacks import Stack, run, stack

pytestmark = pytest.mark.docker

ANSWERS = {"backend": "managed", "artifact_store": "local", "reverse_proxy": "nginx", "auth": "none"}
ROLES = """
CREATE ROLE mlflow LOGIN PASSWORD '{password}';
CREATE DATABASE mlflow OWNER mlflow;
CREATE ROLE copier LOGIN REPLICATION PASSWORD '{password}';
"""
COPY = """
echo "*:*:*:copier:$COPIER" >/tmp/pgpass && chmod 600 /tmp/pgpass && export PGPASSFILE=/tmp/pgpass
chmod 700 "$PGDATA"
pg_basebackup -h "$MAIN" -p "$MAIN_PORT" -U copier -D "$PGDATA" --write-recovery-conf --checkpoint=fast
exec postgres -p "$PORT" -c listen_addresses="$MAIN" -c hba_file=/given/pg_hba.conf
"""


@contextmanager
def databases() -> Iterator[tuple[str, str, str, str, str]]:
    """A PostgreSQL and its copy: both containers' names and ports, and the password."""
    password, (port, copy_port) = secrets.token_hex(16), free_ports(2)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        rules = "local all all trust\nhost all all all scram-sha-256\nhost replication copier all scram-sha-256\n"
        (home / "pg_hba.conf").write_text(rules)
        (home / "roles.sql").write_text(ROLES.format(password=password))
        for path in (home, *home.iterdir()):
            path.chmod(0o755)
        given = ("--volume", f"{home}:/given:ro")
        with container(
            "main", IMAGES["postgres_image"], "postgres", "-p", port, f"-clisten_addresses={gateway()}",
            "-chba_file=/given/pg_hba.conf", "-cfsync=off", "-clog_statement=all",
            options=(
                *given, "--env", f"POSTGRES_PASSWORD={secrets.token_hex(20)}",
                "--volume", f"{home}/roles.sql:/docker-entrypoint-initdb.d/roles.sql:ro",
            ),
        ) as main:  # fmt: skip
            wait(main, lambda: run("docker", "exec", main, "pg_isready", "-h", gateway(), "-p", port).returncode == 0)
            with container(
                "copy", IMAGES["postgres_image"], "-c", COPY,
                options=(
                    *given, "--user", "postgres", "--entrypoint", "sh", "--env", f"COPIER={password}",
                    "--env", f"MAIN={gateway()}", "--env", f"MAIN_PORT={port}", "--env", f"PORT={copy_port}",
                ),
            ) as copy:  # fmt: skip
                asked = ("docker", "exec", copy, "pg_isready", "-h", gateway(), "-p", copy_port)
                wait(copy, lambda: run(*asked).returncode == 0)
                yield main, port, copy, copy_port, password


def psql(name: str, port: str, statement: str, database: str = "postgres") -> str:
    """Run a statement as the superuser."""
    words = ("psql", "--username", "postgres", "--port", port, "--dbname", database, "-tAc", statement)
    done = run("docker", "exec", name, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


WRITE = """
import mlflow
experiment = mlflow.MlflowClient().create_experiment("%s")
run = mlflow.MlflowClient().create_run(experiment)
mlflow.MlflowClient().log_metric(run.info.run_id, "loss", 0.5)
mlflow.MlflowClient().set_tag(run.info.run_id, "kind", "seen")
print(experiment, run.info.run_id)
"""
TRAIN = """
import mlflow
mlflow.set_experiment("third")
with mlflow.start_run() as run:
    mlflow.log_metric("loss", 0.25)
    mlflow.log_text("as before", "note.txt")
client = mlflow.MlflowClient()
assert client.get_run(run.info.run_id).info.status == "FINISHED"
assert client.get_experiment_by_name("third").experiment_id == run.info.experiment_id
client.create_registered_model("model")
version = client.create_model_version("model", run.info.artifact_uri, run.info.run_id)
client.set_registered_model_alias("model", "champion", version.version)
assert client.get_model_version_by_alias("model", "champion").run_id == run.info.run_id
"""
READ = """
import sys, mlflow
client = mlflow.MlflowClient()
found = client.search_runs([sys.argv[1]])
print([(run.info.run_id, run.data.metrics, run.data.tags["kind"]) for run in found])
"""


def caught_up(main: tuple[str, str], copy: tuple[str, str]) -> None:
    """Wait until the copy has all that is in the database."""
    at, until = psql(*main, "SELECT pg_current_wal_lsn()"), time.monotonic() + 30
    while psql(*copy, f"SELECT pg_last_wal_replay_lsn() >= '{at}'") != "t":
        assert time.monotonic() < until, "the copy does not catch up"
        time.sleep(0.2)


def test_reads_go_to_the_copy(tmp_path: Path) -> None:
    """Writes go to the database and reads to its copy; what the copy does not have yet is not seen."""
    with databases() as (main, port, copy, copy_port, password):
        settings = {
            "DB_HOST": gateway(), "DB_PORT": port, "DB_NAME": "mlflow", "DB_USER": "mlflow", "DB_SSLMODE": "disable",
            "MLFLOW_READ_REPLICA_BACKEND_STORE_URI": f"postgresql://{gateway()}:{copy_port}/mlflow",
        }  # fmt: skip
        with stack(tmp_path, "read-replica", ANSWERS, settings) as one:
            (one.folder / "secrets/db_password").write_text(password)
            one.up()
            # Tables were made in the database alone, and its password is in no environment.
            job = run("docker", "inspect", one.compose("ps", "--all", "--quiet", "migrate").strip()).stdout
            assert '"DB_READ_REPLICA_URI="' in job and password not in job
            server = run("docker", "inspect", one.container("mlflow")).stdout
            assert f"{gateway()}:{copy_port}" in server and password not in server
            one.make("check")
            both = (main, port), (copy, copy_port)
            who = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'mlflow'"
            assert int(psql(*both[1], who)) > 0, "the server has connections to the copy"

            words = one.client(WRITE % "first").split()
            caught_up(*both)
            assert words[1] in one.client(READ, words[0])

            # The copy stands still: what is written is kept, and seen when it goes on.
            psql(*both[1], "SELECT pg_wal_replay_pause()")
            later = one.client(WRITE % "second").split()
            assert psql(main, port, f"SELECT count(*) FROM metrics WHERE run_uuid = '{later[1]}'", "mlflow") == "1"
            assert later[1] not in one.client(READ, later[0])
            # A script that trains meets nothing of that: what the copy has not is read from the database.
            one.client(TRAIN)
            psql(*both[1], "SELECT pg_wal_replay_resume()")
            caught_up(*both)
            assert later[1] in one.client(READ, later[0])

            without_the_copy(one, copy)


def without_the_copy(one: Stack, copy: str) -> None:
    """The copy is gone: the server is not ready, since nobody can read; without the setting all is well again."""
    run("docker", "kill", copy)
    assert "not ready: database" in one.compose("exec", "-T", "mlflow", "sh", "-c", "stackops ready 2>&1 || true")
    health, until = ("docker", "inspect", "--format", "{{.State.Health.Status}}"), time.monotonic() + 120
    while run(*health, one.container("mlflow")).stdout.strip() != "unhealthy":
        assert time.monotonic() < until, "Docker does not notice"
        time.sleep(1)
    words = one.make("up", fails=True)
    assert "up: error: mlflow is not ready: database" in words, words
    one.setting("MLFLOW_READ_REPLICA_BACKEND_STORE_URI", "")
    one.make("up")
    one.make("check")
