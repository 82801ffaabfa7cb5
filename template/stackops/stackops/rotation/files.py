"""The files of a rotation: NAME, beside it .NAME.next (not in force yet) and .NAME.old (not done with yet).

Each step is one rename, so a crash leaves no half-written file and never no file.
"""

import os
import secrets as tokens
import string
from pathlib import Path

from stackops.errors import StackError
from stackops.settings import Secrets, write_private

ALPHABET = string.ascii_letters + string.digits


def random(length: int = 40) -> str:
    """Return random letters and digits, 5.95 bits each."""
    return "".join(tokens.choice(ALPHABET) for _ in range(length))


class Files:
    """The folder of secrets, writable."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.secrets = Secrets(folder)

    def next(self, name: str) -> Path:
        """Return where the proposal is."""
        return self.folder / f".{name}.next"

    def old(self, name: str) -> Path:
        """Return where the replaced one is kept."""
        return self.folder / f".{name}.old"

    def text(self, name: str) -> str:
        """Return what is in force."""
        return self.secrets.read(name)

    def coming(self, name: str) -> str:
        """Return the proposal, or what is in force where there is none."""
        return self.secrets.read(f".{name}.next") or self.text(name)

    def before(self, name: str) -> str:
        """Return what was in force before, or what is in force if nothing was replaced."""
        return self.secrets.read(f".{name}.old") or self.text(name)

    def begun(self, names: list[str]) -> tuple[list[str], list[str]]:
        """Return which secrets have a proposal, and which were replaced without a proof."""
        return [n for n in names if self.next(n).exists()], [n for n in names if self.old(n).exists()]

    def propose(self, name: str, text: str) -> None:
        """Write a proposal, whole or not at all."""
        if not text.strip():
            raise StackError(f"the new {name} is empty; nothing was changed")
        write_private({str(self.next(name)): text})

    def replace(self, name: str) -> None:
        """Put the proposal into force and keep the one before. Does nothing where there is no proposal."""
        if not self.next(name).exists():
            return
        self.old(name).unlink(missing_ok=True)  # after a crash below it is a second name of the same file
        os.link(self.folder / name, self.old(name))
        os.replace(self.next(name), self.folder / name)
        self._settle()

    def put_back(self, name: str) -> None:
        """Put the one before into force again, where it is kept."""
        self.next(name).unlink(missing_ok=True)
        if self.old(name).exists():
            os.replace(self.old(name), self.folder / name)
        self._settle()

    def forget(self, name: str) -> None:
        """Delete the one before."""
        self.old(name).unlink(missing_ok=True)
        self._settle()

    def _settle(self) -> None:
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
