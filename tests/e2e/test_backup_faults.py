"""Backups when things go wrong, into and out of every kind of place, and from one kind of stack into another."""

import contextlib
import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import outside
import pytest
from history import History
from saving import containers, destroy, drilled, errors, inside, kill, last, pool, sets, start, until
from stacks import Stack, leftovers, run, stack
from test_rotate_secrets import GET, PUT
from test_upgrade import forget_images, make_older

pytestmark = pytest.mark.docker

TEAM = {"purpose": "team", "auth": "mlflow", "reverse_proxy": "none", "artifact_store": "seaweedfs"}
# Many files beside those of the history, so that something can be interrupted.
MANY = """
import os, pathlib
for number in range(3000):
    path = pathlib.Path(f"/data/artifacts/0/many/{number % 50}/{number}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(5_000))
"""
COUNT = "import pathlib; print(sum(1 for p in pathlib.Path('/data/artifacts').rglob('*') if p.is_file()))"
SUMMED = """
import hashlib, pathlib
for path in sorted(pathlib.Path("/data/artifacts").rglob("*")):
    if path.is_file():
        print(hashlib.sha256(path.read_bytes()).hexdigest(), path)
"""
BEGUN = "test ! -e /data/artifacts/0/many || echo yes"
# A client that writes until it is told to stop, and notes what the server has acknowledged.
WRITER = """
import os, sys, mlflow
mlflow.set_experiment("while")
client = mlflow.MlflowClient()
with open(sys.argv[1], "w", buffering=1) as acknowledged:
    while not os.path.exists(sys.argv[2]):
        with mlflow.start_run() as run:
            mlflow.log_metric("loss", 0.25)
            mlflow.log_text(run.info.run_id, "own.txt")
        acknowledged.write(run.info.run_id + "\\n")
"""
# A run that somebody has deleted.
DELETED = """
import mlflow
with mlflow.start_run(experiment_id="0") as run:
    mlflow.log_text("x", "note.txt")
mlflow.MlflowClient().delete_run(run.info.run_id)
"""
WRITTEN = """
import json, sys, mlflow
client = mlflow.MlflowClient()
for run in json.loads(sys.argv[1]):
    found = client.get_run(run)
    assert found.data.metrics == {"loss": 0.25} and found.info.status == "FINISHED", found
    assert mlflow.artifacts.load_text(f"runs:/{run}/own.txt") == run
# Whatever else is in it is consistent: a run may have begun, but no file is half.
for run in mlflow.search_runs(experiment_names=["while"], output_format="list"):
    for file in client.list_artifacts(run.info.run_id):
        assert mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/{file.path}") == run.info.run_id
print("all")
"""


def since(one: Stack) -> str:
    """Return since when the server's container runs."""
    return run("docker", "inspect", "-f", "{{.Id}} {{.State.StartedAt}}", one.container("mlflow")).stdout


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of a few MB."""
    folder.mkdir()
    if os.getuid():
        pytest.skip("only root mounts a small disk")
    assert run("mount", "-t", "tmpfs", "-o", f"size={size},mode=1777", "tmpfs", str(folder)).returncode == 0
    try:
        yield folder
    finally:
        run("umount", "--lazy", str(folder))


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, History]]:
    """A stack with SQLite and a folder, with many artifacts."""
    with stack(tmp_path_factory.mktemp("laptop"), "faults", {"purpose": "solo"}) as one:
        one.up()
        history = History(one)
        history.write("first")
        one.compose("exec", "-T", "mlflow", "python", "-c", MANY)
        yield one, history


def test_a_disk_that_is_full(laptop: tuple[Stack, History], tmp_path: Path) -> None:
    """An earlier backup is as it was, and nothing of the new one is left."""
    one, _ = laptop
    with small_disk(tmp_path / "disk", "30m") as disk:
        said = one.make("backup", f"TO={disk}", fails=True)
        assert "the disk of" in said and "is full: make room there" in said, said
        assert len(errors(said)) == 1
        assert [path for path in disk.rglob("*") if path.is_file() and path.name != "last.json"] == []
        assert last(one)["ok"] is False and "is full" in last(one)["error"]
        one.make("backup", f"TO={disk}", "ARTIFACTS=no")
        (name,) = sets(disk)
        one.make("backup", f"TO={disk}", fails=True)
        assert sets(disk) == [name]
        said = one.make("restore", f"FROM={disk}", fails=True)  # it is whole: only the stack is not empty
        assert "are as they were saved" in said and "REPLACE=1" in said


def test_killed_backup_and_restore(laptop: tuple[Stack, History]) -> None:
    """kill -9 in the middle of each, of both at every level; the next run succeeds."""
    one, history = laptop
    backups = one.folder / "backups"
    kill(one, ("backup",), lambda: len(pool(backups)) > 200)
    assert sets(backups) == []
    said = one.make("backup")
    assert "is what an interrupted backup has left: removed" in said
    (name,) = sets(backups)
    entries = list(backups.glob("2*Z"))
    assert len(entries) == 1 and not (backups / ".work").exists()

    destroy(one)
    one.make("init")
    kill(one, ("restore",), lambda: containers(one, "backup") and int(inside(one, COUNT)) > 200)
    assert sets(backups) == [name]
    for words in (("up",), ("backup",), ("gc", "APPLY=1"), ("restore", "AT=2020")):
        said = one.make(*words, fails=True)
        assert f"a restore was interrupted: run 'make restore FROM=./backups AT={name}' again" in said, said
    said = one.make("restore")
    assert f"restored {name}" in said
    history.read()
    one.make("up")


def test_killed_while_artifacts_come_back(laptop: tuple[Stack, History]) -> None:
    """kill -9 in the middle of `make restore ONLY=artifacts`: no file is half, and the next run brings the rest."""
    one, history = laptop

    def files() -> set[str]:
        return set(one.compose("exec", "-T", "mlflow", "python", "-c", SUMMED).splitlines())

    before = files()
    one.compose("exec", "-T", "mlflow", "rm", "-r", "/data/artifacts/0/many")
    kill(one, ("restore", "ONLY=artifacts"), lambda: "yes" in one.compose("exec", "-T", "mlflow", "sh", "-c", BEGUN))
    there = {line for line in files() if "/.artifacts-move/" not in line}  # there they are on their way
    assert there < before
    # It is no restore that the stack would wait for: the database is as it was.
    one.make("up")
    said = one.make("restore", "ONLY=artifacts")
    assert f" {len(before - there):,} of them were copied" in said and "differ" not in said, said
    assert files() == before
    history.read()


def test_what_was_altered_is_refused(laptop: tuple[Stack, History]) -> None:
    """Before anything is touched: the server has not even been stopped."""
    one, history = laptop
    backups = one.folder / "backups"
    name, running = sets(backups)[-1], since(one)
    largest = max((path for path in pool(backups)), key=lambda path: path.stat().st_size)
    for path, change in (
        (backups / name / "mlflow.db", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        (backups / name / "mlflow.db", lambda data: data[: len(data) // 2]),
        (backups / name / "manifest.json", lambda data: data.replace(b'"rows"', b'"raws"', 1) + b" x"),
        (largest, lambda data: data[:-1]),
    ):
        before = path.read_bytes()
        path.write_bytes(change(before))
        said = one.make("restore", f"AT={name}", "REPLACE=1", fails=True)
        assert "is damaged" in said and len(errors(said)) == 1, said
        path.write_bytes(before)
    assert since(one) == running and sets(backups)[-1] == name
    history.read()


def test_two_at_once(laptop: tuple[Stack, History]) -> None:
    """One gets a clear refusal, whatever the second command is."""
    one, _ = laptop
    begun = start(one, "backup")
    until((one.folder / ".stack.lock").is_symlink, "the lock is there")
    for words in (("backup",), ("restore", "REPLACE=1"), ("gc", "APPLY=1"), ("artifacts-move", "TO=/tmp"),
                  ("rotate-secrets",)):  # fmt: skip
        said = one.make(*words, fails=True)
        assert re.search(r"error: 'make backup' \(process \d+\) is at work: wait until it has ended", said), said
    assert begun.poll() is None, "it was to be at work meanwhile"
    said = begun.communicate(timeout=300)[0]
    assert begun.returncode == 0, said
    assert not (one.folder / ".stack.lock").is_symlink()


def test_while_a_client_writes(laptop: tuple[Stack, History], tmp_path: Path) -> None:
    """What was acknowledged before the backup began is in it, in full; REPLACE=1 brings that state back."""
    one, history = laptop
    noted, stop = tmp_path / "noted", tmp_path / "stop"
    writer = threading.Thread(target=one.client, args=(WRITER, str(noted), str(stop)))
    writer.start()
    try:
        until(lambda: noted.exists() and len(noted.read_text().split()) > 5, "it writes")
        acknowledged = noted.read_text().split()
        one.make("backup")
        later = noted.read_text().split()
    finally:
        stop.touch()
        writer.join(timeout=60)
    assert len(later) > len(acknowledged), "nobody wrote during the backup"
    name = sets(one.folder / "backups")[-1]
    one.make("restore", f"AT={name}", "REPLACE=1")
    assert sets(one.folder / "backups")[-1] > name  # what was there was saved before
    assert one.client(WRITTEN, json.dumps(acknowledged)).strip() == "all"
    history.read()


def test_drill(laptop: tuple[Stack, History]) -> None:
    """A backup is loaded into a stack of its own; a killed drill, and one of a damaged backup, leave nothing either."""
    one, _ = laptop
    one.make("backup")
    backups = one.folder / "backups"
    name = sets(backups)[-1]
    kill(one, ("restore-drill",), lambda: containers(one, "drill-backup"), "drill-backup")
    assert leftovers(f"{one.name}-drill", "volume") != []
    assert drilled(one) == name
    assert json.loads((backups / name / "verified.json").read_text())["how"] == "restore-drill"
    assert re.search(rf"^{name} .* \(restore-drill\)$", one.make("backups"), re.MULTILINE)
    path = backups / name / "mlflow.db"
    before = path.read_bytes()
    path.write_bytes(before[:-1])
    assert "is damaged: mlflow.db" in one.make("restore-drill", fails=True)
    path.write_bytes(before)
    assert leftovers(f"{one.name}-drill", "container", "network", "volume") == []


def test_few_stay(laptop: tuple[Stack, History]) -> None:
    """BACKUP_KEEP counts, and what only older ones needed goes."""
    one, history = laptop
    backups = one.folder / "backups"
    before = sets(backups)
    one.compose("exec", "-T", "mlflow", "rm", "-r", "/data/artifacts/0/many")
    one.setting("BACKUP_KEEP", "2")
    said = one.make("backup")
    assert said.count("removed 2") == len(before) + 1 - 2
    assert len(sets(backups)) == 2 and len(pool(backups)) > 3000
    # Of what no backup needs there is so much that `make backups` can be killed meanwhile: the older set is gone
    # already, its artifacts are not. The newest is whole, and the next run takes the rest away.
    older, newest = sets(backups)
    folder, owner = backups / "artifacts" / "ff", backups.stat()
    folder.mkdir(exist_ok=True)
    os.chown(folder, owner.st_uid, owner.st_gid)
    for number in range(40_000):
        (folder / f"{number:064x}").touch()
    kill(one, ("backups", "KEEP=1"), lambda: not (backups / older / "manifest.json").exists())
    assert sets(backups) == [newest] and len(pool(backups)) > 100
    said = one.make("backups", "KEEP=1")
    assert newest in said and "DAMAGED" not in said, said
    assert len(pool(backups)) < 100
    one.setting("BACKUP_KEEP", "many")
    assert "BACKUP_KEEP is 'many'; it must be a whole number above 0" in one.make("backup", fails=True)
    one.setting("BACKUP_KEEP", "2")
    destroy(one)
    one.make("restore")
    history.read()


def test_a_clock_that_was_ahead(laptop: tuple[Stack, History]) -> None:
    """A backup that was made when the clock was years ahead is not newer than the one that follows."""
    one, history = laptop
    backups = one.folder / "backups"
    ahead, following = "20990101T000000Z", "20990101T000001Z"
    one.make("backup")
    (backups / sets(backups)[-1]).rename(backups / ahead)  # no other file has the name in it
    history.write("after the clock was set right")
    assert f"made {following} in ./backups" in one.make("backup")
    assert re.search(rf"^backup: {following} in \./backups, just now$", one.make("status"), re.MULTILINE)
    assert ahead in sets(backups), "the older ones go first"
    destroy(one)
    assert f"restored {following}" in one.make("restore")
    history.read()


def test_into_postgres(laptop: tuple[Stack, History]) -> None:
    """A laptop's backup goes into a team's stack, and from there into one with a folder again."""
    one, history = laptop
    one.make("backup")
    destroy(one)
    one.answer(backend="postgres", artifact_store="seaweedfs")
    said = one.make("restore")
    assert "counts and checksums are right" in said and "restored" in said
    history.read()
    history.write("in-the-team")
    one.make("backup")
    name = sets(one.folder / "backups")[-1]
    destroy(one)
    one.answer(artifact_store="local")
    one.make("restore", f"AT={name}")
    history.read()
    one.make("check")
    # The way back from PostgreSQL to SQLite is none.
    destroy(one)
    one.answer(backend="sqlite")
    said = one.make("restore", f"AT={name}", fails=True)
    assert "is of another kind of database (postgres)" in said and len(errors(said)) == 1


KEY = "import pyrage; key = pyrage.x25519.Identity.generate(); print(key, key.to_public())"


def test_a_team(tmp_path: Path) -> None:
    """PostgreSQL, SeaweedFS and MLflow's users: killed, encrypted, elsewhere, and with other secrets since."""
    with stack(tmp_path, "backup-team", TEAM) as one, outside.s3() as s3, outside.azurite() as azurite:
        one.up()
        history = History(one)
        history.write("first")
        one.compose("exec", "-T", "mlflow", "python", "-c", PUT)
        one.make("user-add", "NAME=ann", input="a long password\n")
        backups = one.folder / "backups"
        one.make("backup")
        (plain,) = sets(backups)
        assert "; 0 of them new, 0 B" in one.make("backup")
        old = {
            name: (one.folder / "secrets" / name).read_text()
            for name in ("crypto_kek_passphrase", "webhook_encryption_key")
        }  # noqa: E501

        assert drilled(one) == sets(backups)[-1]

        # Secrets that were changed since stay as they are; rows that were encrypted want the keys of then.
        one.make("rotate-secrets")
        one.make("restore", f"AT={plain}", "REPLACE=1")
        history.read()
        for name, text in old.items():
            (one.folder / "secrets" / name).write_text(text)
        one.make("restart")
        assert one.compose("exec", "-T", "mlflow", "python", "-c", GET).split()[-2:] == [
            "sk-of-a-provider",
            "hmac-of-the-hook",
        ]  # noqa: E501
        history.read()

        # For the owner of a key alone. The pool has the artifacts once for everybody and once for that key.
        private, public = inside(one, KEY).split()
        identity, wrong = tmp_path / "age.txt", tmp_path / "wrong.txt"
        identity.write_text(f"# made by a test\n{private}\n")
        wrong.write_text(inside(one, KEY).split()[0] + "\n")
        here = len(pool(backups))
        assert "; 0 of them new" not in one.make("backup", f"ENCRYPT={public}")
        assert len(pool(backups)) == 2 * here
        assert "; 0 of them new" in one.make("backup", f"ENCRYPT={public}")
        sealed = sets(backups)[-1]
        assert sorted(p.name for p in (backups / sealed).iterdir()) == [
            "artifacts.jsonl.gz", "database.dump.age", "manifest.json"]  # fmt: skip
        for words, sentence in (
            ((), "is encrypted: say AGE_IDENTITY=FILE"),
            ((f"AGE_IDENTITY={wrong}",), "cannot be decrypted"),
            ((f"AGE_IDENTITY={tmp_path}/none",), "which cannot be read"),
        ):
            said = one.make("restore", f"AT={sealed}", "REPLACE=1", *words, fails=True)
            assert sentence in said and len(errors(said)) == 1, said
        assert "is no public key of age" in one.make("backup", "ENCRYPT=age1nonsense", fails=True)
        assert last(one)["ok"] is False

        # Elsewhere: the same set in each place.
        other = one.folder / "secrets" / "other"
        other.mkdir()
        (other / "s3_credentials").write_text(s3.secrets["s3_credentials"])
        (other / "azure_connection_string").write_text(azurite.secrets["azure_connection_string"])
        account, bin_name = azurite.answers["azure_account"], azurite.answers["azure_container"]
        in_s3 = (f"s3://{s3.answers['bucket']}/of/the team", f"ENDPOINT={s3.settings['MLFLOW_S3_ENDPOINT_URL']}")
        in_azure = (f"wasbs://{bin_name}@{account}.blob.core.windows.net/backups",)
        for place, *more in (in_s3, in_azure):
            one.make("backup", f"TO={place}", *more)
            assert "; 0 of them new, 0 B" in one.make("backup", f"TO={place}", *more)
            one.setting("BACKUP_KEEP", "1")
            assert one.make("backup", f"TO={place}", *more).count("removed 2") == 2
            one.setting("BACKUP_KEEP", "14")
            env = {"TO": place} | dict(word.split("=", 1) for word in more)
            listed = json.loads(run("scripts/backup.sh", "list", cwd=one.folder, env=env | {"JSON": "1"}).stdout)
            assert len(listed) == 1 and listed[0]["artifacts"]["objects"] > 5
        history.write("in no backup")

        keys = {path.name: path.read_text() for path in other.iterdir()}
        for words in (
            (f"FROM={in_azure[0]}",),
            (f"FROM={in_s3[0]}", in_s3[1]),
            (f"AT={sealed}", f"AGE_IDENTITY={identity}"),
        ):
            destroy(one)
            one.make("init")
            other.mkdir()
            for name, text in keys.items():
                (other / name).write_text(text)
            said = one.make("restore", *words)
            assert "counts and checksums are right" in said
            lost = history.written.pop() if history.written[-1]["label"] == "in no backup" else None
            history.read()
            assert lost is None or lost["label"] not in one.make("backups")
            assert "ann" in one.make("user-list")
        assert "there is no backup in wasbs:" in one.make("restore", f"FROM={in_azure[0]}x", fails=True)


WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'mlflow' AND wait_event_type = 'Lock'"
HOLD = "BEGIN; LOCK TABLE {} MODE; SELECT pg_sleep(300)"  # others wait for the table
LET_GO = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(300)'"


def test_into_another_mlflow(tmp_path: Path) -> None:
    """PostgreSQL, saved by MLflow 3.16: altered, killed while it is loaded, and migrated; the way back is refused."""
    answers = {"backend": "postgres", "artifact_store": "local", "reverse_proxy": "none", "auth": "none"}
    with stack(tmp_path, "backup-older", answers) as one, contextlib.ExitStack() as kit:
        kit.callback(forget_images, one)
        psql = ("exec", "-T", "postgres", "psql", "--username", "postgres", "--tuples-only", "mlflow", "--command")
        files = {"now": make_older(one)}
        files["then"] = {path: (one.folder / path).read_text() for path in files["now"]}

        def asks_for(when: str) -> None:
            for path, text in files[when].items():
                (one.folder / path).write_text(text)

        @contextlib.contextmanager
        def held(table: str) -> Iterator[None]:
            words = ["docker", "compose", *psql, HOLD.format(table)]
            with subprocess.Popen(words, cwd=one.folder, stderr=subprocess.DEVNULL):
                try:
                    yield
                finally:
                    one.compose(*psql, LET_GO)

        def version() -> str:
            code = "from importlib.metadata import version; print(version('mlflow'))"
            return one.compose("exec", "-T", "mlflow", "python", "-c", code).strip()

        one.up()
        assert version() == "3.16.1"
        history = History(one)
        history.write("first")
        backups = one.folder / "backups"
        with held("webhooks IN ACCESS EXCLUSIVE"):  # nobody reads it meanwhile
            kill(one, ("backup",), lambda: int(one.compose(*psql, WAITING)) > 0)
        assert sets(backups) == [] and "unfinished" in one.make("backups")
        assert "there is no backup in" in one.make("restore", fails=True)
        assert "is what an interrupted backup has left: removed" in one.make("backup")
        (name,) = sets(backups)
        assert "unfinished" not in one.make("backups")
        destroy(one)
        asks_for("now")
        one.up()
        assert version() == "3.17.2"

        dump, running = backups / name / "database.dump", since(one)
        before = dump.read_bytes()
        for altered in (before[: len(before) // 2], before[:-1] + bytes([before[-1] ^ 1])):
            dump.write_bytes(altered)
            said = one.make("restore", fails=True)
            assert "is damaged: database.dump" in said and len(errors(said)) == 1, said
        dump.write_bytes(before)
        assert since(one) == running

        with held("experiments IN ACCESS SHARE"):  # nobody drops it meanwhile
            kill(one, ("restore",), lambda: int(one.compose(*psql, WAITING)) > 0)
        assert f"run 'make restore FROM=./backups AT={name}' again" in one.make("up", fails=True)
        assert "counts and checksums are right" in one.make("restore")
        assert version() == "3.17.2"
        history.read()
        one.make("check")

        one.make("backup")
        newer = sets(backups)[-1]
        destroy(one)
        asks_for("then")
        said = one.make("restore", f"AT={newer}", fails=True)
        assert f"the backup {newer} comes from a newer MLflow (3.17.2, " in said and len(errors(said)) == 1, said
        one.make("restore", f"AT={name}")
        assert version() == "3.16.1"
        history.read()


def test_by_the_clock(tmp_path: Path) -> None:
    """backups=true: a service makes one when it is due, and everybody can see how it ended."""
    with stack(tmp_path, "backup-clock", {"purpose": "solo", "backups": True}) as one:
        one.setting("BACKUP_SCHEDULE", "at night")
        said = one.make("up", fails=True)
        assert "BACKUP_SCHEDULE is 'at night'; it must be five fields as cron has them" in said
        one.setting("BACKUP_SCHEDULE", "*/2 * * * *")
        one.setting("GC_SCHEDULE", "1-59/2 * * * *")
        one.setting("GC_OLDER_THAN", "0m")
        one.up()
        assert "backup: none was made yet (make backup)" in one.make("status")
        history = History(one)
        history.write("first")
        backups = one.folder / "backups"
        until(lambda: sets(backups), "a backup was made", 150)
        name = sets(backups)[0]
        assert int(name[11:13]) % 2 == 0  # the minute
        until(lambda: last(one), "it is noted")
        assert re.search(rf"^backup: {name} in \./backups, just now$", one.make("status"), re.MULTILINE)
        log = one.compose("logs", "backup-schedule")
        assert "next backup: " in log and f"made {name} in ./backups" in log
        assert (
            "healthy"
            in run("docker", "inspect", "-f", "{{.State.Health.Status}}", one.container("backup-schedule")).stdout
        )  # noqa: E501
        # What was deleted goes in the minutes between.
        one.client(DELETED)
        until(lambda: "clean-up: removed: 1 runs; 1 files" in one.make("status"), "it was cleaned up", 150)
        assert "next clean-up: " in one.compose("logs", "backup-schedule")
        # By hand and by the clock are the same.
        assert "; 0 of them new, 0 B" in one.make("backup")
        assert run("scripts/doctor.sh", cwd=one.folder).stdout.count("backup: no") == 0

        # One that fails is seen, too; a stack that stops meanwhile does not wait for it.
        (backups / "artifacts").rename(backups / "away")
        (backups / "artifacts").write_text("in the way")
        one.make("backup", fails=True)
        assert "backup: FAILED" in one.make("status")
        found = json.loads(run("scripts/doctor.sh", cwd=one.folder, env={"JSON": "1"}).stdout)["findings"]
        assert [f["text"].startswith("the last backup failed") for f in found if f["check"] == "backup"] == [True]
