"""What the four kinds of stores have in common, and how a URI becomes one of them.

A store is a folder of objects under a root. Every kind (local.py, s3.py, azure.py, gcs.py) offers:

`items()`
    All objects, as `Item`s, in any order.
`stat(name)`
    One object's `Item`. Raises what the client library raises if it is missing.
`read(name)`
    An object's content in pieces, as it is stored.
`write(name, size, pieces)`
    Makes or replaces an object of that size and returns its `Item`. Readers see the old content, or all of the new
    one, or nothing.
`folders()`
    The names of the folders right below the root.
`delete(name)`
    Removes an object; one that is not there is no error.
`tidy()`
    Removes what interrupted writes have left.
`checks()`
    Whether `write` itself makes sure that what is stored is what was sent, by a SHA-256 that the store compares. The
    store is asked at each call: once before the first write is enough.
`vouches(size)`
    What `Item.checksum` of an object of that size is, once this program has written it: "md5", "parts" (the MD5
    of the MD5s of parts of `part_size` bytes, a dash and their number) or "" for nothing that proves anything.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from stackops.errors import StackError

CHUNK = 1 << 20
PART = 8 << 20
TOP = 9_000  # parts; the stores allow 10,000
PROBES = ".stackops-probe/"  # what health checks write


@dataclass(frozen=True)
class Item:
    """An object: its name below the root, its size, a text that changes when its content does, and the
    checksum that the store gives for it, if it gives one."""

    name: str
    size: int
    version: str
    checksum: str = ""


class Store(Protocol):
    """See above. `uri` is the root as the database knows it, `where` as a person would call it."""

    uri: str
    where: str

    def items(self) -> Iterator[Item]: ...
    def stat(self, name: str) -> Item: ...
    def read(self, name: str) -> Iterator[bytes]: ...
    def write(self, name: str, size: int, pieces: Iterable[bytes]) -> Item: ...
    def folders(self) -> list[str]: ...
    def delete(self, name: str) -> None: ...
    def tidy(self) -> None: ...
    def checks(self) -> bool: ...
    def vouches(self, size: int) -> str: ...


def part_size(size: int) -> int:
    """Return the size of the parts in which an object of `size` bytes is written."""
    return max(PART, -(-size // TOP // CHUNK) * CHUNK)


def parts(pieces: Iterable[bytes], length: int) -> Iterator[bytes]:
    """Join and cut `pieces` into parts of `length` bytes; the last may be shorter."""
    held, size = [], 0
    for piece in pieces:
        while size + len(piece) >= length:
            held.append(piece[: length - size])
            piece = piece[length - size :]
            part, held, size = b"".join(held), [], 0
            yield part
            del part  # while the next one comes in, this one would be in memory too
        if piece:
            held.append(piece)
            size += len(piece)
    if held:
        yield b"".join(held)


class Count:
    """How many bytes passed by."""

    def __init__(self):
        self.size = 0

    def over(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the pieces, and count."""
        for piece in pieces:
            self.size += len(piece)
            yield piece


class Digest:
    """The checksum of bytes that pass by: the one that the target vouches with, or else SHA-256. Never both: hashing
    is much of the work where a store is near."""

    def __init__(self, kind: str = "", part: int = PART):
        self.size, self._kind, self._part, self._parts = 0, kind, part, []
        self._hash = self._new()

    def _new(self):
        return hashlib.md5(usedforsecurity=False) if self._kind else hashlib.sha256()

    def over(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the pieces, and remember."""
        for piece in pieces:
            if self._kind == "parts":
                self._cut(memoryview(piece))
            else:
                self._hash.update(piece)
            self.size += len(piece)
            yield piece

    def _cut(self, piece: memoryview) -> None:
        start = self.size
        while piece:
            room = self._part - start % self._part
            self._hash.update(piece[:room])
            start += len(piece[:room])
            piece = piece[room:]
            if start % self._part == 0:
                self._parts.append(self._hash.digest())
                self._hash = self._new()

    @property
    def checksum(self) -> str:
        """The checksum of all that passed, as a store that vouches would give it."""
        if self._kind != "parts":
            return self._hash.hexdigest()
        all_parts = [*self._parts, *([self._hash.digest()] if self.size % self._part else [])]
        return f"{hashlib.md5(b''.join(all_parts), usedforsecurity=False).hexdigest()}-{len(all_parts)}"

    def matches(self, pieces: Iterable[bytes]) -> bool:
        """Return whether `pieces` are the same bytes; reads them all."""
        other = Digest(self._kind, self._part)
        for _ in other.over(pieces):
            pass
        return (other.size, other.checksum) == (self.size, self.checksum)


def under(prefix: str, key: str) -> str | None:
    """Return the name below `prefix` of an object with this key, or None for what is no artifact.

    Raises StackError for a name that no other store could hold as a file.
    """
    name = key.removeprefix(prefix)
    if name.startswith(PROBES) or (not name or name.endswith("/")):
        return None  # consoles make empty objects with a slash at the end to show a folder
    if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
        raise StackError(f"the object {key!r} has a name that cannot be a file's; rename or delete it")
    return name


def split(uri: str) -> tuple[str, str]:
    """Return (bucket, prefix) of scheme://bucket/prefix; the prefix is "" or ends with a slash."""
    bucket, _, prefix = uri.partition("://")[2].partition("/")
    return bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else ""


def open_store(uri: str, known_as: str, secrets: str, env: Mapping[str, str]) -> Store:
    """Return the store at `uri`, which the database knows as `known_as`.

    `secrets` is the folder with its key, and `env` has MLFLOW_S3_ENDPOINT_URL, AWS_DEFAULT_REGION and the like
    as they are for this store. Raises StackError if the URI is none of a store.
    """
    scheme = uri.partition("://")[0] if "://" in uri else ""
    kinds = {"": "local", "s3": "s3", "wasbs": "azure", "gs": "gcs"}
    if scheme not in kinds or (not scheme and not os.path.isabs(uri)):
        raise StackError(
            f"{uri!r} is no artifact store; it must look like s3://bucket, gs://bucket, "
            "wasbs://container@account.blob.core.windows.net, /a/folder or local"
        )
    import importlib

    module = importlib.import_module(f"artifacts_move.{kinds[scheme]}")
    return module.Store(uri.rstrip("/"), known_as.rstrip("/"), secrets, env)
