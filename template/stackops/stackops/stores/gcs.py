"""A Google Cloud Storage bucket: gs://BUCKET[/prefix].

Credentials are a service account's key file or the machine's identity.
"""

import contextlib
import functools
import mimetypes
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO
from urllib.parse import urlsplit

from stackops.errors import StackError, one_line
from stackops.settings import Secrets, artifact_uri

TIMEOUT = (4, 8)
KEY = "gcs_credentials.json"
CHUNK = 8 << 20
"""Bytes of one request of a resumable upload or of a download: a multiple of 256 KiB."""


def destination(env: Mapping[str, str]) -> str:
    """Return the URI that keeps all transfers on the server (see relay.py)."""
    return f"relay:{artifact_uri(env)}"


def environment(env: Mapping[str, str], secrets: Secrets) -> dict[str, str]:
    """Return the key file's place if it holds a key; without it the machine's identity is used."""
    return {"GOOGLE_APPLICATION_CREDENTIALS": str(secrets.path(KEY))} if secrets.read(KEY).strip() else {}


def location(env: Mapping[str, str]) -> tuple[str, str]:
    """Return (bucket, prefix); the prefix is "" or ends with a slash. Raises StackError for another URI."""
    parts = urlsplit(artifact_uri(env))
    if parts.scheme != "gs" or not parts.netloc:
        raise StackError(
            f"ARTIFACT_URI is {artifact_uri(env)!r}; it must look like gs://bucket or gs://bucket/prefix"
        )
    prefix = parts.path.strip("/")
    return parts.netloc, f"{prefix}/" if prefix else ""


def probe(env: Mapping[str, str], name: str) -> None:
    """Write, read, list and delete one object. Raises StackError with the cause."""
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError
    from google.cloud import storage
    from requests import RequestException

    bucket_name, prefix = location(env)
    where = f"artifact store {artifact_uri(env)}"
    key, body = prefix + name, name.encode()
    try:
        bucket = storage.Client().bucket(bucket_name)
        blob = bucket.blob(key)
        blob.upload_from_string(body, timeout=TIMEOUT, retry=None)
        intact = blob.download_as_bytes(timeout=TIMEOUT, retry=None) == body
        next(iter(bucket.list_blobs(prefix=key, max_results=1, timeout=TIMEOUT, retry=None)), None)
        blob.delete(timeout=TIMEOUT, retry=None)
    except (GoogleAPIError, GoogleAuthError, RequestException, OSError, ValueError) as error:
        raise explain(error, where) from None
    if not intact:
        raise StackError(f"{where}: it gave back other bytes than were written")


@functools.cache
def _transfers():
    from google.cloud import storage

    return storage.Client()


def _blob(uri: str):
    bucket, _, name = uri.removeprefix("gs://").partition("/")
    return _transfers().bucket(bucket).blob(name, chunk_size=CHUNK)


class Writer:
    """Writes one object by a resumable upload; see stores/__init__.py."""

    def __init__(self, uri: str):
        self.blob, self.stream = _blob(uri), None
        self.kind = mimetypes.guess_type(uri)[0]

    def whole(self, body: BinaryIO) -> None:
        """Write the object in one go."""
        self.blob.upload_from_file(body, size=body.seek(0, 2), rewind=True, content_type=self.kind)

    def part(self, body: BinaryIO) -> None:
        """Write the next part."""
        if self.stream is None:
            self.stream = self.blob.open("wb", content_type=self.kind, ignore_flush=True)
        shutil.copyfileobj(body, self.stream, 1 << 20)

    def finish(self) -> None:
        """End the upload: only now is the object there."""
        self.stream.close()

    def abort(self) -> None:
        """Throw away what was written: an upload without its end is no object."""
        if self.stream:
            self.stream.terminate()


def read(uri: str, chunk: int) -> tuple[int, Iterator[bytes]]:
    """Return the object's size in bytes and its content in pieces of `chunk` bytes."""
    blob = _blob(uri)
    blob.reload()

    def pieces() -> Iterator[bytes]:
        with blob.open("rb") as stream:
            while piece := stream.read(chunk):
                yield piece

    return blob.size, pieces()


def missing(error: Exception) -> bool:
    """Return whether `error` says that there is no such object."""
    from google.api_core.exceptions import NotFound

    return isinstance(error, NotFound)


def explain(error: Exception, where: str) -> StackError:
    """Return the sentence for an exception of the Google client."""
    from google.api_core.exceptions import Forbidden, NotFound, Unauthorized
    from google.auth.exceptions import DefaultCredentialsError, RefreshError, TransportError
    from requests import RequestException

    if isinstance(error, NotFound):
        return StackError(f"{where}: there is no such bucket; create it, or correct its name in .env")
    if isinstance(error, DefaultCredentialsError | Unauthorized | RefreshError | ValueError):
        return StackError(
            f"{where}: there are no valid credentials ({one_line(error, 160)}); fill the secret {KEY} "
            "with a service account's key, or give this machine an identity"
        )
    if isinstance(error, Forbidden):
        return StackError(f"{where}: access is denied; the account needs Storage Object Admin on the bucket")
    if isinstance(error, RequestException | TransportError | OSError):
        return StackError(f"{where}: it cannot be reached ({one_line(error, 160)}); is the network up?")
    return StackError(f"{where}: {one_line(error)}")


def items(env: Mapping[str, str], folder: str = "") -> Iterator[tuple[str, int, float]]:
    """Yield (path below the root, bytes, time) of every object below a folder. Raises StackError."""
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError
    from requests import RequestException

    bucket, prefix = location(env)
    try:
        for found in _transfers().bucket(bucket).list_blobs(prefix=prefix + folder):
            yield found.name.removeprefix(prefix), found.size, found.updated.timestamp()
    except (GoogleAPIError, GoogleAuthError, RequestException, OSError, ValueError) as error:
        raise explain(error, f"artifact store {artifact_uri(env)}") from None


def remove(env: Mapping[str, str], names: Sequence[str]) -> None:
    """Remove objects. Raises StackError with the first refusal."""
    from google.api_core.exceptions import GoogleAPIError, NotFound
    from google.auth.exceptions import GoogleAuthError
    from requests import RequestException

    bucket_name, prefix = location(env)
    bucket = _transfers().bucket(bucket_name)

    def one(name: str) -> None:
        with contextlib.suppress(NotFound):
            bucket.blob(prefix + name).delete()

    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, names))
    except (GoogleAPIError, GoogleAuthError, RequestException, OSError, ValueError) as error:
        raise explain(error, f"artifact store {artifact_uri(env)}") from None
