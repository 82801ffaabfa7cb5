"""One at a time: whatever saves, loads or moves what the stack holds.

The lock is a file in the volume that all containers of the stack share, and the kernel gives it back when
its holder dies, however it dies.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stackops.errors import StackError

NAME = ".stackops.lock"


@contextmanager
def alone(what: str) -> Iterator[None]:
    """Hold the lock for `what`. Raises StackError that names who holds it."""
    path = Path(os.environ.get("TMPDIR") or "/var/tmp", NAME)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise StackError(
                f"{file.read().strip() or 'something else'} is at work: wait until it has ended"
            ) from None
        file.truncate(0)
        file.write(f"{what}\n")
        file.flush()
        yield
        file.truncate(0)
