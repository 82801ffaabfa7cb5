"""Workers and connections."""

import contextlib
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


def test_servers_share_the_cpus():
    assert [sizing.share(Machine(5, 1 << 30), servers).cpus for servers in (1, 2, 4, 9)] == [5, 3, 2, 1]
    assert sizing.share(Machine(5, 1 << 30), 2).memory == 1 << 30


def test_pools_of_several_servers():
    """There is room for one server more while they are replaced, as long as each pool still has enough."""
    assert sizing.processes(130, workers=2, engines=2, servers=1, at_once=2) == 4
    assert sizing.processes(50, workers=4, engines=3, servers=1, at_once=2) == 4, "a few are better than none"
    assert sizing.processes(500, workers=4, engines=2, servers=3, at_once=4) == 16
    for limit, workers, servers in itertools.product(range(20, 501, 7), range(1, 5), range(1, 6)):
        with contextlib.suppress(StackError):
            size, overflow = sizing.pool(limit, sizing.processes(limit, workers, 2, servers, servers + 1), 2)
            assert servers * workers * 2 * (size + overflow) <= limit - sizing.RESERVED_CONNECTIONS
