"""The services outside the stacks: tests run two at a time, so two of each fit on one machine."""

import time

import outside
import pytest
from stacks import run


def running() -> set[str]:
    """Return the ids of the services that this process has started and that run."""
    return set(run("docker", "ps", "--quiet", "--filter", f"label={outside.OWNER}").stdout.split())


SERVICES = [start for start in outside.FOR.values() if start is not outside.certificate_files]  # those are files only


@pytest.mark.parametrize("start", SERVICES, ids=lambda start: start.__name__)
def test_two_of_a_kind(start: outside.Start) -> None:
    """A server that wants a fixed port beside its own dies when a second one starts, after it has answered."""
    before = running()
    with start(), start():
        mine = running() - before
        time.sleep(3)
        assert len(mine) >= 2 and mine <= running()
