"""`make upgrade-postgres` from PostgreSQL 17 to that of the stack, with data; and what must not happen on the way."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
from history import History
from outside import OLD_POSTGRES
from stacks import Stack, run, stack

pytestmark = pytest.mark.docker

# The slash at the end keeps an image from taking its own volume, at /var/lib/postgresql/data, for older data.
OLD_FOLDER = {"services": {"postgres": {"environment": {"PGDATA": "/var/lib/postgresql/17/docker/"}}}}
ROLES = "SELECT rolname, rolpassword FROM pg_authid WHERE rolname !~ '^pg_' ORDER BY 1"


class Older:
    """A stack in which PostgreSQL 17 runs with what a user logged, while its files ask for the stack's own."""

    def __init__(self, one: Stack):
        self.stack, self.history = one, History(one)
        one.setting("POSTGRES_IMAGE", OLD_POSTGRES)
        one.override(OLD_FOLDER)
        one.up()
        self.history.write("first")
        self.sql("CREATE ROLE reader LOGIN PASSWORD 'pa''ss w\"ord'; GRANT pg_read_all_data TO reader", "postgres")
        self.sql("CREATE DATABASE another TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'", "postgres")
        self.roles = self.sql(ROLES, "postgres")
        self.wants_newer()

    def wants_newer(self) -> None:
        """Nothing of the owner's asks for 17 any more."""
        path = self.stack.folder / ".env"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if not line.startswith("POSTGRES_IMAGE=")))
        (self.stack.folder / "compose.override.yaml").unlink(missing_ok=True)

    def sql(self, words: str, user: str = "mlflow") -> str:
        """Run an SQL statement."""
        psql = ("psql", "--username", user, "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1", "mlflow")
        return self.stack.compose("exec", "-T", "postgres", *psql, "--command", words).strip()

    def runs(self, major: int) -> None:
        """The server is of that version, and has everything."""
        assert int(self.sql("SHOW server_version_num")) // 10000 == major
        assert self.sql(ROLES, "postgres") == self.roles
        assert self.sql("SELECT datcollate FROM pg_database WHERE datname = 'another'") == "C"
        self.history.read()
        assert not (self.stack.folder / ".stack.lock").is_symlink()

    def folders(self) -> set[str]:
        """Return what the volume holds, two levels deep."""
        look = ("run", "--rm", "-T", "--no-deps", "--entrypoint", "sh", "postgres", "-c")
        listed = "cd /var/lib/postgresql; ls -d [0-9]*/* .upgrade 2>/dev/null; true"
        return set(self.stack.compose(*look, listed).split())


def error(said: str) -> str:
    """Return the sentence with which a command ends."""
    return [line for line in said.splitlines() if line.startswith(("upgrade-postgres: error:", "up: error:"))][-1]


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Older]:
    """The stack of all tests here."""
    answers = {"backend": "postgres", "artifact_store": "local"}
    with stack(tmp_path_factory.mktemp("postgres-major"), "postgres-major", answers) as one:
        yield Older(one)


def test_another_version_does_not_start_on_the_data(older: Older) -> None:
    one = older.stack
    started = run("docker", "inspect", "--format", "{{.State.StartedAt}}", one.container("postgres")).stdout
    assert "data are of version 17 and postgres:18" in (said := error(one.make("up", fails=True)))
    assert "run 'make upgrade-postgres'" in said
    assert "run 'make upgrade-postgres'" in one.make("upgrade-check", fails=True)
    one.override(OLD_FOLDER)
    assert "take PGDATA out of compose.override.yaml" in error(one.make("up", fails=True))
    assert "take it out first" in error(one.make("upgrade-postgres", fails=True))
    older.wants_newer()
    one.setting("POSTGRES_IMAGE", OLD_POSTGRES)  # by itself it would begin with nothing
    assert "set PGDATA=/var/lib/postgresql/17/docker" in error(one.make("up", fails=True))
    older.wants_newer()
    older.runs(17)
    assert started == run("docker", "inspect", "--format", "{{.State.StartedAt}}", one.container("postgres")).stdout


def test_a_copy_that_fails(older: Older) -> None:
    one = older.stack
    one.compose("exec", "-T", "postgres", "mkdir", "/var/lib/postgresql/own")
    older.sql("CREATE TABLESPACE own LOCATION '/var/lib/postgresql/own'", "postgres")
    said = one.make("upgrade-postgres", fails=True)
    assert "tablespaces of your own are not copied" in said
    assert "PostgreSQL 17 runs again with the old data" in error(said)
    older.sql("DROP TABLESPACE own", "postgres")
    older.runs(17)
    assert older.folders() == {"17/docker"}


def test_killed_and_finished(older: Older) -> None:
    one = older.stack
    started = subprocess.Popen(
        ["make", "upgrade-postgres"], cwd=one.folder, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    copies = ("docker", "ps", "--quiet", "--filter", f"name=^{one.name}-postgres-copy$")
    until = time.monotonic() + 120
    while not run(*copies).stdout.strip():
        assert started.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    assert "'make upgrade-postgres' (process" in error(one.make("upgrade-postgres", fails=True))
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    assert "run 'make upgrade-postgres'" in error(one.make("up", fails=True))
    said = one.make("upgrade-postgres")
    assert "database mlflow: " in said and "equal on both sides" in said and "done: PostgreSQL 18" in said
    older.runs(18)
    assert older.folders() == {"17/docker", "18/docker"}
    one.make("up")
    one.make("check")
    assert "nothing to do" in one.make("upgrade-postgres")


def test_back_again_and_for_good(older: Older) -> None:
    one, first = older.stack, list(older.history.written)
    older.history.write("second")
    assert "PostgreSQL 17" in one.make("upgrade-postgres", "BACK=1")
    older.history.written = first
    older.runs(17)
    assert "run 'make upgrade-postgres'" in error(one.make("up", fails=True))

    assert "done: PostgreSQL 18" in one.make("upgrade-postgres")
    older.runs(18)
    assert "the data of version 18 are in use" in error(one.make("upgrade-postgres", "DROP=18", fails=True))
    assert "the data of version 17 are deleted" in one.make("upgrade-postgres", "DROP=17")
    assert error(one.make("upgrade-postgres", "BACK=1", fails=True))
    one.make("up")
    older.runs(18)
