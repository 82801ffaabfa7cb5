"""`make doctor` and `make rotate-secrets` where nobody can be asked: they say so, say what mends it, change nothing."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from test_bad_input import BAD_FILE, NO_COMPOSE, NO_ENGINE, content, host

__all__ = ["host"]  # a fixture

NO_IMAGE = """#!/bin/sh
case "$*" in
  image*) exit 1 ;;
esac
"""


def run(name, stack, environment):
    """Run a script; return its exit code, and what it said."""
    done = subprocess.run(
        [f"scripts/{name}.sh"], cwd=stack, env=environment, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("docker", "said", "mends"),
    [
        (None, "engine: Docker is not installed", "https://docs.docker.com/engine/install/"),
        (NO_ENGINE, "engine: no Docker engine answers", "systemctl start docker"),
        (NO_COMPOSE, "engine: this Docker has no Compose v2", "docker-compose-plugin"),
        (BAD_FILE, "settings: compose.yaml, compose.override.yaml or .env is not valid", "docker compose config"),
        (NO_IMAGE, "is not built", "make up"),
    ],
)
def test_doctor_says_what_a_shell_can_see(host, docker, said, mends):
    stack, environment = host(docker, auth="basic")
    (stack / "secrets" / "admin_password").chmod(0o644)
    before = content(stack)
    code, out, err = run("doctor", stack, environment)
    lines = out.splitlines()
    assert code == 1 and err.splitlines()[-1].startswith("doctor: error: ")
    assert lines[0].startswith("serious  ") and said in lines[0] and mends in lines[1], out
    # A secret that others may read is seen even so, and no other: they are as 'make init' made them.
    assert [line for line in lines if "others may read" in line] == [
        "serious  secrets: others may read secrets/admin_password"
    ]
    assert content(stack) == before


def test_doctor_without_settings(host):
    stack, environment = host(NO_ENGINE, init=False)
    code, out, _ = run("doctor", stack, environment)
    assert code == 1 and "there is no .env\n         -> make init" in out


def test_nothing_is_changed_where_nothing_runs(host):
    """Without .env, and with a stack that is down."""
    stack, environment = host("#!/bin/sh\n", auth="mlflow")
    before = content(stack)
    code, out, err = run("rotate-secrets", stack, environment)
    assert (code, out, err) == (1, "", "rotate-secrets: error: the stack is not running: run 'make up' first\n")
    assert content(stack) == before


def test_one_rotation_at_a_time(host):
    """A second one is refused; the lock of one that was killed, or whose number is somebody else's, holds nobody."""
    # 'make init' asks for more than Compose; only what the rotation itself starts may be slow.
    slow = '#!/bin/sh\n[ "$1" = compose ] || exit 1\ntouch reached\nexec sleep 60\n'
    stack, environment = host(slow, auth="mlflow")
    lock = stack / ".rotate-secrets.lock"
    command = ["scripts/rotate-secrets.sh"]
    first = subprocess.Popen(command, cwd=stack, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            if (stack / "reached").exists():
                break
            time.sleep(0.1)
        code, out, err = run("rotate-secrets", stack, environment)
        # The second one meets either lock: that of rotations, or that of all commands which change the stack.
        found = f"'make rotate-secrets' (process {first.pid}) is at work: wait until it has ended\n"
        assert (code, out) == (1, "")
        assert err in (f"rotate-secrets: error: {found}", f"rotate-secrets: error: another {found}")
        assert lock.is_symlink(), "the second one leaves the lock alone"
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    (Path(environment["PATH"]) / "docker").write_text("#!/bin/sh\n")
    for holder in (first.pid, os.getpid()):
        lock.unlink(missing_ok=True)
        lock.symlink_to(str(holder))
        assert "is not running" in run("rotate-secrets", stack, environment)[2]
        assert not lock.is_symlink()


@pytest.mark.parametrize(
    ("answers", "secret"),
    [
        ({"backend": "managed"}, "db_password"),
        ({"artifact_store": "s3"}, "store"),
        ({"artifact_store": "azure"}, "azure_connection_string"),
        ({"artifact_store": "gcs"}, "gcs_credentials.json"),
    ],
)
def test_what_others_issue_is_changed_there_first(host, answers, secret):
    stack, environment = host("#!/bin/sh\n", **answers)
    before = content(stack)
    code, _, err = run("rotate-secrets", stack, environment | {"SECRET": secret})
    assert code == 1 and len(err.splitlines()) == 1
    assert f"{secret} is issued elsewhere" in err and f"SECRET={secret} FROM=FILE" in err
    code, _, err = run("rotate-secrets", stack, environment | {"SECRET": secret, "FROM": "nowhere.txt"})
    assert code == 1 and err == "rotate-secrets: error: FROM is nowhere.txt, which cannot be read\n"
    assert content(stack) == before
