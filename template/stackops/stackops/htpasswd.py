"""The list of users of this stack, in the format of htpasswd: one NAME:HASH a line.

The hash is SHA-512 crypt ($6$) with 5000 rounds. $5$ and $apr1$, which other tools write, are understood too.

The server has the file mounted. A mount keeps the file that was there at the start, so the list is changed in
place, never by a new file of the same name: what is written takes effect at the next request. A lock keeps
readers away meanwhile.

As a command: lets the admin have the password of the secret admin_password.
"""

import argparse
import fcntl
import functools
import os
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path

from stackops import settings
from stackops.errors import StackError
from stackops.settings import ADMIN

HELP = "let the admin have the password of the secret admin_password"
SECRET = "htpasswd"
LIST = "/run/users/htpasswd"
"""Where the one container that may write has it: see the service `users` in compose.yaml."""
ROUNDS = 5000
KINDS = ("sha512_crypt", "sha256_crypt", "apr_md5_crypt")


@functools.cache
def context():
    """Return what makes and checks hashes."""
    from passlib.context import CryptContext

    return CryptContext(schemes=list(KINDS), default=KINDS[0], sha512_crypt__default_rounds=ROUNDS)


def make(password: str) -> str:
    """Return a new hash of a password."""
    return context().hash(password)


def verify(password: bytes, kept: str) -> bool:
    """Return whether this is the password of a hash; takes some milliseconds."""
    try:
        return context().verify(password, kept)
    except (ValueError, TypeError):  # a byte that crypt cannot take, or a broken line
        return False


@functools.cache
def nobody() -> str:
    """Return the hash that is checked for a name that is not in the list: it costs the same as a real one."""
    return make(os.urandom(16).hex())


def parse(text: str) -> dict[str, str]:
    """Return name -> hash. As with other servers, the first line of a name counts."""
    users: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, kept = line.strip().partition(":")
        if colon and name and not name.startswith("#"):
            users.setdefault(name, kept.partition(":")[0])
    return users


def changed(text: str, name: str, kept: str | None) -> str:
    """Return the list with a new hash for a name, new names at its end, or without it."""
    lines, mine = [], f"{name}:{kept}" if kept else None
    for line in text.splitlines():
        if line.strip().partition(":")[0] != name:
            lines.append(line)
        elif mine:
            lines.append(mine)
            mine = None
    return "".join(f"{line}\n" for line in [*lines, *([mine] if mine else [])])


def state(path: Path) -> tuple[int, ...]:
    """Return what differs when the list has changed. Raises OSError."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size, found.st_nlink


def replaced(path: Path) -> bool:
    """Return whether the mounted list has lost its name to another file, by hand. Raises OSError."""
    return path.stat().st_nlink == 0


def read(path: Path) -> str:
    """Return the text of the list, when nobody is writing it. Raises OSError or UnicodeDecodeError."""
    with path.open(encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        return file.read()


@contextmanager
def locked(path: Path):
    """Lock the list; yields a function that writes a new text in place."""
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        def write(text: str) -> None:
            new = text.encode()
            # Over the old text, filled up with empty lines, then cut: broken off in between, no user is lost.
            old = os.fstat(file.fileno()).st_size
            os.pwrite(file.fileno(), new.ljust(old, b"\n"), 0)
            os.fsync(file.fileno())
            os.ftruncate(file.fileno(), len(new))
            os.fsync(file.fileno())

        yield write


class Users:
    """The users in the file."""

    def __init__(self, path: Path):
        self.path = path

    def names(self) -> list[tuple[str, str]]:
        """Return (name, what is to be said of it)."""
        with self._sentence():
            return [(name, "") for name in parse(read(self.path))]

    def add(self, name: str, password: str) -> None:
        """Add a user. Raises StackError if the name is taken."""
        self._change(name, make(password), lambda there: not there, f"there is a user {name} already")

    def password(self, name: str, password: str) -> None:
        """Change a user's password. Raises StackError if there is no such user."""
        self._change(name, make(password), lambda there: there, f"there is no user {name}")

    def remove(self, name: str) -> None:
        """Remove a user. Raises StackError if there is no such user."""
        self._change(name, None, lambda there: there, f"there is no user {name}")

    def ensure(self, name: str, password: str) -> bool:
        """Let a user have this password, new or not; return whether that changed anything."""
        with self._sentence():
            kept = parse(read(self.path)).get(name)
        if kept and verify(password.encode(), kept):
            return False
        self._change(name, make(password), lambda there: True, "")
        return True

    def _change(self, name: str, kept: str | None, allowed: Callable[[bool], bool], otherwise: str) -> None:
        with self._sentence(), locked(self.path) as write:
            text = self.path.read_text(encoding="utf-8")
            if not allowed(name in parse(text)):
                raise StackError(otherwise)
            write(changed(text, name, kept))

    @contextmanager
    def _sentence(self):
        try:
            yield
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise StackError(f"secrets/{SECRET} cannot be used ({reason}): run make init") from None


def users(env: Mapping[str, str]) -> Users:
    """Return the users of this stack."""
    path = Path(LIST)
    return Users(path if path.exists() else settings.secrets(env).path(SECRET))


def arguments(parser: argparse.ArgumentParser) -> None:
    """This command has no options."""


def run(args: argparse.Namespace) -> None:
    """Do it; says something only if the list had to be changed. Raises StackError."""
    password = settings.secrets(os.environ).need("admin_password")
    if users(os.environ).ensure(ADMIN, password):
        print(f"users: the password of {ADMIN} is now the secret's")
