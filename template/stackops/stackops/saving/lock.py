"""One at a time: whatever saves, loads or moves what the stack holds.

The lock is a file in the volume that all containers of the stack share, and the kernel gives it back when
its holder dies, however it dies.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stackops.errors import StackError

NAME = ".stackops.lock"


@contextmanager
def alone(what: str) -> Iterator[None]:
    """Hold the lock for `what`. Raises StackError that names who holds it."""
    path = Path(os.environ.get("TMPDIR") or "/var/tmp", NAME)
    with open(path, "ab+", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode(errors="replace").strip()
            raise StackError(f"{holder or 'something else'} is at work: wait until it has ended") from None
        file.truncate(0)
        with suppress(OSError):  # who makes room on a full disk needs the lock too, if not the name in it
            file.write(f"{what}\n".encode())
        yield
        file.truncate(0)
