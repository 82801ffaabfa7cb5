"""Backups of SQLite and a folder into a folder: what is in one, what is refused, what an interruption leaves."""

import argparse
import errno
import json
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from artifacts_move import local as folders
from stackops import backup, backups, restore
from stackops.backends import sqlite as backend
from stackops.errors import StackError
from stackops.saving import artifacts, journal, listing, lock, manifest, sqlite
from stackops.saving.manifest import Manifest
from stackops.saving.place import Place, pool_name
from stackops.saving.sealing import Opener

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
ARTIFACTS = {
    "1/a/artifacts/note.txt": b"note",
    "1/b/artifacts/same.txt": b"note",
    "1/a/artifacts/big": b"x" * 3_000_000,
}


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A database with MLflow's tables."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = tmp_path_factory.mktemp("empty")
    SqlAlchemyStore(f"sqlite:///{folder}/mlflow.db", "mlflow-artifacts:/")
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    return folder / "mlflow.db"


class World:
    """A stack's data, and a folder for its backups."""

    def __init__(self, home: Path, stack, empty: Path, name: str = "data"):
        self.data, self.backups = home / name, home / "backups"
        self.env = stack(DATA_DIR=str(self.data), ARTIFACT_URI=str(self.data / "artifacts"))
        self.data.mkdir()
        self.backups.mkdir(exist_ok=True)
        shutil.copy(empty, self.data / "mlflow.db")
        self.clock = NOON

    def fill(self) -> None:
        """As clients would."""
        self.row("first")
        for name, content in ARTIFACTS.items():
            self.artifact(name, content)

    def row(self, name: str) -> None:
        with closing(sqlite3.connect(self.data / "mlflow.db")) as connection, connection:
            words = "(name, lifecycle_stage, artifact_location, workspace)"
            connection.execute(f"INSERT INTO experiments {words} VALUES (?, 'active', '', 'default')", [name])

    def rows(self) -> list[str]:
        with closing(sqlite3.connect(self.data / "mlflow.db")) as connection:
            return [name for (name,) in connection.execute("SELECT name FROM experiments ORDER BY experiment_id")]

    def artifact(self, name: str, content: bytes) -> None:
        path = self.data / "artifacts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def artifacts(self) -> dict[str, bytes]:
        return content(self.data / "artifacts")

    def place(self) -> Place:
        return Place(str(self.backups), "./backups", "", {})

    def save(self, keep: int | None = 14, artifacts: bool = True, project: str = "demo") -> dict:
        """A backup an hour later than the last."""
        self.clock += timedelta(hours=1)
        options = backup.Options(project=project, template="v1", artifacts=artifacts, keep=keep, recipient="")
        return backup.make(self.env, self.place(), options, self.clock)

    def whole(self, name: str) -> restore.Backup:
        place = self.place()
        return restore.Backup(place, place.manifest(name), Opener())

    def load(self, name: str) -> None:
        whole = self.whole(name)
        restore.check(self.env, whole, True)
        restore.load(self.env, whole, "")


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def world(tmp_path, stack, empty, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    made = World(tmp_path, stack, empty)
    made.fill()
    return made


def test_there_and_back(world, tmp_path, stack, empty, capsys):
    made = world.save()
    assert (made["set"], made["objects"], made["copied"]) == ("20261127T130000Z", 3, 2)  # two of them are the same
    assert not (world.backups / ".work").exists()
    other = World(tmp_path, stack, empty, "other")
    restore.check(other.env, other.whole(made["set"]), False)
    other.load(made["set"])
    assert other.rows() == world.rows() == ["Default", "first"]
    assert other.artifacts() == ARTIFACTS
    assert sorted(path.name for path in other.data.iterdir()) == ["artifacts", "mlflow.db"]
    assert "3 are there, 3 of them were copied" in capsys.readouterr().err
    # In its own place nothing is copied that is there.
    (world.data / "artifacts" / "1/a/artifacts/note.txt").unlink()
    world.load(made["set"])
    assert world.artifacts() == ARTIFACTS
    assert "3 are there, 1 of them were copied" in capsys.readouterr().err


def test_what_did_not_change_is_not_read_again(world, monkeypatch):
    world.save()
    pool = {path: path.stat().st_ino for path in (world.backups / "artifacts").rglob("*") if path.is_file()}
    world.artifact("2/new", b"new")
    seen, read = [], folders.Store.read
    monkeypatch.setattr(folders.Store, "read", lambda self, name: seen.append(name) or read(self, name))
    made = world.save()
    assert (made["objects"], made["copied"]) == (4, 1)
    assert [name for name in seen if not name.endswith(manifest.NAME)] == ["2/new"]
    assert all(path.stat().st_ino == number for path, number in pool.items())


def test_what_was_altered_under_its_name_is_copied(world):
    first = world.save()["set"]
    world.artifact("1/a/artifacts/note.txt", b"else")
    second = world.save()["set"]
    world.load(first)
    assert world.artifacts() == ARTIFACTS
    world.load(second)
    assert world.artifacts() == ARTIFACTS | {"1/a/artifacts/note.txt": b"else"}


def test_old_backups_go_and_what_they_alone_needed(world, capsys):
    world.artifact("2/gone", b"only in the first")
    world.save()
    (world.data / "artifacts/2/gone").unlink()
    world.save(keep=2)
    before = content(world.backups / "artifacts")
    last = world.save(keep=2)["set"]
    assert [p.name for p in sorted(world.backups.glob("2*"))] == ["20261127T140000Z", last]
    after = content(world.backups / "artifacts")
    assert before.items() - after.items() == {("/".join(pool_of(b"only in the first")), b"only in the first")}
    assert "removed 20261127T130000Z: BACKUP_KEEP=2" in capsys.readouterr().out
    world.load("20261127T140000Z")


def test_artifacts_alone_come_back(world, capsys):
    """The rows since the backup stay, and what was logged again since."""
    made = world.save()["set"]
    world.row("second")
    shutil.rmtree(world.data / "artifacts")
    world.artifact("1/a/artifacts/note.txt", b"since")
    restore.check(world.env, world.whole(made), True)
    restore.bring_artifacts(world.env, world.whole(made), False)
    assert world.artifacts() == ARTIFACTS | {"1/a/artifacts/note.txt": b"since"}
    said = capsys.readouterr().err
    assert "3 are there, 2 of them were copied" in said and "1 differ from the backup and were left" in said
    restore.bring_artifacts(world.env, world.whole(made), True)
    assert world.artifacts() == ARTIFACTS and world.rows() == ["Default", "first", "second"]
    alone = world.save(artifacts=False)["set"]
    with pytest.raises(StackError, match="is of the database alone"):
        restore.bring_artifacts(world.env, world.whole(alone), False)


def test_a_store_that_has_lost_all_makes_no_backup_go(world, capsys):
    first = world.save()["set"]
    shutil.rmtree(world.data / "artifacts")
    (world.data / "artifacts").mkdir()
    world.save(keep=1)
    assert "note: the artifact store is empty, and was not when" in capsys.readouterr().out
    world.load(first)
    assert world.artifacts() == ARTIFACTS
    last = world.save(keep=1)["set"]
    assert [path.name for path in world.backups.glob("2*")] == [last]


def test_old_backups_go_without_a_new_one(world, capsys, monkeypatch):
    """Where there is no room for a new one. Others' backups stay."""
    monkeypatch.setenv("STACK_NAME", "demo")
    for number in range(3):
        world.artifact("2/changes", b"%d" % number)
        last = world.save()["set"]
    for word in ("0", "none"):
        with pytest.raises(StackError, match=f"KEEP is '{word}'; it must be a whole number above 0"):
            printed(world, capsys, "--keep", word)
    said = printed(world, capsys, "--keep", "1")
    assert said[:2] == ["removed 20261127T130000Z: KEEP=1", "removed 20261127T140000Z: KEEP=1"]
    assert [path.name for path in world.backups.glob("2*")] == [last]
    assert set(content(world.backups / "artifacts").values()) == {*ARTIFACTS.values(), b"2"}
    monkeypatch.setenv("STACK_NAME", "other")
    with pytest.raises(StackError, match="has backups of the stack demo"):
        printed(world, capsys, "--keep", "1")
    assert (world.backups / last).is_dir()


def pool_of(data: bytes) -> tuple[str, str]:
    import hashlib

    name = hashlib.sha256(data).hexdigest()
    return name[:2], name


def test_an_older_one_is_not_needed_by_a_younger(world):
    first = world.save()["set"]
    second = world.save(keep=1)["set"]
    assert not (world.backups / first).exists()
    world.load(second)


def test_the_database_alone(world):
    made = world.save(artifacts=False)
    assert made["objects"] == 0 and not (world.backups / "artifacts").exists()
    world.row("second")
    world.load(made["set"])
    assert world.rows() == ["Default", "first"] and world.artifacts() == ARTIFACTS
    # And one with artifacts after it copies them.
    assert world.save()["copied"] == 2


SPOILT = {
    "manifest": lambda one: (one / manifest.NAME).write_text((one / manifest.NAME).read_text().replace("demo", "dem0")),
    "half a manifest": lambda one: (one / manifest.NAME).write_bytes((one / manifest.NAME).read_bytes()[:100]),
    "list": lambda one: (one / manifest.LISTING).write_bytes(b"\x1f\x8b" + bytes(50)),
    "no list": lambda one: (one / manifest.LISTING).unlink(),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_damaged_one_is_left_alone(world, tmp_path, stack, empty, capsys, how):
    first = world.save()["set"]
    pool = content(world.backups / "artifacts")
    SPOILT[how](world.backups / first)
    damaged = content(world.backups / first)
    pooled = world.backups / "artifacts" / Path(*pool_of(b"note"))
    pooled.write_bytes(b"also damaged")
    made = world.save(keep=1)
    assert made["copied"] == 0  # what was there is written again, and not taken away if this one fails
    said = capsys.readouterr().out
    assert f"note: the backup {first} is damaged" in said and "left alone" in said and "no artifact is removed" in said
    assert content(world.backups / first) == damaged
    assert content(world.backups / "artifacts") == pool  # written again, since nothing vouched for it
    other = World(tmp_path, stack, empty, "other")
    other.load(made["set"])
    assert other.artifacts() == ARTIFACTS
    listed = printed(world, capsys)
    assert any(line.split() == [first, "DAMAGED"] for line in listed), listed
    # When it has been removed, the pool is cleaned again.
    shutil.rmtree(world.backups / first)
    (world.data / "artifacts/1/a/artifacts/big").unlink()
    world.save(keep=1)
    assert set(content(world.backups / "artifacts").values()) == {b"note"}


def printed(world: World, capsys, *words: str) -> list[str]:
    """What `make backups` prints."""
    capsys.readouterr()
    parser = argparse.ArgumentParser()
    backups.arguments(parser)
    backups.run(parser.parse_args(["--place", str(world.backups), *words]))
    return capsys.readouterr().out.splitlines()


def test_what_a_killed_one_has_left(world):
    world.save()
    (world.backups / "20261127T133000Z").mkdir()
    (world.backups / "20261127T133000Z" / "mlflow.db").write_bytes(b"half")
    left = world.backups / "artifacts" / Path(*pool_of(b"new"))
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"ne")  # half, under its final name: after a power cut
    (world.backups / ".work").mkdir()
    world.artifact("3/new", b"new")
    made = world.save()
    assert left.read_bytes() == b"new" and not (world.backups / ".work").exists()
    assert sorted(p.name for p in world.backups.glob("2*")) == ["20261127T130000Z", made["set"]]
    world.load(made["set"])


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_one_that_fails_leaves_nothing(world, monkeypatch, fault):
    world.save()
    world.artifact("3/new", b"new")
    world.artifact("3/newer", b"newer")
    before, count, add = content(world.backups), [], Place.add

    def failing(self, name, size, data):
        if count:
            raise fault
        count.append(name)
        add(self, name, size, data)

    monkeypatch.setattr(Place, "add", failing)
    with pytest.raises(StackError if isinstance(fault, OSError) else KeyboardInterrupt) as raised:
        world.save()
    if isinstance(fault, OSError):
        assert "the disk of ./backups is full" in str(raised.value)
    assert content(world.backups) == before and not (world.backups / ".work").exists()


def test_an_artifact_that_is_deleted_meanwhile(world, monkeypatch):
    look = artifacts_look()
    monkeypatch.setattr("artifacts_move.copying.look", lambda store: look(store) | gone(store))
    made = world.save()
    assert made["objects"] == 3
    world.load(made["set"])


def artifacts_look():
    from artifacts_move import copying

    return copying.look


def gone(store) -> dict:
    from artifacts_move.stores import Item

    return {"9/gone": Item("9/gone", 3, "1")} if store.uri.endswith("artifacts") and "data" in store.uri else {}


def test_another_stack_of_that_name(world):
    world.save()
    before = content(world.backups)
    with pytest.raises(StackError, match="has backups of the stack demo; give each stack a place of its own"):
        world.save(project="other")
    assert content(world.backups) == before


ALTERED = {
    "database": (lambda root, one: root / one / "mlflow.db", lambda data: data[:-1] + b"!", "mlflow.db is not what"),
    "half a database": (lambda root, one: root / one / "mlflow.db", lambda data: data[:5000], "mlflow.db is not what"),
    "list": (lambda root, one: root / one / manifest.LISTING, lambda data: data[:-9], "artifacts.jsonl.gz is not what"),
    "manifest": (lambda root, one: root / one / manifest.NAME, lambda d: d.replace(b"demo", b"dem0"), "was altered"),
    "artifact": (
        lambda root, one: root / "artifacts" / Path(*pool_of(b"note")),
        lambda data: b"nota",
        "is not what was",
    ),
    "half": (
        lambda root, one: root / "artifacts" / Path(*pool_of(b"x" * 3_000_000)),
        lambda d: d[:-1],
        "is not what was",
    ),
    "no artifact": (lambda root, one: root / "artifacts" / Path(*pool_of(b"note")), None, "is missing in ./backups"),
}


@pytest.mark.parametrize("what", ALTERED)
def test_what_was_altered_is_refused_before_anything_is_touched(world, tmp_path, stack, empty, what):
    made = world.save()["set"]
    path, change, sentence = ALTERED[what]
    path = path(world.backups, made)
    if change:
        path.write_bytes(change(path.read_bytes()))
    else:
        path.unlink()
    other = World(tmp_path, stack, empty, "other")
    before = content(other.data)
    with pytest.raises(StackError, match=sentence):
        restore.check(other.env, other.whole(made), True)
    assert content(other.data) == before


def test_what_would_be_lost(world):
    made = world.save()["set"]
    whole = world.whole(made)
    with pytest.raises(StackError, match=r"has rows already \(1 in experiments\); REPLACE=1"):
        restore.check(world.env, whole, False)
    (world.data / "mlflow.db").unlink()
    with pytest.raises(StackError, match="has artifacts already; REPLACE=1"):
        restore.check(world.env, whole, False)


def test_a_newer_mlflow(world):
    whole = world.whole(world.save()["set"])
    whole.found.revisions["tracking"] = "ffffffffffff"
    with pytest.raises(StackError, match="comes from a newer MLflow .*; update this stack first"):
        restore.check(world.env, whole, True)


def test_of_another_kind_of_database(world, monkeypatch):
    whole = world.whole(world.save()["set"])
    whole.found.backend = "postgres"
    monkeypatch.setattr(restore.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StackError, match=r"of another kind of database \(postgres\)"):
        restore.check(world.env, whole, True)


@pytest.mark.parametrize("step", range(4))
def test_a_restore_that_is_interrupted_at_its_end(world, monkeypatch, step):
    """Two files take the places of two: both or none, whenever it ends; the next start finishes it."""
    world.env["STACK_AUTH"] = "mlflow"
    users = world.data / "auth.db"
    with closing(sqlite3.connect(users)) as connection, connection:
        connection.execute("CREATE TABLE users (username TEXT)")
        connection.execute("INSERT INTO users VALUES ('ann')")
    made = world.save()["set"]
    world.row("second")
    with closing(sqlite3.connect(users)) as connection, connection:
        connection.execute("INSERT INTO users VALUES ('bob')")
    (world.data / "mlflow.db-wal").write_bytes(b"")
    count, done = [], {name: getattr(Path, name) for name in ("rename", "replace", "rmdir")}

    def counting(name):
        def work(self, *words):
            if world.data in self.parents:
                count.append(name)
                if len(count) > step:
                    raise KeyboardInterrupt
            return done[name](self, *words)

        return work

    with monkeypatch.context() as patch:
        for name in done:
            patch.setattr(Path, name, counting(name))
        with pytest.raises(KeyboardInterrupt):
            sqlite.load(world.env, world.backups / made, world.whole(made).found, print)
    backend.wait(world.env, 1)
    with closing(sqlite3.connect(users)) as connection:
        names = [name for (name,) in connection.execute("SELECT username FROM users")]
    old = step == 0
    assert names == (["ann", "bob"] if old else ["ann"])
    assert world.rows() == ["Default", "first", *(["second"] if old else [])]
    assert not (world.data / backend.RESTORED).exists()
    assert count[:4] == ["rename", "replace", "replace", "rmdir"][: step + 1]


def test_a_file_that_comes_out_different_changes_nothing(world, monkeypatch):
    made = world.save()["set"]
    world.row("second")
    found = world.whole(made).found
    found.files["mlflow.db"] = manifest.File(1, "0" * 64)
    with pytest.raises(StackError, match="was not written as the backup has it; nothing was changed"):
        sqlite.load(world.env, world.backups / made, found, print)
    assert world.rows() == ["Default", "first", "second"]
    assert sorted(p.name for p in world.data.iterdir()) == ["artifacts", "mlflow.db"]


def test_one_at_a_time(world):
    with lock.alone("make backup"), pytest.raises(StackError, match="make backup is at work: wait"), lock.alone("x"):
        pass
    with lock.alone("again"):
        pass


def test_names_by_the_clock():
    """A clock that was set back makes no backup that is older than the one before it."""
    assert manifest.next_name(NOON, []) == "20261127T120000Z"
    assert manifest.next_name(NOON, ["20261126T000000Z"]) == "20261127T120000Z"
    assert manifest.next_name(NOON, ["20261127T235959Z"]) == "20261128T000000Z"
    assert manifest.next_name(NOON, ["20261127T120000Z"]) == "20261127T120001Z"


def test_which_one():
    names = ["20261126T000000Z", "20261127T120000Z", "20261127T130000Z"]
    assert manifest.choose(names, "latest", "x") == names[2]
    assert manifest.choose(names, "20261126", "x") == names[0]
    for wanted, said in (("20261127", "is 2 backups in x"), ("2025", "is no backup in x")):
        with pytest.raises(StackError, match=said):
            manifest.choose(names, wanted, "x")
    with pytest.raises(StackError, match="there is no backup in x"):
        manifest.choose([], "latest", "x")


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_how_many_stay(value):
    assert backup.keep({}) == 14 and backup.keep({"BACKUP_KEEP": "3"}) == 3
    with pytest.raises(StackError, match="BACKUP_KEEP is .* must be a whole number above 0"):
        backup.keep({"BACKUP_KEEP": value})


def test_the_pool_has_an_object_for_each_key():
    """One that only the old key opens is no use to a backup for the new key."""
    names = {pool_name("ab" * 32, age) for age in ("", "age1one", "age1two")}
    assert len(names) == 3 and all(name.startswith("ab/") for name in names)
    assert sum(name.endswith(".age") for name in names) == 2


def test_a_manifest_from_later(world):
    text = manifest.to_text(world.whole(world.save()["set"]).found)
    later = json.dumps({**json.loads(text), "format": 2}).encode()
    with pytest.raises(StackError, match="was made by a newer release of the stack"):
        manifest.from_text(later, "x")
    assert isinstance(manifest.from_text(text.encode(), "x"), Manifest)


def test_the_list(tmp_path):
    """Any name that a store allows comes back."""
    entries = [listing.Entry(name, 1, "a" * 64, "v") for name in ("a", "é ü 🦜", 'quo"te', "line\nbreak", "\u2028")]
    listing.write(tmp_path / "list", entries)
    assert list(listing.read(tmp_path / "list", "x")) == entries


def test_how_the_last_one_ended(world):
    now = NOON + timedelta(hours=5)
    assert backups.last(None, now) == "backup: none was made yet (make backup)"
    good = {"ok": True, "set": "S", "to": "./backups", "ended": NOON.isoformat(), "error": ""}
    assert backups.last(good, now) == "backup: S in ./backups, 5 hours ago"
    bad = good | {"ok": False, "error": "the disk is full"}
    assert backups.last(bad, now) == "backup: FAILED 5 hours ago: the disk is full"
    journal.write(journal.text(good))
    assert journal.read() == good


def test_how_one_ended_cannot_be_written_down(world, monkeypatch, capsys):
    """On a full disk the reason comes through."""

    def full(text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal, "write", full)
    backup.note(world.place(), NOON, {"ok": False, "error": "the disk is full"})
    assert "note: 'make status' will not know how this backup ended: " in capsys.readouterr().out
    assert json.loads((world.backups / journal.NAME).read_text())["error"] == "the disk is full"


def test_what_is_marked_as_proved(world, capsys):
    made = world.save()["set"]
    restore.mark(world.whole(made), "restore-drill")
    assert printed(world, capsys)[1].endswith("(restore-drill)")
    (world.backups / made / manifest.VERIFIED).write_text("{")
    assert printed(world, capsys)[1].endswith("no")
    assert artifacts.SMALL < 3_000_000  # so both ways of reading an object were taken
