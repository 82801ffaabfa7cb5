"""A folder. Objects are written beside their place and renamed, so that nobody ever sees half a file."""

import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from stackops.errors import StackError

from artifacts_move.stores import PART, PROBES, Item

WORK = ".artifacts-move"


class Store:
    """See stores.py. Of a tree that MLflow wrote without a server (./mlruns) only the artifacts count."""

    def __init__(self, uri: str, known_as: str, secrets: str, env: Mapping[str, str]):
        self.root, self.uri, self.where = Path(uri), known_as, f"folder {known_as}"

    def items(self) -> Iterator[Item]:
        """Raises StackError for a link, a device, or a name that is not UTF-8: it cannot be copied faithfully."""
        if not self.root.is_dir():
            return
        tree = any(self.root.glob("*/meta.yaml"))
        for folder, _, files in os.walk(self.root, onerror=self._unreadable):
            inside = Path(folder).relative_to(self.root)
            if inside.parts[:1] in ((WORK,), (PROBES.rstrip("/"),)):
                continue
            if tree and "artifacts" not in inside.parts:
                continue
            for file in files:
                path = Path(folder, file)
                if path.is_symlink() or not path.is_file():
                    raise StackError(f"{path} is no plain file; replace it by a copy, or delete it")
                try:
                    (name := (inside / file).as_posix()).encode()
                except UnicodeEncodeError:
                    raise StackError(f"the name of {os.fsencode(path)!r} is not UTF-8; rename it") from None
                yield self.stat(name)

    def _unreadable(self, error: OSError) -> None:
        raise StackError(
            f"{error.filename} cannot be read ({error.strerror}); let user {os.getuid()} in, which the stack runs as"
        )

    def stat(self, name: str) -> Item:
        status = (self.root / name).stat()
        return Item(name, status.st_size, f"{status.st_mtime_ns}:{status.st_ino}")

    def read(self, name: str) -> Iterator[bytes]:
        with open(self.root / name, "rb") as file:
            while piece := file.read(PART):  # whole parts: nobody has to join them
                yield piece

    def write(self, name: str, size: int, pieces: Iterable[bytes]) -> Item:
        work, path = self.root / WORK, self.root / name
        work.mkdir(parents=True, exist_ok=True)
        part = work / str(threading.get_ident())
        with open(part, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        path.parent.mkdir(parents=True, exist_ok=True)
        part.replace(path)
        return self.stat(name)

    def folders(self) -> list[str]:
        return [entry.name for entry in os.scandir(self.root) if entry.is_dir()] if self.root.is_dir() else []

    def delete(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def tidy(self) -> None:
        shutil.rmtree(self.root / WORK, ignore_errors=True)

    def checks(self) -> bool:
        return False

    def vouches(self, size: int) -> str:
        return ""
