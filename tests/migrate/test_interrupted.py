"""What goes wrong half-way: the target is as it was, the reason is one sentence, and a plain rerun succeeds."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import moving
import oracle
import pytest

MANY = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 60000) "


@pytest.fixture(scope="module")
def busy_store(rich_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rich store with a table that is big enough to be taken apart."""
    folder = tmp_path_factory.mktemp("busy")
    return moving.copy(
        rich_store, folder,
        "INSERT INTO runs (run_uuid, experiment_id, lifecycle_stage) VALUES ('busy', 1, 'active')",
        MANY + "INSERT INTO metrics SELECT 'm', i / 7.0, i, 'busy', i, 0 FROM n",
    )  # fmt: skip


def test_kill_9_at_ten_points_leaves_the_target_as_it_was(mover, busy_store, empty_store):
    before, shape = oracle.content(mover.dsn), oracle.fresh(mover.server.container)
    started = time.monotonic()
    trial = subprocess.run(mover.command(busy_store, "--check"), env=mover.environment(), capture_output=True)
    assert trial.returncode == 0, trial.stderr
    span = 2.5 * (time.monotonic() - started)
    chance, killed, tries = random.Random(20261124), 0, 0
    while killed < 10:
        tries += 1
        assert tries <= 40, "it has always ended before it is killed"
        process = subprocess.Popen(
            mover.command(busy_store), env=mover.environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(chance.uniform(0.15, 0.9) * span)
        os.kill(process.pid, signal.SIGKILL)
        ended = process.wait()
        assert ended in (0, -signal.SIGKILL)
        if ended:
            killed += 1
        else:  # the machine has become quicker since it was measured
            span *= 0.8
        _wait_until_alone(mover)
        if oracle.content(mover.dsn) != before:  # it was too late: then everything is there
            assert oracle.differences(busy_store, mover.dsn) == []
            mover.run(empty_store, "--replace")
            before = oracle.content(mover.dsn)
    assert oracle.schema(mover.server.container, mover.database) == shape
    mover.run(busy_store, "--replace")
    assert oracle.differences(busy_store, mover.dsn) == []
    assert oracle.schema(mover.server.container, mover.database) == shape
    assert sorted(p.name for p in (mover.folder / "stackops-migrate").iterdir()) == [".lock"]


def _wait_until_alone(mover) -> None:
    for _ in range(200):
        if not mover.server.sql(f"SELECT 1 FROM pg_stat_activity WHERE datname = '{mover.database}'"):
            return
        time.sleep(0.1)
    raise AssertionError("a killed migration still holds its session")


@pytest.mark.parametrize(
    "phase", ['COPY "metrics"', "ALTER TABLE", "SELECT count(*)"], ids=["load", "rebuild", "verify"]
)
def test_a_connection_that_is_cut(mover, busy_store, phase):
    before = oracle.content(mover.dsn)
    cut: list[int] = []
    process = subprocess.Popen(
        mover.command(busy_store), env=mover.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    watch = (
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{mover.database}' "
        f"AND pid <> pg_backend_pid() AND query LIKE '{phase}%' "
        "AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = pg_stat_activity.pid AND mode = 'AccessExclusiveLock')"
    )

    def cutter() -> None:
        while process.poll() is None and not cut:
            cut.extend(1 for _ in mover.server.sql(watch))

    thread = threading.Thread(target=cutter)
    thread.start()
    _, error = process.communicate(timeout=120)
    thread.join()
    assert process.returncode == 1 and cut, error
    last = error.splitlines()[-1]
    assert last.startswith("stackops: error: ") and "nothing was changed" in last and "Traceback" not in error
    assert oracle.content(mover.dsn) == before
    mover.run(busy_store)
    assert oracle.differences(busy_store, mover.dsn) == []


def test_a_target_that_is_full(mover, another, busy_store):
    moving.run("docker", "exec", "--user", "postgres", mover.server.container, "mkdir", "/small/space", check=True)
    mover.server.sql("CREATE TABLESPACE small LOCATION '/small/space'")
    try:
        small = another(options="TABLESPACE small")
        before = oracle.content(small.dsn)
        room = int(
            moving.run(
                "docker", "exec", mover.server.container, "df", "--output=avail", "-B1", "/small"
            ).stdout.split()[-1]
        )
        moving.run(
            "docker",
            "exec",
            mover.server.container,
            "fallocate",
            "-l",
            str(room - (3 << 20)),
            "/small/filler",
            check=True,
        )
        said = small.run(busy_store, fails=True)
        assert "is full" in said and "nothing was changed" in said
        assert oracle.content(small.dsn) == before
        moving.run("docker", "exec", mover.server.container, "rm", "/small/filler", check=True)
        small.run(busy_store)
        assert oracle.differences(busy_store, small.dsn) == []
        mover.server.sql(f"DROP DATABASE {small.database} WITH (FORCE)")
        small.database = mover.server.database()
    finally:
        mover.server.sql("DROP TABLESPACE small")


def test_a_wrong_password(mover, empty_store):
    environment = mover.environment()
    (mover.folder / "secrets" / "db_password").write_text("wrong\n")
    done = subprocess.run(mover.command(empty_store), env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "password authentication failed" in done.stderr.splitlines()[-1]


def test_a_target_without_tables(mover, another, empty_store):
    assert "run make up first" in another(template="template0").run(empty_store, fails=True)


def test_a_server_that_is_running(mover, empty_store):
    import psycopg2

    other = psycopg2.connect(mover.dsn, application_name="mlflow")
    try:
        said = mover.run(empty_store, fails=True)
    finally:
        other.close()
    assert "stop the server first" in said and "'mlflow'" in said


def test_two_migrations_at_once(mover, empty_store):
    import fcntl

    mover.run(empty_store, "--check")
    with open(mover.folder / "stackops-migrate" / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another migration is running" in mover.run(empty_store, fails=True)


def test_a_difference_is_found_and_undone(mover, busy_store):
    """A trigger in the target spoils one value on its way in: no copy fault, and only the checksum can see it."""
    before = oracle.content(mover.dsn)
    mover.server.sql(
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN IF NEW.step = 7 THEN NEW.value := NEW.value + 1e-9; END IF; RETURN NEW; END$$",
        mover.database,
    )
    mover.server.sql(
        "CREATE TRIGGER spoil BEFORE INSERT ON metrics FOR EACH ROW EXECUTE FUNCTION spoil()", mover.database
    )
    assert "metrics has other values than the source" in mover.run(busy_store, fails=True)
    assert oracle.content(mover.dsn) == before


def test_wide_traces_need_little_memory(mover, empty_store, tmp_path):
    """MLFLOW_STACK_TRACES=4000 is the size at which pgloader runs out of heap; memory does not grow with it."""
    count = int(os.environ.get("MLFLOW_STACK_TRACES", "500"))
    store = moving.copy(
        empty_store, tmp_path,
        "INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, status, db_payload_generation) "
        "VALUES ('t', 0, 1, 'OK', 0)",
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) "
        "INSERT INTO spans (trace_id, experiment_id, span_id, status, start_time_unix_nano, content) "
        "SELECT 't', 0, i, 'OK', i, replace(hex(zeroblob(75000)), '0', '\\') || i FROM n",
    )  # fmt: skip
    # Through a small process: a child of this one would begin with this one's peak.
    watcher = (
        "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL); "
        "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", watcher, *mover.command(store)], env=mover.environment(), text=True, capture_output=True
    )
    code, kilobytes = map(int, done.stdout.split())
    assert code == 0, done.stderr
    assert kilobytes < 100 * 1024
    assert mover.server.sql("SELECT count(*), min(length(content)) FROM spans", mover.database) == [(count, 150001)]
