"""Workers and connections."""

import itertools

import pytest
from stackops import sizing
from stackops.errors import StackError
from stackops.sizing import Machine


@pytest.mark.parametrize(
    ("wanted", "cpus", "memory", "limit", "expected"),
    [
        (None, 1, None, 99, 1),
        (None, 2, None, 99, 2),
        (None, 64, None, 99, 4),
        (None, 8, None, 1, 1),
        (None, 8, None, 0, 1),
        (None, 8, 1 << 30, 99, 3),
        (None, 8, 512 << 20, 99, 1),
        ("", 3, None, 99, 3),
        ("7", 2, 1 << 30, 1, 7),
    ],
)
def test_workers(wanted, cpus, memory, limit, expected):
    assert sizing.workers(wanted, Machine(cpus, memory), limit) == expected


@pytest.mark.parametrize("wanted", ["0", "-1", "two", "1.5"])
def test_workers_that_are_no_number(wanted):
    with pytest.raises(StackError, match="MLFLOW_WORKERS"):
        sizing.workers(wanted, Machine(2), 99)


def test_pools_never_exceed_the_database():
    fitted = refused = 0
    for limit, workers, engines in itertools.product(range(1, 501, 7), range(1, 17), (2, 3)):
        try:
            size, overflow = sizing.pool(limit, workers, engines)
        except StackError:
            refused += 1
            assert workers * engines * 2 > limit - sizing.RESERVED_CONNECTIONS
            continue
        fitted += 1
        assert size >= 1 and overflow >= 1
        assert size <= sizing.MAX_POOL and overflow <= sizing.MAX_OVERFLOW
        assert workers * engines * (size + overflow) <= limit - sizing.RESERVED_CONNECTIONS
    assert fitted > 500 and refused > 100


def test_machine_reads_the_cgroup(tmp_path):
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("1073741824\n")
    assert sizing.machine(tmp_path) == Machine(1, 1 << 30)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    free = sizing.machine(tmp_path)
    assert free.cpus >= 1 and free.memory is None
    assert sizing.machine(tmp_path / "none").memory is None
