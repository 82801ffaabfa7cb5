"""Streaming through the relay: parts, the order of what is written, and what is left when it breaks off."""

import asyncio
import os
import tempfile
import threading

import pytest

pytest.importorskip("mlflow")

from mlflow.exceptions import MlflowException  # noqa: E402
from stackops.stores import relay  # noqa: E402


class Recorder:
    """A store's Writer that keeps what it is given."""

    def __init__(self, fails_at: int = -1):
        self.parts, self.object, self.aborted, self.fails_at, self.busy = [], None, False, fails_at, threading.Lock()

    def whole(self, body):
        self.object = body.read()

    def part(self, body):
        assert self.busy.acquire(blocking=False), "two parts at once"
        if len(self.parts) == self.fails_at:
            self.busy.release()
            raise OSError("the store is full")
        self.parts.append(body.read())
        self.busy.release()

    def finish(self):
        self.object = b"".join(self.parts)

    def abort(self):
        self.aborted = True


async def stream(data: bytes, step: int, breaks_at: int | None = None):
    for start in range(0, len(data), step):
        if breaks_at is not None and start >= breaks_at:
            raise ConnectionError("the client went away")
        yield data[start : start + step]


@pytest.fixture
def small(monkeypatch):
    """Small parts, so that the tests need few bytes; in the end every temporary file is closed."""
    made, real = [], tempfile.SpooledTemporaryFile
    monkeypatch.setattr(relay, "MEMORY", 1000)
    monkeypatch.setattr(relay, "PART", 10_000)
    monkeypatch.setattr(relay.tempfile, "SpooledTemporaryFile", lambda size: made.append(real(size)) or made[-1])
    yield
    assert made and all(file.closed for file in made)


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 9_999, 10_000, 10_001, 19_999, 20_000, 20_001, 95_000])
@pytest.mark.parametrize("step", [1, 700, 64_000])
def test_every_byte_arrives_in_order(small, size, step):
    if step == 1 and size > 20_001:
        step = 7
    data, writer = os.urandom(size), Recorder()
    asyncio.run(relay.send(stream(data, step), writer))
    assert writer.object == data and not writer.aborted
    assert all(len(part) >= 10_000 for part in writer.parts[:-1]), "only the last part may be small"


def test_parts_grow_so_that_ten_thousand_are_enough(monkeypatch):
    monkeypatch.setattr(relay, "MEMORY", 1)
    monkeypatch.setattr(relay, "PART", 2)

    async def sizes():
        found = []
        async for part in relay.parts(stream(bytes(8000), 1)):
            with part:
                found.append(len(part.read()))
        return found

    found = asyncio.run(sizes())
    assert found[0] == found[999] == 2 and found[1000] == 4 and sum(found) == 8000


@pytest.mark.parametrize("breaks_at", [0, 15_000, 35_000, 90_000])
def test_a_client_that_goes_away_leaves_no_object(small, breaks_at):
    writer = Recorder()
    with pytest.raises(ConnectionError):
        asyncio.run(relay.send(stream(os.urandom(95_000), 700, breaks_at), writer))
    assert writer.object is None and writer.aborted


@pytest.mark.parametrize("fails_at", [0, 3, 8])
def test_a_store_that_fails_leaves_no_object(small, fails_at):
    writer = Recorder(fails_at)
    with pytest.raises(OSError, match="full"):
        asyncio.run(relay.send(stream(os.urandom(95_000), 700), writer))
    assert writer.object is None and writer.aborted


class Module:
    """A store module that has one object."""

    Writer = None

    @staticmethod
    def read(uri, chunk):
        if uri == "s3://bucket/1/a.txt":
            return 5, iter([b"hello"])
        raise KeyError(uri)

    @staticmethod
    def missing(error):
        return isinstance(error, KeyError) and "missing" in str(error)


def test_read_names_a_missing_artifact(monkeypatch):
    monkeypatch.setenv("ARTIFACT_URI", "s3://bucket")
    monkeypatch.setattr(relay.settings, "store", lambda env: Module)
    repository = relay.RelayArtifactRepository("relay:s3://bucket")
    size, pieces = repository.read("1/a.txt")
    assert (size, list(pieces)) == (5, [b"hello"])
    with pytest.raises(MlflowException, match="No such artifact: '1/missing'") as caught:
        repository.read("1/missing")
    assert caught.value.get_http_status_code() == 404
    with pytest.raises(KeyError):
        repository.read("1/other")
