"""`stackops upgrade`: what an upgrade would do, when the data must go back, and that they come back as they were."""

import sqlite3
from collections import namedtuple
from contextlib import closing
from types import SimpleNamespace

import pytest
from stackops import schema, upgrade
from stackops.backends import sqlite
from stackops.errors import StackError
from stackops.upgrade import Memory, Table, differences, must_go_back


def memory(revision="a", rows=3, columns=("id",), mark="m", **tables):
    """Return what the databases are like."""
    return Memory({"runs and models": revision}, {"runs": Table(columns, rows), **tables}, mark)


@pytest.mark.parametrize(
    ("now", "complete", "expected"),
    [
        (memory(), True, False),
        (memory(rows=4, mark="other"), True, False),  # somebody has logged: that stays
        (memory(mark="other"), False, True),  # a step that wrote rows, and failed
        (memory(revision="b"), True, True),
        (memory(columns=("id", "new")), False, True),
        (memory(other=Table(("id",), 0)), False, True),
    ],
)
def test_when_the_data_go_back(now, complete, expected):
    assert must_go_back(memory(), now, complete) is expected


def test_differences_in_words():
    now = memory("b", rows=2, other=Table(("id",), 0))
    assert differences(memory(), now) == [
        "schema of runs and models: b instead of a",
        "table other is new",
        "table runs has 2 rows instead of 3",
    ]
    assert differences(now, memory())[1] == "table other is gone"
    assert differences(memory(), memory(columns=("x",))) == ["table runs has other columns"]
    assert differences(memory(), memory(mark="other")) == []


def test_a_memory_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "before.json"
    path.write_text(memory().text())
    assert Memory.read(path) == memory()
    path.write_text(memory().text()[:50])
    with pytest.raises(StackError, match="does not say what the databases were like"):
        Memory.read(path)


@pytest.fixture
def env(stack, tmp_path):
    """A stack whose database has a table."""
    env = stack(DATA_DIR=str(tmp_path / "data"), STACK_NAME="one")
    sqlite.wait(env, 1)
    tell(env, "CREATE TABLE runs (id INTEGER)", "INSERT INTO runs VALUES (1), (2)")
    return env


def tell(env, *statements):
    """Run statements in the database; return the rows of the last."""
    with closing(sqlite3.connect(sqlite.database(env))) as connection:
        rows = [connection.execute(words).fetchall() for words in statements]
        connection.commit()
        return rows[-1]


def test_saved_and_put_back(env, tmp_path):
    folder = tmp_path / "database"
    upgrade.save(env, folder)
    upgrade.save(env, folder)
    mark = sqlite.mark(env)
    tell(env, "DROP TABLE runs", "CREATE TABLE other (id INTEGER)")
    assert sqlite.mark(env) != mark
    upgrade.saving(env).load(env, folder, upgrade.saved(folder), print)
    assert tell(env, "SELECT id FROM runs") == [(1,), (2,)]
    assert tell(env, "SELECT name FROM sqlite_master") == [("runs",)]


@pytest.mark.parametrize("name", ["mlflow.db", "snapshot.json"])
@pytest.mark.parametrize("harm", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-9])])
def test_a_copy_that_is_not_whole_is_not_put_back(env, tmp_path, name, harm):
    folder = tmp_path / "database"
    upgrade.save(env, folder)
    harm(folder / name)
    with pytest.raises(StackError, match="not whole|damaged"):
        upgrade.saved(folder)


def test_a_save_that_fails_is_none(env, tmp_path, monkeypatch):
    folder = tmp_path / "database"
    upgrade.save(env, folder)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(upgrade.saving(env), "snapshot", full)
    with pytest.raises(StackError, match="the database cannot be saved: No space left on device"):
        upgrade.save(env, folder)
    with pytest.raises(StackError, match="not whole"):
        upgrade.saved(folder)


def states(monkeypatch, revision="a", known=True):
    """Let the databases have that revision, and the MLflow to come want b."""
    found = schema.State(revision, "b", known, frozenset({"experiments"}))
    monkeypatch.setattr(upgrade, "states", lambda env: {"runs and models": found})
    monkeypatch.setattr(upgrade, "version", lambda name: "3.17.2")


def test_a_look(env, tmp_path, monkeypatch):
    states(monkeypatch)
    assert upgrade.look(env, str(tmp_path), "3.16.1") == [
        "MLflow: 3.16.1 runs, 3.17.2 is to come",
        "schema of runs and models: a, becomes b",
        "database: 0.0 MB",
    ]
    states(monkeypatch, "b")
    assert "schema of runs and models: b, stays" in upgrade.look(env, None, "3.16.1")


def test_an_older_version_is_refused(env, tmp_path, monkeypatch):
    states(monkeypatch, "c", known=False)
    with pytest.raises(StackError, match="MLflow 3.17.2 cannot take over from 3.18.0: .* from a newer MLflow"):
        upgrade.look(env, str(tmp_path), "3.18.0")


def test_a_full_disk_is_seen_before(env, tmp_path, monkeypatch):
    states(monkeypatch)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(upgrade, "shutil", SimpleNamespace(disk_usage=lambda path: usage(9, 9, upgrade.SPARE)))
    with pytest.raises(StackError, match="the disk of backups/ has 67 MB left, and .* make room first"):
        upgrade.look(env, str(tmp_path), "3.16.1")
