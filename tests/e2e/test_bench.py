"""`make bench` on running stacks: what it prints, and that nothing of it stays, however it ends."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from needs import engine
from stacks import Stack, leftovers, removed, rendered, run, stack

pytestmark = pytest.mark.docker

ROWS = ["create run", "log_batch", "log_metric", "log_metric, one client", "search by metric", "metric history"]
FILES = ["artifacts up", "artifacts down"]
# What the databases hold, table by table, and the files of the store.
INSIDE = """
import json
import sqlalchemy as sa
from stackops import settings
env = settings.adopt()
backend, counts = settings.backend(env), {}
uris = [backend.uri(env)] + ([backend.accounts_uri(env)] if settings.accounts(env) else [])
for uri in uris:
    engine = sa.create_engine(uri)
    with engine.connect() as connection:
        for table in sa.inspect(engine).get_table_names():
            counts[table] = connection.scalar(sa.text(f'SELECT count(*) FROM "{table}"'))
print(json.dumps([counts, sorted(settings.store(env).items(env))]))
"""
# A user's own, with a name like ours.
USERS = """
import mlflow
mlflow.set_experiment("make bench mine")
with mlflow.start_run():
    mlflow.log_metric("loss", 0.5)
    mlflow.log_text("x" * 1000, "note.txt")
"""


def held(one: Stack) -> tuple[dict[str, int], list[list]]:
    """Return the number of rows by table, and the files of the store."""
    rows, files = json.loads(one.compose("exec", "-T", "mlflow", "python", "-c", INSIDE))
    return rows, files


def containers(one: Stack) -> set[str]:
    """Return the stack's containers, running or not."""
    return set(leftovers(one.name, "container"))


def started(one: Stack, log: Path, line: str) -> subprocess.Popen:
    """Start `make bench` as in a terminal of its own, and return it when it has printed the line."""
    with open(log, "w") as file:
        process = subprocess.Popen(
            ["make", "--no-print-directory", "bench", "FOR=30"],
            cwd=one.folder,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    until = time.monotonic() + 180
    while not re.search(rf"^{line} +\d", log.read_text(), re.MULTILINE):
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.1)
    return process


@pytest.fixture(scope="module")
def flagship(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """nginx with a login, PostgreSQL and SeaweedFS, with something of a user's."""
    engine()
    made = rendered(tmp_path_factory.mktemp("measure"), "measure", {"purpose": "team"})
    try:
        assert "make up" in made.make("bench", fails=True)
        made.up()
        made.client(USERS)
        yield made
    finally:
        removed(made)


def test_it_measures_and_leaves_nothing(flagship: Stack) -> None:
    """A row for each part, advice, and what was there before."""
    before, own = held(flagship), containers(flagship)
    assert before[0]["experiments"] == 2 and len(before[1]) == 1
    said = flagship.make("bench", "FOR=5")
    lines = said.splitlines()
    table = [line for line in lines if re.match(rf"({'|'.join(ROWS + FILES)}) ", line)]
    assert [re.split("  +", line)[0] for line in table] == ROWS + FILES, said
    for line in table:
        _, rate, half, most, busy = re.split("  +", line)
        assert rate.endswith(" MiB") == line.startswith("artifacts") and float(re.sub("[^0-9.]", "", rate)) > 0
        assert half.endswith(" ms") and most.endswith(" ms") and busy.endswith("%"), line
    assert re.search(r"^server    \d workers? on \d+ processors$", said, re.MULTILINE), said
    assert re.search(r"^disk      has what was written after [\d.]+ ms$", said, re.MULTILINE), said
    assert lines[-1].endswith(".") and len(lines[-1]) > 40, said
    assert held(flagship) == before and containers(flagship) == own
    assert not (flagship.folder / ".stack.lock").is_symlink()


def test_ctrl_c_leaves_nothing(flagship: Stack, tmp_path: Path) -> None:
    """While artifacts go up: what was under way ends, and everything goes."""
    before, own = held(flagship), containers(flagship)
    bench = started(flagship, log := tmp_path / "log", "metric history")
    until = time.monotonic() + 60
    while len((during := held(flagship))[1]) < len(before[1]) + 2:
        assert time.monotonic() < until and bench.poll() is None, "artifacts go up"
    assert during[0]["runs"] > before[0]["runs"] and during[0]["metrics"] > before[0]["metrics"] + 1000
    os.killpg(bench.pid, signal.SIGINT)
    assert bench.wait(120) != 0 and "Traceback" not in log.read_text(), log.read_text()
    assert held(flagship) == before and containers(flagship) == own
    assert not (flagship.folder / ".stack.lock").is_symlink()


def test_what_an_error_or_a_kill_leaves_goes_with_the_next(flagship: Stack, tmp_path: Path) -> None:
    """The store ends under it; then a kill that nothing survives, and one more run, for machines."""
    before = held(flagship)
    bench = started(flagship, log := tmp_path / "log", "metric history")
    flagship.compose("kill", "object-store")
    assert bench.wait(240) != 0
    said = log.read_text()
    assert re.search(r"^stackops: error: artifacts (up|down): ", said, re.MULTILINE), said
    flagship.make("up")
    assert "what is left goes with the next 'make bench'" in said

    bench = started(flagship, tmp_path / "log", "log_batch")
    os.killpg(bench.pid, signal.SIGKILL)
    bench.wait(30)
    run("docker", "kill", "--signal", "KILL", f"{flagship.name}-bench")
    run("docker", "rm", "--force", f"{flagship.name}-bench")
    assert held(flagship)[0]["experiments"] > before[0]["experiments"]
    found = json.loads(flagship.make("bench", "FOR=5", "JSON=1"))
    assert [one["name"] for one in found["figures"]] == ROWS + FILES
    assert all(one["rate"] > 0 and one["calls"] > 0 and one["p95"] >= one["p50"] > 0 for one in found["figures"])
    assert found["stack"]["workers"] >= 1 and found["stack"]["sync"] > 0 and found["advice"]
    assert held(flagship) == before


def test_with_users_and_files(tmp_path: Path) -> None:
    """One writer, a folder, MLflow's own users: the permission goes as well, and wrong words are one sentence."""
    with stack(tmp_path, "measure-users", {"purpose": "solo", "auth": "mlflow"}) as one:
        one.up()
        one.client(USERS)
        before = held(one)
        assert before[0]["role_permissions"]
        for word in ("FOR=soon", "FOR=500"):
            said = one.make("bench", word, fails=True)
            assert f"error: {word.replace('=', ' is ')!r}".replace("'FOR is ", "FOR is '") in said, said
        found = json.loads(one.make("bench", "FOR=5", "JSON=1"))
        assert found["stack"]["one_writer"] and found["stack"]["workers"] == 1 and not found["stack"]["through"]
        assert held(one) == before
