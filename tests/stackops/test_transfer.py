"""Copying between stores: what is decided, what is checked, what an interruption leaves."""

import contextlib
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from artifacts_move import copying, local, s3, stores
from artifacts_move.copying import Journal, decide, move
from artifacts_move.stores import Digest, Item, open_store, part_size, parts, under
from botocore.exceptions import ClientError
from conftest import PROJECT
from stackops.errors import StackError

MIB = 1 << 20


def folder(path: Path) -> local.Store:
    return local.Store(str(path), str(path), "", {})


def content(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with files of all kinds."""
    root = tmp_path / "source"
    files = {
        "1/run/artifacts/a.txt": b"a",
        "1/run/artifacts/empty": b"",
        "1/run/artifacts/with space/é #1%?&=+🦜": b"name",
        "1/run/artifacts/a": b"name of a folder elsewhere",
        "1/run/artifacts/b/a": bytes(range(256)) * 99,
        "1/models/m-1/artifacts/data.bin": os.urandom(9 * MIB + 1),
    }
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.db")


def test_parts_and_their_checksum():
    data = os.urandom(5 * MIB + 7)
    pieces = [data[i : i + 70_001] for i in range(0, len(data), 70_001)]
    assert [len(part) for part in parts(pieces, 2 * MIB)] == [2 * MIB, 2 * MIB, MIB + 7]
    assert b"".join(parts(pieces, 2 * MIB)) == data
    digest = Digest("parts", 2 * MIB)
    assert b"".join(digest.over(pieces)) == data
    each = [hashlib.md5(data[i : i + 2 * MIB]).digest() for i in (0, 2 * MIB, 4 * MIB)]
    assert digest.checksum == hashlib.md5(b"".join(each)).hexdigest() + "-3"
    assert digest.size == len(data)
    assert digest.matches([data[: 3 * MIB], data[3 * MIB :]])
    assert not digest.matches([data[:-1]]) and not digest.matches([data[:-1] + bytes([data[-1] ^ 1])])
    whole = Digest("parts", MIB)
    list(whole.over([data[: 2 * MIB]]))
    assert whole.checksum.endswith("-2")
    md5 = Digest("md5")
    list(md5.over(pieces))
    assert md5.checksum == hashlib.md5(data).hexdigest()
    sha256 = Digest()
    list(sha256.over(pieces))
    assert sha256.checksum == hashlib.sha256(data).hexdigest()
    assert sha256.matches(pieces) and not sha256.matches(pieces[1:])


@pytest.mark.parametrize("size", [0, 1, 8 * MIB, 80 * 1024 * MIB, 5 * 1024 * 1024 * MIB])
def test_no_store_gets_too_many_parts(size):
    assert part_size(size) % (256 << 10) == 0
    assert size / part_size(size) <= 10_000


@pytest.mark.parametrize(
    ("there", "done", "expected"),
    [
        (None, None, "copy"),
        (None, ("s1", "t1"), "copy"),  # it was there, and somebody deleted it
        (Item("x", 3, "t1"), ("s1", "t1"), "skip"),
        (Item("x", 3, "t1"), ("s0", "t1"), "copy"),  # only the source has changed since
        (Item("x", 3, "t2"), ("s1", "t1"), "compare"),  # the target has changed since
        (Item("x", 3, "t1"), None, "compare"),  # the journal is gone
        (Item("x", 4, "t2"), ("s1", "t1"), "different"),
        (Item("x", 4, "t1"), None, "different"),
    ],
)
def test_decision(there, done, expected):
    assert decide(Item("x", 3, "s1"), there, done) == expected


def test_all_is_copied_once(source, tmp_path, journal):
    target = tmp_path / "target"
    first = move(folder(source), folder(target), journal, print)
    assert content(target) | {} == content(source)
    assert (first.copied, first.same, first.found) == (6, 0, 6)
    assert first.copied_bytes == first.found_bytes == sum(map(len, content(source).values()))
    again = move(folder(source), folder(target), journal, print)
    assert (again.copied, again.same) == (0, 6)
    without = move(folder(source), folder(target), Journal(":memory:"), print)
    assert (without.copied, without.same) == (0, 6)


def test_a_later_run_brings_what_is_new(source, tmp_path, journal):
    target = tmp_path / "target"
    move(folder(source), folder(target), journal, print)
    (source / "1/run/artifacts/a.txt").write_bytes(b"newer")
    (source / "new").write_bytes(b"new")
    report = move(folder(source), folder(target), journal, print)
    assert (report.copied, report.same, report.different) == (2, 5, [])
    assert content(target) == content(source)


@pytest.mark.parametrize("altered", [b"b", b"longer"])
def test_an_altered_object_is_found(source, tmp_path, journal, altered):
    target, name = tmp_path / "target", "1/run/artifacts/a.txt"
    move(folder(source), folder(target), journal, print)
    (target / name).write_bytes(altered)
    assert move(folder(source), folder(target), journal, print).different == [name]
    assert (target / name).read_bytes() == altered
    assert move(folder(source), folder(target), journal, print, keep="target").kept == 1
    assert (target / name).read_bytes() == altered
    assert move(folder(source), folder(target), journal, print, keep="source").copied == 1
    assert content(target) == content(source)


def test_distrust_finds_what_hides(source, tmp_path, journal):
    """The same size and time: only the bytes tell."""
    target, name = tmp_path / "target", "1/run/artifacts/a.txt"
    move(folder(source), folder(target), journal, print)
    before = (target / name).stat()
    with open(target / name, "r+b") as file:
        file.write(b"z")
    os.utime(target / name, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert move(folder(source), folder(target), journal, print).different == []
    assert move(folder(source), folder(target), journal, print, distrust=True).different == [name]


class Faulty(local.Store):
    """A folder that alters what is written to it."""

    def write(self, name, size, pieces):
        return super().write(name, size, (piece.replace(b"a", b"b") for piece in pieces))


def test_a_store_that_alters_is_caught(source, tmp_path, journal):
    (source / "1/run/artifacts/a.txt").write_bytes(b"aaa")
    with pytest.raises(StackError, match=r"gave back other bytes than were written"):
        move(folder(source), Faulty(str(tmp_path / "t"), "t", "", {}), journal, print)


class Vouching(local.Store):
    """A folder that claims to check what it gets."""

    claimed = ""

    def vouches(self, size):
        return "md5"

    def stat(self, name):
        item = super().stat(name)
        return Item(
            item.name, item.size, item.version, self.claimed or hashlib.md5((self.root / name).read_bytes()).hexdigest()
        )

    def read(self, name):
        raise AssertionError("it was read back")


def test_a_checksum_that_proves_saves_reading_back(source, tmp_path, journal):
    target = Vouching(str(tmp_path / "t"), "t", "", {})
    assert move(folder(source), target, journal, print).copied == 6
    assert move(folder(source), target, Journal(":memory:"), print).same == 6
    with pytest.raises(StackError, match="read back"):
        move(folder(source), target, Journal(":memory:"), print, distrust=True)
    target.claimed = "something else"
    with pytest.raises(AssertionError, match="read back"):
        copying.copy(folder(source), target, folder(source).stat("1/run/artifacts/a.txt"))


class Growing(local.Store):
    """A folder to which somebody writes: each time it is listed it has one file more, and one is cut short."""

    def items(self):
        count = len(list(self.root.glob("new-*")))
        if count < 3:
            (self.root / f"new-{count}").write_bytes(b"new")
        yield from super().items()

    def read(self, name):
        if name == "1/run/artifacts/a.txt" and not (self.root / "read").exists():
            (self.root / "read").touch()
            (self.root / name).write_bytes(b"changed while it was read")
        yield from super().read(name)


def test_a_source_that_changes(source, tmp_path, journal):
    target = tmp_path / "target"
    report = move(Growing(str(source), "s", "", {}), folder(target), journal, print)
    assert report.different == []
    assert content(target) == content(source)


def test_the_first_failure_ends_it(source, tmp_path, journal):
    target = tmp_path / "target"
    target.mkdir()
    (target / "1").write_bytes(b"a file where a folder should be")
    with pytest.raises(StackError, match=r"cannot be copied to folder .*target"):
        move(folder(source), folder(target), journal, print)


def test_links_are_refused(source, tmp_path):
    (source / "link").symlink_to(source / "1/run/artifacts/a.txt")
    with pytest.raises(StackError, match="link is no plain file"):
        list(folder(source).items())


def test_a_tree_without_a_server_gives_its_artifacts(tmp_path):
    """./mlruns holds MLflow's own files as well, and those are no artifacts."""
    for name in (
        "0/meta.yaml",
        "0/r1/meta.yaml",
        "0/r1/metrics/loss",
        "0/r1/artifacts/m/x",
        "0/models/m-1/artifacts/y",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    names = {item.name for item in folder(tmp_path).items()}
    assert names == {"0/r1/artifacts/m/x", "0/models/m-1/artifacts/y"}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("p/1/a", "1/a"),
        ("p/1/", None),
        ("p/", None),
        ("p/.stackops-probe/x", None),
        *((f"p/{name}", StackError) for name in ("../x", "1//x", "./x", "1/..", "/x", "a\0b")),
    ],
)
def test_names_below_a_prefix(key, expected):
    with pytest.raises(StackError) if expected is StackError else contextlib.nullcontext():
        assert under("p/", key) == expected


@pytest.mark.parametrize("uri", ["mlruns", "ftp://x", "http://host", "", "dbfs:/x"])
def test_what_is_no_store(uri):
    with pytest.raises(StackError, match="is no artifact store"):
        open_store(uri, uri, "", {})


SLOW = """
import sys, time
from artifacts_move import copying, local

class Slow(local.Store):
    def read(self, name):
        for piece in super().read(name):
            time.sleep(0.002)
            yield piece

source, target, journal = sys.argv[1:]
report = copying.move(
    Slow(source, source, "", {}), local.Store(target, target, "", {}), copying.Journal(journal), print, jobs=3)
print(report.copied, report.same)
"""


def test_killed_and_started_again(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for number in range(3000):
        (source / f"{number:04}").write_bytes(os.urandom(100))
    (source / "big").write_bytes(os.urandom(64 * MIB))
    command = [sys.executable, "-c", SLOW, str(source), str(target), str(tmp_path / "journal.db")]
    env = {**os.environ, "PYTHONPATH": f"{PROJECT}{os.pathsep}{PROJECT.parent / 'transfer'}"}
    started = subprocess.Popen(command, env=env)
    while len(os.listdir(target) if target.exists() else []) < 500:
        assert started.poll() is None
        time.sleep(0.02)
    started.send_signal(signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL
    there = set(content(target)) & set(content(source))
    assert 500 <= len(there) + 1 < 3001
    assert all((target / name).read_bytes() == (source / name).read_bytes() for name in there)
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    copied, same = map(int, done.stdout.split()[-2:])
    assert (copied, same) == (3001 - len(there), len(there))
    assert {k: v for k, v in content(target).items() if not k.startswith(local.WORK)} == content(source)


def test_stores_are_apart():
    from artifacts_move import __main__ as program

    def store(where: str) -> stores.Store:
        one = folder(Path("/x"))
        one.where = where
        return one

    for one, other in [
        ("s3://b", "s3://b"),
        ("s3://b/p", "s3://b"),
        ("s3://b at http://h", "s3://b/p at http://h"),
        ("folder /a", "folder /a/b"),
    ]:
        with pytest.raises(StackError, match="one place"):
            program.apart(store(one), store(other))
        with pytest.raises(StackError, match="one place"):
            program.apart(store(other), store(one))
    program.apart(store("s3://b at http://h"), store("s3://b at http://other"))
    program.apart(store("s3://b"), store("s3://b-2"))


@pytest.mark.parametrize(
    ("source", "target", "direct", "uri", "followed", "archive"),
    [
        ("s3://a", "gs://b", False, "s3://a/1", "mlflow-artifacts:/1", "gs://b/1"),
        ("s3://a", "gs://b", True, "s3://a/1", "gs://b/1", "gs://b/1"),
        ("s3://a", "/data/artifacts", True, "s3://a/1", "mlflow-artifacts:/1", "file:///data/artifacts/1"),
        ("/data/artifacts", "s3://b", True, "/data/artifacts/1", "s3://b/1", "s3://b/1"),
        ("/data/artifacts", "s3://b", False, "file:///data/artifacts/1", "mlflow-artifacts:/1", "s3://b/1"),
        ("s3://a", "gs://b", True, "mlflow-artifacts:/1", None, None),  # the server has another store now
    ],
)
def test_where_locations_lead(source, target, direct, uri, followed, archive):
    from artifacts_move import __main__ as program
    from stackops.artifact_uris import PLACES, _for, rewrite

    mapping = program.mapping(source, target, direct)
    after = {place.by_server: rewrite(uri, _for(place, mapping)) for place in PLACES}
    assert after == {False: followed, True: archive}


class Program:
    """The whole command beside a stack with SQLite and local artifacts, whose database still names another folder."""

    def __init__(self, base: Path, source: Path):
        self.base, self.source, self.own = base, source, base / "own"
        (base / "secrets").mkdir()
        self.database = f"{base}/mlflow.db"
        with contextlib.closing(sqlite3.connect(self.database)) as connection, connection:
            connection.execute("CREATE TABLE runs (run_uuid TEXT, artifact_uri TEXT)")
            connection.execute("CREATE TABLE experiments (experiment_id INTEGER, artifact_location TEXT)")
            connection.execute("INSERT INTO runs VALUES ('r', ?)", (f"{source}/1/run/artifacts",))
            connection.execute("INSERT INTO experiments VALUES (1, ?)", (f"file://{source}/1",))

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        env = {
            "PYTHONPATH": f"{PROJECT}{os.pathsep}{PROJECT.parent / 'transfer'}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "STACK_BACKEND": "sqlite",
            "STACK_STORE": "local",
            "ARTIFACT_URI": str(self.own),
            "ARTIFACT_ACCESS": "proxied",
            "DATA_DIR": str(self.base),
            "SECRETS_DIR": str(self.base / "secrets"),
            "RUNTIME_DIR": str(self.base / "run"),
            "TMPDIR": str(self.base),
        }
        command = [sys.executable, "-m", "artifacts_move", *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True)

    def locations(self) -> list[str]:
        with contextlib.closing(sqlite3.connect(self.database)) as connection:
            both = "SELECT artifact_uri FROM runs UNION ALL SELECT artifact_location FROM experiments"
            return [uri for (uri,) in connection.execute(both)]


@pytest.fixture
def program(tmp_path: Path, source: Path) -> Program:
    return Program(tmp_path, source)


def test_the_database_follows(program):
    before = program.locations()
    dry = program.run("--from", str(program.source), "--dry-run")
    assert "would copy 6 objects" in dry.stdout and "would change 1 of runs.artifact_uri" in dry.stdout
    assert not program.own.exists() and program.locations() == before
    done = program.run("--from", str(program.source))
    assert done.returncode == 0, done.stderr
    assert "changed the locations of 1 experiment and 1 run" in done.stdout
    assert program.locations() == ["mlflow-artifacts:/1/run/artifacts", "mlflow-artifacts:/1"]
    assert content(program.own) == content(program.source)


@pytest.mark.parametrize("why", ["different", "nothing", "too long", "unreadable", "the same place"])
def test_a_failure_leaves_the_database(program, why):
    before, arguments = program.locations(), ["--from", str(program.source)]
    expected = {"different": "KEEP=source", "nothing": "is it the right place", "too long": "longer than its 200"}
    if why == "different":
        (program.own / "1/run/artifacts").mkdir(parents=True)
        (program.own / "1/run/artifacts/a.txt").write_bytes(b"mine")
    elif why == "nothing":
        arguments = ["--from", str(program.base / "nowhere"), "--known-as", str(program.source)]
    elif why == "too long":
        with contextlib.closing(sqlite3.connect(program.database)) as connection, connection:
            connection.execute("INSERT INTO runs VALUES ('long', ?)", (f"{program.source}/{'x' * 190}",))
        before = program.locations()
    elif why == "unreadable":
        (program.source / "link").symlink_to("nowhere")
    else:
        arguments = ["--to", str(program.own / "inside")]
    done = program.run(*arguments)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("artifacts-move: error: ") and expected.get(why, "") in done.stderr
    assert program.locations() == before
    assert why != "too long" or not program.own.exists()  # refused before the first byte


def test_a_plain_copy_leaves_the_database(program):
    program.run("--from", str(program.source))
    before = program.locations()
    done = program.run("--to", str(program.base / "copy"), "--copy-only")
    assert done.returncode == 0, done.stderr
    assert content(program.base / "copy") == content(program.own) and program.locations() == before


class Bucket:
    """Botocore's client of a bucket, as far as one upload goes; later parts arrive before earlier ones."""

    def __init__(self, refuses: int = 0):
        self.refuses, self.parts, self.events, self.lock = refuses, {}, [], threading.Lock()
        self.now = self.most = 0

    def create_multipart_upload(self, **_):
        return {"UploadId": "u"}

    def list_multipart_uploads(self, **_):
        return {}

    def upload_part(self, PartNumber, Body, **_):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.05 if PartNumber % 2 else 0.01)
        with self.lock:
            self.now -= 1
            self.events.append(PartNumber)
            if PartNumber == self.refuses:
                raise OSError("full")
            self.parts[PartNumber] = Body
        return {"ETag": f'"{hashlib.md5(Body).hexdigest()}"'}

    def complete_multipart_upload(self, MultipartUpload, **_):
        numbers = [part["PartNumber"] for part in MultipartUpload["Parts"]]
        assert numbers == sorted(self.parts)
        tags = [bytes.fromhex(part["ETag"].strip('"')) for part in MultipartUpload["Parts"]]
        self.content = b"".join(self.parts[number] for number in numbers)
        return {"ETag": f'"{hashlib.md5(b"".join(tags)).hexdigest()}-{len(tags)}"'}

    def abort_multipart_upload(self, **_):
        self.events.append("aborted")


def bucket_with(client: Bucket, monkeypatch) -> stores.Store:
    store = open_store("s3://bucket", "s3://bucket", "/nowhere", {"MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:1"})
    store.client = client
    monkeypatch.setattr(s3, "part_size", lambda size: 1000)
    monkeypatch.setattr(s3, "PART", 1000)
    return store


def test_parts_of_an_upload_travel_together_and_arrive_in_order(monkeypatch):
    client = Bucket()
    store = bucket_with(client, monkeypatch)
    data = os.urandom(40_500)
    digest = Digest("parts", 1000)
    sent = store.write("big.bin", len(data), digest.over([data[i : i + 300] for i in range(0, len(data), 300)]))
    assert client.content == data and sent.checksum == digest.checksum
    assert client.events != sorted(client.events)
    assert 1 < client.most <= s3.AHEAD + 1  # the ninth is sent by the thread that reads


def test_a_refused_part_ends_the_upload_when_all_others_are_done(monkeypatch):
    client = Bucket(refuses=3)
    store = bucket_with(client, monkeypatch)
    with pytest.raises(OSError, match="full"):
        store.write("big.bin", 500_000, (os.urandom(1000) for _ in range(500)))
    assert client.events[-1] == "aborted" and len(client.events) < 100
    time.sleep(0.1)
    assert client.events[-1] == "aborted" and client.now == 0


class Checking(Bucket):
    """A bucket that compares what arrives with the SHA-256 that comes with it, and may do worse than that."""

    def __init__(self, echoes: bool = True, checks: bool = True, together: str = ""):
        super().__init__()
        self.echoes, self.checks, self.together, self.read_back, self.deleted = echoes, checks, together, 0, []

    def _compared(self, Body, ChecksumSHA256):
        if self.checks and ChecksumSHA256 != s3.sha256(Body):
            raise ClientError({"Error": {"Code": "BadDigest"}}, "PutObject")
        return {"ChecksumSHA256": ChecksumSHA256} if self.echoes else {}

    def put_object(self, Key, Body, ChecksumSHA256, **_):
        self.content = Body
        return {"ETag": '"an ETag that is no MD5"', **self._compared(Body, ChecksumSHA256)}

    def upload_part(self, Body, ChecksumSHA256, **words):
        return {**self._compared(Body, ChecksumSHA256), **super().upload_part(Body=Body, **words)}

    def complete_multipart_upload(self, MultipartUpload, **_):
        assert all(s3.sha256(self.parts[p["PartNumber"]]) == p["ChecksumSHA256"] for p in MultipartUpload["Parts"])
        sent = super().complete_multipart_upload(MultipartUpload)
        return sent if not self.together else {"ETag": self.together}

    def get_object(self, **_):
        self.read_back += 1
        return {"Body": Body(self.content)}

    def delete_object(self, Key, **_):
        self.deleted.append(Key)


class Body:
    def __init__(self, content: bytes):
        self.content = content

    def iter_chunks(self, size: int):
        yield self.content


@pytest.mark.parametrize(
    ("client", "expected"),
    [(Checking(), True), (Checking(echoes=False), False), (Checking(checks=False), False)],
    ids=["checks", "says nothing", "takes anything"],
)
def test_a_server_is_believed_once_it_has_refused_a_wrong_checksum(client, expected, monkeypatch):
    store = bucket_with(client, monkeypatch)
    assert store.checks() is expected
    assert client.deleted and all(key.startswith(stores.PROBES) for key in client.deleted)


def test_a_checksum_that_the_owner_has_set_is_left_alone(monkeypatch):
    store = bucket_with(Checking(), monkeypatch)
    store.extra = {"ChecksumAlgorithm": "CRC32"}
    assert store.checks() is False


@pytest.mark.parametrize("size", [300, 40_500])
@pytest.mark.parametrize("doubt", ["none", "no checksum comes back", "an ETag that says nothing"])
def test_what_a_checking_server_took_is_not_read_back_unless_there_is_doubt(size, doubt, monkeypatch):
    client = Checking(together='"opaque"' if doubt.startswith("an ETag") else "")
    store = bucket_with(client, monkeypatch)
    assert store.checks()
    client.echoes = doubt != "no checksum comes back"
    data = os.urandom(size)
    assert store.write("x.bin", size, [data]).size == size and client.content == data
    doubtful = doubt == "no checksum comes back" or (doubt != "none" and size > 1000)
    assert client.read_back == doubtful
    if doubtful:
        monkeypatch.setattr(client, "get_object", lambda **_: {"Body": Body(data[:-1] + bytes([data[-1] ^ 1]))})
        with pytest.raises(StackError, match="gave back other bytes"):
            store.write("x.bin", size, [data])


def test_another_checksum_than_ours_is_an_error(monkeypatch):
    client = Checking()
    store = bucket_with(client, monkeypatch)
    assert store.checks()
    monkeypatch.setattr(client, "_compared", lambda Body, ChecksumSHA256: {"ChecksumSHA256": s3.sha256(b"other")})
    with pytest.raises(StackError, match="stored other bytes than were sent"):
        store.write("x.bin", 3, [b"abc"])
