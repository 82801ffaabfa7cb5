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
`tidy()`
    Removes what interrupted writes have left.
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
    def tidy(self) -> None: ...
    def vouches(self, size: int) -> str: ...


def part_size(size: int) -> int:
    """Return the size of the parts in which an object of `size` bytes is written."""
    return max(PART, -(-size // TOP // CHUNK) * CHUNK)


def parts(pieces: Iterable[bytes], length: int) -> Iterator[bytes]:
    """Join and cut `pieces` into parts of `length` bytes; the last may be shorter."""
    held = bytearray()
    for piece in pieces:
        held += piece
        while len(held) >= length:
            yield bytes(held[:length])
            del held[:length]
    if held:
        yield bytes(held)


class Digest:
    """The checksums of bytes that pass by: always SHA-256, and what a store vouches with, if anything."""

    def __init__(self, kind: str = "", part: int = PART):
        self.size, self._sha, self._kind, self._part = 0, hashlib.sha256(), kind, part
        self._md5, self._parts = hashlib.md5(usedforsecurity=False), []

    def over(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the pieces, and remember."""
        for piece in pieces:
            self._sha.update(piece)
            if self._kind == "md5":
                self._md5.update(piece)
            elif self._kind == "parts":
                self._cut(memoryview(piece))
            self.size += len(piece)
            yield piece

    def _cut(self, piece: memoryview) -> None:
        start = self.size
        while piece:
            room = self._part - start % self._part
            self._md5.update(piece[:room])
            start += len(piece[:room])
            piece = piece[room:]
            if start % self._part == 0:
                self._next()

    def _next(self) -> None:
        self._parts.append(self._md5.digest())
        self._md5 = hashlib.md5(usedforsecurity=False)

    @property
    def sha256(self) -> str:
        """The SHA-256 of all that passed."""
        return self._sha.hexdigest()

    @property
    def checksum(self) -> str:
        """What a store that vouches would give."""
        if self._kind != "parts":
            return self._md5.hexdigest() if self._kind else ""
        all_parts = [*self._parts, *([self._md5.digest()] if self.size % self._part else [])]
        return f"{hashlib.md5(b''.join(all_parts), usedforsecurity=False).hexdigest()}-{len(all_parts)}"


def sha256(pieces: Iterable[bytes]) -> tuple[int, str]:
    """Return the size and the SHA-256 of `pieces`."""
    digest = Digest()
    for _ in digest.over(pieces):
        pass
    return digest.size, digest.sha256


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
