"""`stackops bench`: what the figures mean, and what is looked at before."""

import json
import re
import threading
import time
from types import SimpleNamespace

import pytest
from stackops import bench
from stackops.benching import around, load
from stackops.benching.advice import Facts, Figure, advise, milliseconds
from stackops.errors import StackError
from stackops.saving import lock

GOOD = Facts(workers=2, fitting=2, cpus=2, sync=0.0004, round=0.0003)
RATES = {"create run": 90, "log_batch": 60, "log_metric": 120, "search by metric": 25, "artifacts up": 80}


def figures(busy: float = 0.6, p95: float = 0.05, **rates: float) -> list[Figure]:
    """Return a good measurement, but for what is given (with '_' for blanks)."""
    rates = RATES | {name.replace("log_", "log-").replace("_", " ").replace("-", "_"): v for name, v in rates.items()}
    return [Figure(name, rate, "/s", 0.03, p95, 100, busy) for name, rate in rates.items()]


def said(found: list[Figure], facts: Facts = GOOD, **more: float) -> list[str]:
    """Return the advice but for the sentence about batches, which comes last."""
    sentences = advise(found, facts, **more)
    assert "values at once" in sentences[-1]
    return sentences[:-1]


def changed(**facts: object) -> Facts:
    return Facts(**{**vars(GOOD), **facts})


def test_nothing_to_say():
    assert said(figures()) == ["Nothing holds this stack up: the settings fit the machine."]
    assert advise(figures(), GOOD)[-1].endswith("write 3,000 values a second, one by one 120.")
    assert advise([], GOOD) == ["Nothing holds this stack up: the settings fit the machine."]


@pytest.mark.parametrize(
    ("found", "facts", "more", "words"),
    [
        (figures(), changed(workers=1), {}, "1 worker and 2 fit this machine: 'make size'"),
        (figures(), changed(workers=4), {}, "4 workers and 2 fit this machine: more only take memory"),
        (figures(), changed(sync=0.012), {}, "disk takes 12 ms until it has what was written"),
        (figures(), changed(round=0.02, database_here=False), {}, "takes 20 ms, .*: it is far away"),
        (figures(), changed(round=0.02), {}, "takes 20 ms, .*: the machine has too much to do"),
        (figures(artifacts_up=9), GOOD, {}, "can take 9 MiB/s, which is little: look at its disk"),
        (figures(artifacts_up=9, busy=0.97), GOOD, {"before": 0.6}, "9 MiB/s, .* the processors are the reason"),
        (figures(busy=0.97), changed(cpus=4), {}, r"The 4 processors here were busy \(97%\): more speed takes more\.$"),
        (figures(busy=0.97), GOOD, {"client": 0.45}, "This client took 45% of one"),
        (figures(), GOOD, {"before": 0.8}, r"Something else kept the processors busy \(80% before"),
        (figures(log_metric=15, log_batch=20), GOOD, {}, "^15 writes a second are few"),
        (figures(p95=0.9), GOOD, {}, "mostly takes 30 ms, but one in twenty 900 ms or more"),
    ],
)
def test_one_thing_to_say(found, facts, more, words):
    sentences = said(found, facts, **more)
    assert any(re.search(words, one) for one in sentences), sentences
    assert not any("Nothing holds" in one for one in sentences)


def test_what_does_not_matter_is_not_said():
    # Where there can be one writer only, more workers fit nowhere; a disk that the database is not on; a busy machine
    # whose own work it is not.
    assert said(figures(), changed(workers=1, one_writer=True))[0].startswith("Nothing holds")
    assert said(figures(), changed(sync=0.03, database_here=False))[0].startswith("Nothing holds")
    assert not any("more speed" in one for one in said(figures(busy=0.99), before=0.9))
    through = said(figures(busy=0.97), changed(through=True))
    assert "artifact_access=direct" in through[0] and len(through) == 2
    assert not any("artifact_access" in one for one in said(figures(busy=0.5), changed(through=True)))
    # A slow disk is reason enough for slow writes and uploads.
    slow = said(figures(log_metric=15, log_batch=20, artifacts_up=5), changed(sync=0.03))
    assert len(slow) == 2 and "the disk is slow, see above" in slow[1]


def test_times():
    assert [milliseconds(t) for t in (0.0002, 0.0081, 0.12, 1.5)] == ["0.20 ms", "8.1 ms", "120 ms", "1,500 ms"]
    assert load.middle([]) == (0, 0) and load.middle([2.0]) == (2, 2)
    half, most = load.middle([float(n) for n in range(1, 102)])
    assert (half, most) == (51, pytest.approx(96))
    assert load.busy((10, 90), (40, 160)) == pytest.approx(0.3)
    assert load.busy(None, (1, 1)) is None and load.busy((1, 1), (1, 1)) is None


@pytest.mark.parametrize("text", ["4", "101", "-5", "1.5", "ten", ""])
def test_how_long(text):
    assert bench.seconds("5") == 5 and bench.seconds("100") == 100
    with pytest.raises(StackError, match=f"FOR is '{text}'; use a whole number from 5 to 100"):
        bench.seconds(text)


def measuring(tmp_path, client: object, seconds: float = 60) -> load.Measuring:
    return load.Measuring(client, "1", seconds, tmp_path)


def test_a_part_ends_with_its_limit_or_its_time(tmp_path):
    calls = []
    one = measuring(tmp_path, None).part("create run", calls.append, 4, 10, 0)
    assert sorted(calls) == list(range(10)) and one.calls == 10 and one.unit == "/s"
    start = time.monotonic()
    one = measuring(tmp_path, None, 5).part("create run", lambda number: time.sleep(0.05), 2, 10**6, 1 << 20)
    assert 0.5 < time.monotonic() - start < 2 and one.unit == "MiB/s" and 5 < one.calls < 25
    assert one.p50 == pytest.approx(0.05, abs=0.03)


def test_an_error_ends_it_and_names_the_part(tmp_path):
    def broken(number):
        if number == 3:
            raise ValueError("no\nroom")

    one = measuring(tmp_path, None)
    with pytest.raises(StackError, match="^log_batch: no room$"):
        one.part("log_batch", broken, 4, 10**6, 0)
    assert one.stop.is_set()


def test_files_come_back_whole(tmp_path):
    def download_artifacts(run, path, place):
        (whole := tmp_path / "short").write_bytes(b"x")
        return str(whole)

    one = measuring(tmp_path, SimpleNamespace(download_artifacts=download_artifacts))
    one.runs, one.sent = ["run"], 1
    with pytest.raises(StackError, match="1 of 8388608 bytes came back"):
        one.download(0)


def test_a_full_disk_is_refused():
    around.roomy(SimpleNamespace(free=around.ROOM), "/data")
    with pytest.raises(StackError, match="only 1.0 GiB are free where /data is"):
        around.roomy(SimpleNamespace(free=1 << 30), "/data")


def test_it_waits_for_a_backup(tmp_path, monkeypatch):
    """The removal waits, and gives up with a sentence; the look does not wait."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    heard, release = [], threading.Event()

    def backup():
        with lock.alone("make backup"):
            started.set()
            release.wait(30)

    started = threading.Event()
    thread = threading.Thread(target=backup)
    thread.start()
    try:
        assert started.wait(10)
        words = "make backup is at work: .* goes with the next 'make bench'"
        with pytest.raises(StackError, match=words), around.alone(heard.append, patience=0.2, pause=0.1):
            raise AssertionError("it had to wait")
        threading.Timer(0.3, release.set).start()
        with around.alone(heard.append, patience=20, pause=0.1):
            pass
    finally:
        release.set()
        thread.join()
    assert heard == ["bench: make backup is at work: wait until it has ended"] * 2


def test_the_table_is_aligned():
    one = Figure("artifacts down", 1234.5, "MiB/s", 0.25, 1.25, 40, 0.5)
    assert [len(bench.heading()), len(bench.line(one))] == [80, 80]
    assert bench.line(one).split("  ")[-1].strip() == "50%" and "1,234.5 MiB" in bench.line(one)
    text = json.loads(bench.as_json([one], GOOD, 0.4, None, ["Fine."]))
    assert text["figures"][0]["p95"] == 1.25 and text["stack"]["workers"] == 2 and text["advice"] == ["Fine."]
