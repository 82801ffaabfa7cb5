"""`stackops size`: counts, growth and advice."""

import io
import time
from types import SimpleNamespace

import pytest
from stackops import size, sizing
from stackops.errors import StackError
from stackops.size import Advice, Disk, Measure, Use

NOW = time.time()
DAY = 86400


@pytest.mark.parametrize(
    ("value", "now", "fits"),
    [
        ("2048m", "2g", True),
        ("2048m", "1900m", True),
        ("2048m", "1g", False),
        ("2048m", "4g", False),
        ("256MB", "256MB", True),
        ("1536MiB", "1500MiB", True),
        ("130", "100", False),
        ("2", "2", True),
        ("2", "", False),
        ("2", "many", False),
    ],
)
def test_what_fits(value, now, fits):
    assert size.fits(Advice("KEY", value, now, "why")) == fits


def test_the_block_can_be_pasted():
    text = size.block([Advice("A", "1", "2", "Because."), Advice("B", "1", "1", "No.")])
    assert text.splitlines() == ["# For .env; then 'make up'.", "# Now 2. Because.", "A=1"]
    assert size.block([Advice("B", "1", "1", "No.")]) == "The settings in .env fit this machine."


def test_advice_is_read():
    assert size.parse(["A=1\t\twhy\n", "B=x=y\t2\tw\n"]) == [Advice("A", "1", "", "why"), Advice("B", "x=y", "2", "w")]
    with pytest.raises(StackError, match="is no advice"):
        size.parse(["A=1\n"])


@pytest.mark.parametrize(
    ("rows", "new", "expected"),
    [
        ({}, {}, 0),
        ({"runs": 10, "metrics": 90}, {"runs": 5, "trace_info": 0}, 50),
        ({"runs": 10, "metrics": 40, "trace_info": 50}, {"runs": 5, "trace_info": 50}, 75),
        ({"trace_info": 100}, {"runs": 0, "trace_info": 0}, 0),
    ],
)
def test_growth(rows, new, expected):
    """1000 bytes and 10 days: each row counts the same, and grows as the runs or traces do."""
    assert size.growth(1000, rows, new, 10.0) == pytest.approx(expected)


def test_days():
    assert size.span(NOW, NOW) == 1 and size.span(NOW - 10 * DAY, NOW) == 10 and size.span(0, NOW) == 30
    assert size.duration(size.days_left(100, 0)) == "lasts for more than ten years at this pace"
    assert size.duration(size.days_left(1000, 10)) == "full in about 100 days at this pace"
    assert size.duration(size.days_left(1, 10)) == "full today at this pace"


def test_the_look_through_the_store_ends():
    files = [("a", 100, NOW - 40 * DAY), ("b", 50, NOW - 3 * DAY), ("c", 10, NOW)]
    assert size.measure_artifacts(files, NOW, time.monotonic) == Measure(160, 2.0)
    assert size.measure_artifacts([], NOW, time.monotonic) == Measure(0, 0.0)
    clock = iter((0.0, 10.0, 31.0))
    endless = (("x", 1, NOW) for _ in iter(int, 1))
    found = size.measure_artifacts(endless, NOW, lambda: next(clock))
    assert found.bytes == 2000 and not found.whole and size.told(found).startswith("at least 2.0 KiB, about")


@pytest.mark.parametrize(
    ("workers", "engines", "limit", "expected"), [(2, 2, 500, 70), (4, 3, 100, 80), (4, 3, 30, 34), (1, 2, 50, 30)]
)
def test_connections_at_a_database_elsewhere(workers, engines, limit, expected):
    value = sizing.connections(workers, engines, limit)
    assert value == expected
    sizing.pool(value, workers, engines)


def test_disks():
    """What is on one disk grows together; what is on two has a number of days each."""
    growths = {"database": 1 << 30, "artifacts": 3 << 30}
    one, other = Disk(1, 40 << 30, 100 << 30), Disk(2, 30 << 30, 50 << 30)
    (both,) = size.uses({"database": one, "artifacts": one}, growths)
    assert (both.of, both.lasts) == ("the database and the artifacts", 10)
    assert size.machine(2, 8 << 30, [both]).endswith("8.0 GiB of memory, 40.0 GiB of the disk free")
    assert size.prospects([both]) == ["full in about 10 days at this pace"]

    apart = size.uses({"database": one, "artifacts": other}, growths)
    assert size.machine(2, 8 << 30, apart).endswith("8.0 GiB of memory")
    assert size.prospects(apart) == [
        "of the database: 40.0 GiB free, full in about 40 days at this pace",
        "of the artifacts: 30.0 GiB free, full in about 10 days at this pace",
    ]
    (alone,) = size.uses({"database": None, "artifacts": other}, growths)
    assert size.prospects([alone]) == ["full in about 10 days at this pace"]
    assert size.prospects(size.uses({"database": one, "artifacts": None}, {**growths, "database": 0})) == [
        "nothing grows on it"
    ]
    assert size.prospects(size.uses({"database": None, "artifacts": None}, growths)) == [
        "nothing that grows is on one of this machine"
    ]


def test_a_disk_is_read():
    assert size.disk_given("65024 4096 10 100\n") == Disk(65024, 40960, 409600)
    with pytest.raises(ValueError):
        size.disk_given("")


def test_warnings():
    def warned(rows, free, growth):
        used = [Use(Disk(1, 90, 100), "the database", 0.0), Use(Disk(2, free, 100), "the artifacts", growth)]
        return size.warnings({"STACK_BACKEND": "sqlite"}, {"metrics": rows}, used)

    assert warned(10, 90, 0.5) == []
    assert "SQLite holds 6,000,000" in warned(6_000_000, 90, 0.0)[0]
    for free, growth in ((5, 0.0), (90, 9.0)):
        (said,) = warned(0, free, growth)
        assert said.startswith("The disk of the artifacts: 'make gc'")


@pytest.fixture
def stack(tmp_path, monkeypatch):
    """A stack with SQLite and a folder: 3 runs with a metric each, one of them old."""
    from mlflow.entities import Metric
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    root = tmp_path / "artifacts"
    root.mkdir()
    store = SqlAlchemyStore(f"sqlite:///{tmp_path}/mlflow.db", "mlflow-artifacts:/")
    for started in (NOW - 90 * DAY, NOW - DAY, NOW):
        run = store.create_run("0", "u", int(started * 1000), [], "r").info
        store.log_metric(run.run_id, Metric("m", 1.0, 1, 1))
    (root / "file").write_bytes(b"x" * 5000)
    env = {"STACK_BACKEND": "sqlite", "STACK_STORE": "local", "DATA_DIR": str(tmp_path), "ARTIFACT_URI": str(root)}
    env |= {"MLFLOW_WORKERS": "1"}
    monkeypatch.setattr(size.settings, "adopt", lambda: env)
    monkeypatch.setattr(size.sys, "stdin", io.StringIO("MLFLOW_MEMORY=2048m\t1g\tRoom.\n"))
    return env


def test_all_of_it(stack, capsys):
    disk = Disk(1, 80 << 30, 100 << 30)
    size.run(SimpleNamespace(cpus=2, memory=8 << 30, database_disk=disk, artifacts_disk=disk))
    said = capsys.readouterr().out
    assert "machine    2 CPUs, 8.0 GiB of memory, 80.0 GiB of the disk free\n" in said
    assert "1 experiments, 3 runs, 3 metric points, 0 logged models" in said
    assert "artifacts  4.9 KiB, about 4.9 KiB more a day\n" in said
    assert "disk       lasts for more than ten years at this pace\n" in said
    assert "server     1 workers\n" in said
    assert said.endswith("# For .env; then 'make up'.\n# Now 1g. Room.\nMLFLOW_MEMORY=2048m\n")
    rows, database = size.measure_database(stack, NOW)
    assert rows["runs"] == 3 and database.growth == pytest.approx(database.bytes * 2 / 3 / 30)
