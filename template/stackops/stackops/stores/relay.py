"""`relay:URI`: an artifact repository whose bytes all pass through the server, and none stays there.

MLflow (3.15 and later) tells its clients to fetch and send artifacts straight from and to the store whenever
the server's own repository can make presigned URLs (`build_server_info_payload` in mlflow/server/handlers.py
asks with isinstance). A client that sees only the server then hangs. This repository does all its work with
the real one but has none of those abilities, so the server does not offer them.

It also streams: MLflow itself would store a whole artifact in TMPDIR before it passes it on. Uploads go on in
parts of a few megabytes, and downloads (app.py) come piece by piece.

Registered under the entry point group `mlflow.artifact_repository` (pyproject.toml).
"""

import asyncio
import os
import posixpath
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from typing import Any, BinaryIO

from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.store.artifact.artifact_repo import ArtifactRepository, StreamUploadMixin, verify_artifact_path

from stackops import settings

PREFIX = "relay:"
MEMORY = 1 << 20
"""Bytes of one upload that are held in memory; the rest of a part waits on disk, in TMPDIR."""
PART = 16 << 20
"""Bytes of a part. A store may take no more than 10,000, so they grow every thousand: 880 GB fit."""
CHUNK = 1 << 20
"""Bytes that a download reads at once."""


def repository(
    artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> ArtifactRepository:
    """Return the repository of a relay URI; with ARTIFACT_ACCESS=presigned one that makes URLs after all."""
    if os.environ.get("ARTIFACT_ACCESS") == "presigned":
        from stackops.stores.presigned import PresignedArtifactRepository

        return PresignedArtifactRepository(artifact_uri, tracking_uri, registry_uri)
    return RelayArtifactRepository(artifact_uri, tracking_uri, registry_uri)


def wrapped(uri: str, root: str) -> str:
    """Return the URI behind the relay URI `uri`.

    Only `root`, the stack's own store, and what lies in it can be relayed: the location of an experiment is
    chosen by clients, and `relay:file:///etc` must not become a way around MLflow's own checks. Raises
    MlflowException otherwise.
    """
    target, root = uri.removeprefix(PREFIX).rstrip("/"), root.rstrip("/")
    inside = target == root or target.startswith(root + "/")
    if not root or not inside or ".." in target.split("/"):
        raise MlflowException.invalid_parameter_value(f"{uri!r} is not part of this server's artifact store")
    return target


async def parts(chunks: AsyncIterable[bytes]) -> AsyncIterator[BinaryIO]:
    """Gather chunks into files, one a part, that the receiver closes; no chunk gives one empty file."""
    count, size, held, part = 0, 0, bytearray(), tempfile.SpooledTemporaryFile(MEMORY)  # noqa: SIM115
    try:
        async for chunk in chunks:
            held += chunk
            if len(held) >= MEMORY:
                await asyncio.to_thread(part.write, bytes(held))
                size += len(held)
                held.clear()
            if size >= PART * (1 + count // 1000):
                full, part = part, tempfile.SpooledTemporaryFile(MEMORY)  # noqa: SIM115
                count, size = count + 1, 0
                full.seek(0)
                yield full
        if size or held or not count:
            part.write(held)
            last, part = part, None
            last.seek(0)
            yield last
    finally:
        if part:
            part.close()


async def send(chunks: AsyncIterable[bytes], writer: Any) -> None:
    """Write all chunks with a store's Writer; a part is on its way to the store while the next one arrives.

    Whatever goes wrong, also that the client goes away, leaves nothing in the store and is raised again.
    """

    async def write(step: Callable[[BinaryIO], None], file: BinaryIO) -> None:
        with file:
            await asyncio.to_thread(step, file)

    files, opened, sending, newest = parts(chunks), [], None, None
    try:
        async for file in files:  # only another part behind it tells that a part is not the whole
            opened.append(file)
            if sending:
                await sending
            if newest:
                sending = asyncio.create_task(write(writer.part, newest))
            newest = file
        if sending:
            await sending
            await write(writer.part, newest)
            await asyncio.to_thread(writer.finish)
        else:
            await write(writer.whole, newest)
    except BaseException:
        if sending:
            await asyncio.wait([sending])
        await asyncio.to_thread(writer.abort)
        raise
    finally:
        # At once, and not when the garbage collector comes by: they take room on the disk.
        await files.aclose()
        for file in opened:
            file.close()


class RelayArtifactRepository(ArtifactRepository, StreamUploadMixin):
    """Passes everything on to the repository of the wrapped URI, without presigned or multipart transfers."""

    def __init__(
        self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
    ) -> None:
        super().__init__(artifact_uri, tracking_uri, registry_uri)
        self._module = settings.store(os.environ)
        if settle := getattr(self._module, "settle", None):
            settle()
        self._uri = wrapped(artifact_uri, os.environ.get("ARTIFACT_URI", ""))
        self._store = self._wrap(self._uri)

    def _wrap(self, uri: str) -> ArtifactRepository:
        # The registry imports this module while it is being set up itself, so it can only be imported later.
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(uri, self.tracking_uri, self.registry_uri)

    def _object(self, name: str, folder: str | None = None) -> str:
        verify_artifact_path(folder)
        return "/".join(part for part in (self._uri, folder, name) if part)

    async def log_artifact_from_async_stream(
        self, chunks: AsyncIterable[bytes], artifact_file_name: str, artifact_path: str | None = None
    ) -> None:
        """Upload what an async iterator yields, without keeping it."""
        name = self._object(posixpath.basename(artifact_file_name), artifact_path)
        await send(chunks, self._module.Writer(name))

    def log_artifact_from_stream(
        self, stream: BinaryIO, artifact_file_name: str, artifact_path: str | None = None
    ) -> None:
        """Upload what a file yields, without keeping it."""

        async def chunks() -> AsyncIterator[bytes]:
            while chunk := await asyncio.to_thread(stream.read, CHUNK):
                yield chunk

        asyncio.run(self.log_artifact_from_async_stream(chunks(), artifact_file_name, artifact_path))

    def read(self, artifact_path: str) -> tuple[int, Iterator[bytes]]:
        """Return a file's size in bytes and its content in pieces. Raises MlflowException without it."""
        try:
            return self._module.read(self._object(artifact_path), CHUNK)
        except Exception as error:
            if self._module.missing(error):
                text = f"No such artifact: '{artifact_path}'"
                raise MlflowException(text, RESOURCE_DOES_NOT_EXIST) from None
            raise

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """Upload one file."""
        self._store.log_artifact(local_file, artifact_path)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Upload a folder."""
        self._store.log_artifacts(local_dir, artifact_path)

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """List one level."""
        return self._store.list_artifacts(path)

    def download_artifacts(self, artifact_path: str, dst_path: str | None = None) -> str:
        """Download a file or a folder and return its local path."""
        return self._store.download_artifacts(artifact_path, dst_path)

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        self._store._download_file(remote_file_path, local_path)

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        """Delete a file, or everything below a path."""
        self._store.delete_artifacts(artifact_path)
