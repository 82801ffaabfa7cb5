"""Where backups are kept: a folder of this machine, or a prefix of a bucket or container elsewhere.

PLACE/20261125T050000Z/     one backup: the database, the list of its artifacts, manifest.json
PLACE/artifacts/ab/abcd…    the pool: every artifact of all backups once, named after its SHA-256
PLACE/last.json             how the last run ended
"""

import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from stackops.errors import StackError, one_line
from stackops.saving import manifest
from stackops.saving.manifest import File, Manifest

CHUNK = 1 << 20
WORK = ".work"


def digest(path: Path) -> File:
    """Return size and checksum of a file."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return File(path.stat().st_size, found)


def pool_name(sha256: str, age: str) -> str:
    """Return what an artifact is called in the pool. For each public key of age it is there once more."""
    key = hashlib.sha256(age.encode()).hexdigest()[:8]
    return f"{sha256[:2]}/{sha256}{f'.{key}.age' if age else ''}"


class Place:
    """Backups under a URI of `artifacts_move.stores`; `called` is what people call it."""

    def __init__(self, uri: str, called: str, secrets: str, env: Mapping[str, str]):
        """Raises StackError if it is no place, and whatever the store's client raises."""
        try:
            from artifacts_move import stores
        except ImportError:
            raise StackError(
                "this runs in the image of the stack's backups: use make backup, restore or backups"
            ) from None

        def within(folder: str):
            whole = f"{uri.rstrip('/')}/{folder}".rstrip("/")
            return stores.open_store(whole, whole, secrets, env)

        self.called, self.local, self.within = called, "://" not in uri, within
        self.root, self.pool = within(""), within(manifest.POOL)
        self.folder = Path(uri)
        self.work = Path(os.environ.get("TMPDIR") or "/var/tmp") / WORK
        if self.local and not self.folder.is_dir():
            raise StackError(f"there is no folder {called}")

    # The sets

    def names(self) -> list[str]:
        """Return the names of all sets, whole or not, oldest first."""
        try:
            return sorted(name for name in self.root.folders() if manifest.IS_SET.fullmatch(name))
        except StackError:
            raise
        except Exception as error:
            raise StackError(f"{self.called} cannot be listed: {one_line(error)}") from error

    def manifest(self, name: str) -> Manifest | None:
        """Return the manifest of a set, or None if it has none. Raises Damaged if it is not as it was."""
        text = self.read(f"{name}/{manifest.NAME}")
        return manifest.from_text(text, name) if text is not None else None

    def read(self, path: str) -> bytes | None:
        """Return the content of a small object, or None if it is not there."""
        try:
            return b"".join(self.root.read(path))
        except Exception as error:
            if absent(error):
                return None
            raise StackError(f"{self.called}/{path} cannot be read: {one_line(error)}") from error

    def write(self, path: str, content: bytes) -> None:
        """Write a small object, whole or not at all."""
        self.root.write(path, len(content), iter([content]))

    def fetch(self, name: str, file: str) -> Path:
        """Return the path of a file of a set; what is elsewhere is brought first."""
        if self.local:
            return self.folder / name / file
        path = self.work / name / file
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = path.with_name(f".{file}")
            with open(part, "wb") as target:
                for piece in self.root.read(f"{name}/{file}"):
                    target.write(piece)
            part.replace(path)
        return path

    def begin(self, name: str) -> Path:
        """Return the empty folder in which the files of a new set are made.

        For a local place all of it is on that disk, so that files only get their names in the end. Readers do
        not come there: a backup goes on beside them.
        """
        if self.local:
            self.work = self.folder / WORK
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(mode=0o700, parents=True)
        made = self.folder / name if self.local else self.work / name
        made.mkdir(mode=0o700)
        return made

    def finish(self, whole: Manifest) -> None:
        """Bring the files of a new set where they belong, and then its manifest: from now on it is a
        backup."""
        from artifacts_move import copying, stores

        for file, known in whole.files.items():
            path = self.fetch(whole.name, file)
            if not self.local:
                item = stores.Item(f"{whole.name}/{file}", known.size, "")
                copying.copy(Given(path), self.root, item)
        if self.local:
            # Artifacts were written without waiting for the disk: it has them before the manifest says so.
            subprocess.run(["sync", "--file-system", str(self.folder)], check=False)
        self.write(f"{whole.name}/{manifest.NAME}", manifest.to_text(whole).encode())

    def end(self) -> None:
        """Take away what was only needed meanwhile."""
        shutil.rmtree(self.work, ignore_errors=True)

    def remove(self, name: str) -> None:
        """Remove a set: first its manifest, so that it is none if this is interrupted."""
        self.root.delete(f"{name}/{manifest.NAME}")
        if self.local:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            return
        for item in self.within(name).items():
            self.root.delete(f"{name}/{item.name}")

    # The pool

    def pooled(self) -> dict[str, int]:
        """Return the objects of the pool: name -> size."""
        try:
            return {item.name: item.size for item in self.pool.items()}
        except StackError:
            raise
        except Exception as error:
            raise StackError(f"{self.called} cannot be listed: {one_line(error)}") from error

    def stage(self) -> Path:
        """Return a path of this thread's own for an object on its way."""
        return self.work / f"object-{threading.get_ident()}"

    def add(self, name: str, size: int, content: bytes | Path) -> None:
        """Put an object into the pool: what is in memory, or a file of `stage`, which is gone afterwards."""
        if not self.local:
            from artifacts_move import copying, stores

            copying.copy(Given(content), self.pool, stores.Item(name, size, ""))
            if isinstance(content, Path):
                content.unlink()
            return
        path = self.folder / manifest.POOL / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if isinstance(content, bytes):
            staged = self.stage()
            staged.write_bytes(content)
            content = staged
        content.replace(path)

    def take(self, name: str) -> Iterator[bytes]:
        """Yield the content of an object of the pool."""
        return self.pool.read(name)

    def drop(self, names: list[str]) -> None:
        """Remove objects from the pool."""
        for name in names:
            self.pool.delete(name)


class Given:
    """Something at hand, as a store that it is copied from."""

    def __init__(self, content: bytes | Path):
        self.content = content

    def read(self, name: str) -> Iterator[bytes]:
        """Yield it in pieces."""
        if isinstance(self.content, bytes):
            yield self.content
            return
        with open(self.content, "rb") as file:
            while piece := file.read(CHUNK):
                yield piece


def absent(error: Exception) -> bool:
    """Return whether an exception of any store's client says that there is no such object."""
    if isinstance(error, FileNotFoundError):
        return True
    code = getattr(error, "response", None)
    if isinstance(code, dict):
        return code.get("Error", {}).get("Code") in ("NoSuchKey", "404")
    return type(error).__name__ in ("ResourceNotFoundError", "NotFound")
