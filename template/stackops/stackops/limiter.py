"""How often a password may be tried from one address.

Each address has a bucket: a failed login puts one drop in, and every PAUSE seconds one leaks out. With BURST
drops in it, nothing more is checked until one has leaked. Whoever has once logged in from an address has a
bucket of their own there, so the failures of others never slow them, not even behind a shared address.

Each server process counts for itself: with N of them, over all servers, an address has N times as many tries.
"""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

BURST = 10
PAUSE = 15.0
MOST = 10_000
"""Entries of each kind that are remembered; the one unused for longest goes first."""


def network(address: str) -> str:
    """Return what counts as one address: of IPv6 the /64, since one machine may have a whole one."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        if mapped := ip.ipv4_mapped:
            return str(mapped)
        return str(ipaddress.ip_network((int(ip), 64), strict=False))
    return str(ip)


class Limiter:
    """Counts failures in memory; not safe for threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = MOST):
        self.clock, self.most = clock, most
        self.known: OrderedDict[tuple[str, Hashable], None] = OrderedDict()
        self.buckets: OrderedDict[tuple[str, Hashable], tuple[float, float]] = OrderedDict()

    def bucket(self, address: str, name: Hashable) -> tuple[str, Hashable]:
        """Return whose failures count: the pair's if it has logged in before, else the address's."""
        pair = (network(address), name)
        return pair if pair in self.known else (pair[0], None)

    def wait(self, address: str, name: Hashable) -> float:
        """Return for how many seconds nothing is checked; 0 if a try is allowed now."""
        return max(0.0, self._level(self.bucket(address, name)) - (BURST - 1) * PAUSE)

    def failed(self, address: str, name: Hashable) -> tuple[str, Hashable]:
        """Count a failed login; return the bucket that has it."""
        bucket = self.bucket(address, name)
        remember(self.buckets, bucket, (self._level(bucket) + PAUSE, self.clock()), self.most)
        return bucket

    def forgive(self, bucket: tuple[str, Hashable]) -> None:
        """Take back a failure that was counted before the login had been checked, and was right."""
        remember(self.buckets, bucket, (max(0.0, self._level(bucket) - PAUSE), self.clock()), self.most)

    def passed(self, address: str, name: Hashable) -> None:
        """Remember that this user got in from there. Failures stay: a login buys no guesses."""
        remember(self.known, (network(address), name), None, self.most)

    def _level(self, bucket: tuple[str, Hashable]) -> float:
        """Return in how many seconds the bucket will be empty."""
        level, since = self.buckets.get(bucket, (0.0, 0.0))
        return max(0.0, level - (self.clock() - since))


class Proven:
    """Logins that were right not long ago, as digests; each use begins their time anew.

    Not safe for threads.
    """

    def __init__(self, seconds: float = 600.0, clock: Callable[[], float] = time.monotonic, most: int = MOST):
        self.seconds, self.clock, self.most = seconds, clock, most
        self.until: OrderedDict[Hashable, float] = OrderedDict()

    def add(self, digest: Hashable) -> None:
        """Remember a login that was right."""
        remember(self.until, digest, self.clock() + self.seconds, self.most)

    def __contains__(self, digest: Hashable) -> bool:
        if self.until.get(digest, 0.0) <= self.clock():
            return False
        self.add(digest)
        return True

    def clear(self) -> None:
        """Forget them all."""
        self.until.clear()


def remember(kept: OrderedDict, key: Hashable, value: object, most: int) -> None:
    """Put an entry into `kept`; of more than `most`, the one unused for longest goes."""
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > most:
        kept.popitem(last=False)
