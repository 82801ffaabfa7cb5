"""`make up` before it starts anything: what it refuses, with which words. Docker is a stand-in that starts nothing."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from combinations import Answers
from rendering import Tree

# Answers what up.sh asks about Docker itself; whatever comes next is written down and fails.
DOCKER = """\
#!/bin/sh
case "$*" in
  "compose version --short") echo 2.40.3 ;;
  info) ;;
  "info "*) exit 1 ;;
  "volume ls "*) ;;
  *) echo "$*" >reached && exit 1 ;;
esac
"""
TEAM: Answers = {"project_name": "demo-stack", "purpose": "team"}


@pytest.fixture
def up(make_tree: Callable[[Answers], Tree], tmp_path: Path) -> Callable[..., tuple[str, bool]]:
    """Run `make init` and scripts/up.sh with some settings; return its complaint and whether it went on to Docker."""

    def run(answers: Answers, **settings: str) -> tuple[str, bool]:
        stack = make_tree(TEAM | answers).root
        (bin_folder := stack / "bin").mkdir()
        (bin_folder / "docker").write_text(DOCKER)
        (bin_folder / "docker").chmod(0o755)
        environment = {"PATH": f"{bin_folder}:{os.environ['PATH']}", "HOME": str(tmp_path)}
        subprocess.run(["scripts/init.sh"], cwd=stack, env=environment, check=True, capture_output=True)
        with open(stack / ".env", "a", encoding="utf-8") as file:
            file.writelines(f"{name}={value}\n" for name, value in settings.items())
        done = subprocess.run(["scripts/up.sh"], cwd=stack, env=environment, capture_output=True, text=True)
        assert done.returncode != 0
        return done.stderr, (stack / "reached").exists()

    return run


SQLITE: Answers = {"backend": "sqlite", "artifact_store": "local", "auth": "none"}
NO_PROXY: Answers = {"backend": "postgres", "artifact_store": "local", "reverse_proxy": "none", "auth": "none"}


@pytest.mark.parametrize(
    ("answers", "settings", "words"),
    [
        (SQLITE | {"reverse_proxy": "nginx"}, {"MLFLOW_REPLICAS": "2"}, "SQLite has one writer at a time"),
        (SQLITE | {"reverse_proxy": "none"}, {"MLFLOW_REPLICAS": "2"}, "SQLite has one writer at a time"),
        (NO_PROXY, {"MLFLOW_REPLICAS": "2"}, "a port of this machine leads to one server"),
        ({}, {"MLFLOW_REPLICAS": "two"}, "it is the number of servers"),
        ({}, {"MLFLOW_REPLICAS": "0"}, "it is the number of servers"),
        (
            {},
            {"MLFLOW_REPLICAS": "2", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "true"},
            "server-side jobs run in one server",
        ),
        ({}, {"MLFLOW_REPLICAS": "2"}, ""),
        ({}, {"MLFLOW_REPLICAS": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "true"}, ""),
        (SQLITE | {"reverse_proxy": "none"}, {"MLFLOW_REPLICAS": "1"}, ""),
        (NO_PROXY, {}, ""),
    ],
)
def test_several_servers_where_they_can_be(
    up: Callable[..., tuple[str, bool]], answers: Answers, settings: dict[str, str], words: str
) -> None:
    """Several servers need a database for many and a proxy in front; nothing is started where they cannot be."""
    said, went_on = up(answers, **settings)
    assert went_on == (not words) and (words in said)
    assert not words or ("up: error: MLFLOW_REPLICAS in .env is" in said and said.count("\n") == 1)


@pytest.mark.parametrize("proxy", ["nginx", "caddy"])
@pytest.mark.parametrize(
    ("settings", "starts"),
    [
        ({}, True),
        ({"HTTP_BIND": "127.0.0.1"}, True),
        ({"HTTP_BIND": "0.0.0.0"}, False),
        ({"HTTP_BIND": "192.168.1.7", "PUBLIC_URL": "http://mlflow.example.com"}, False),
        ({"HTTP_BIND": "0.0.0.0", "ALLOW_HTTP": "no"}, False),
        ({"HTTP_BIND": "0.0.0.0", "PUBLIC_URL": "https://mlflow.example.com/mlflow"}, True),
        ({"HTTP_BIND": "::", "ALLOW_HTTP": "yes"}, True),
    ],
)
def test_nobody_is_let_in_without_a_word_about_encryption(
    up: Callable[..., tuple[str, bool]], proxy: str, settings: dict[str, str], starts: bool
) -> None:
    """http beyond this machine is refused unless something in front encrypts, or the owner says yes to it."""
    said, reached = up({"reverse_proxy": proxy}, **settings)
    assert reached == starts
    if not starts:
        assert said.startswith("up: error: HTTP_BIND in .env lets other machines in, and nothing encrypts")
        assert said.count("\n") == 1 and "PUBLIC_URL" in said and "ALLOW_HTTP=yes" in said


def test_with_a_certificate_anybody_may_come(up: Callable[..., tuple[str, bool]]) -> None:
    """What encrypts needs no permission."""
    assert up({"tls": "self-signed"}, HTTP_BIND="0.0.0.0")[1]


def test_a_missing_certificate_is_named(up: Callable[..., tuple[str, bool]]) -> None:
    """The certificate that only the owner has is asked for before anything starts."""
    said, reached = up({"tls": "files"})
    assert said == "up: error: secrets/tls.pem is empty: put in the certificate\n" and not reached


def test_a_rotation_that_was_interrupted_is_named(make_tree: Callable[[Answers], Tree], tmp_path: Path) -> None:
    """A stack with secrets of both kinds may not start: the remedy is said instead of what the database says."""
    stack = make_tree(TEAM).root
    (stack / "bin").mkdir()
    (stack / "bin" / "docker").write_text(DOCKER.replace('echo "$*" >reached && exit 1', "true"))
    (stack / "bin" / "docker").chmod(0o755)
    environment = {"PATH": f"{stack / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    subprocess.run(["scripts/init.sh"], cwd=stack, env=environment, check=True, capture_output=True)

    def said() -> tuple[int, str]:
        done = subprocess.run(["scripts/up.sh"], cwd=stack, env=environment, capture_output=True, text=True)
        return done.returncode, done.stderr

    remedy = "a rotation was interrupted: run 'make rotate-secrets' to finish it"
    assert said() == (0, "")
    (stack / "secrets" / ".db_password.next").touch()
    assert said() == (0, f"up: {remedy}\n")
    docker = (stack / "bin" / "docker").read_text()
    (stack / "bin" / "docker").write_text(
        docker.replace("case", 'case "$*" in "compose up "*) exit 1 ;; esac\ncase', 1)
    )
    assert said() == (1, f"up: error: {remedy}\n")
    (stack / "secrets" / ".db_password.next").unlink()
    assert said() == (1, "up: error: the stack did not become ready: see 'make logs'\n")


# Others cannot start or are not ready because one cannot start; jobs have ended well, and one was never started.
FAILS = """\
#!/bin/sh
case "$*" in
  "compose version --short") echo 2.40.3 ;;
  "compose up "*) exit 1 ;;
  "compose ps --all --format {{.Service}} {{.State}} {{.ExitCode}}")
    printf '%s\\n' "migrate exited 0" "check created 0" "mlflow running 0" "nginx STATE 1" "postgres STATE 1" ;;
  "compose ps --all "*)
    echo "demo-migrate-1 migrate exited 0 "
    echo "demo-check-1 check created 0 "
    echo "demo-mlflow-1 mlflow running 0 unhealthy"
    echo "demo-nginx-1 nginx STATE 1 unhealthy"
    echo "demo-postgres-1 postgres STATE 1 unhealthy"
    ;;
  *depends_on*nginx-1) echo "mlflow:service_healthy:false,postgres:service_started:false" ;;
  *depends_on*postgres-1) echo "migrate:service_started:false" ;;
  "inspect --format {{.RestartCount}} demo-postgres-1") echo 3 ;;
  "logs --tail 5 demo-postgres-1") printf 'starting\\nPANIC: no room for the database\\n\\nstarting\\n' ;;
esac
"""


@pytest.mark.parametrize("state", ["exited", "restarting", "running"])
def test_the_part_that_cannot_start_is_named(make_tree: Callable[[Answers], Tree], tmp_path: Path, state: str) -> None:
    """Not those that run and wait for it, whatever their names: the engine lists containers by name.

    Between two tries its state is that of one that has just been started.
    """
    stack = make_tree(TEAM).root
    (stack / "bin").mkdir()
    docker = FAILS.replace("STATE", state)
    if state == "running":
        docker = docker.replace("running 1 unhealthy", "running 1 starting")
    (stack / "bin" / "docker").write_text(docker)
    (stack / "bin" / "docker").chmod(0o755)
    environment = {"PATH": f"{stack / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    subprocess.run(["scripts/init.sh"], cwd=stack, env=environment, check=True, capture_output=True)
    done = subprocess.run(["scripts/up.sh"], cwd=stack, env=environment, capture_output=True, text=True)
    said = "postgres does not start, 'make logs SERVICE=postgres' shows all of it: PANIC: no room for the database"
    assert (done.returncode, done.stderr) == (1, f"up: error: {said}\n")


def test_a_rotation_that_runs_is_left_alone(make_tree: Callable[[Answers], Tree], tmp_path: Path) -> None:
    """`make up` says who is at work and changes nothing; the lock of a process that is gone holds nobody up."""
    stack = make_tree(TEAM).root
    (stack / "bin").mkdir()
    (stack / "bin" / "docker").write_text(DOCKER)
    (stack / "bin" / "docker").chmod(0o755)
    environment = {"PATH": f"{stack / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path)}

    def run(script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([f"scripts/{script}.sh"], cwd=stack, env=environment, capture_output=True, text=True)

    def state() -> dict[Path, tuple[int, int]]:
        return {path: (path.lstat().st_mtime_ns, path.lstat().st_mode) for path in sorted(stack.rglob("*"))}

    assert run("init").returncode == 0
    (stack / "secrets" / ".db_password.next").touch()
    (stack / "secrets" / "admin_password").unlink(missing_ok=True)
    lock = stack / ".rotate-secrets.lock"
    with subprocess.Popen(["sh", "-c", "sleep 60; :", "rotate-secrets"], start_new_session=True) as busy:
        try:
            lock.symlink_to(str(busy.pid))
            before = state()
            for script in ("init", "up", "rotate-secrets"):
                done = run(script)
                assert (done.returncode, done.stdout) == (1, "")
                assert done.stderr.startswith(f"{script}: error: ") and done.stderr.count("\n") == 1
                assert f"(process {busy.pid})" in done.stderr and "wait until it has ended" in done.stderr
            assert state() == before
        finally:
            os.killpg(busy.pid, signal.SIGKILL)
    assert run("init").returncode == 0 and (stack / "secrets" / "admin_password").exists()
    assert run("up").stderr.count("rotate-secrets' (process") == 0
