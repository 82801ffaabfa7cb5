"""An Azure Blob container: wasbs://CONTAINER@ACCOUNT.blob.core.windows.net[/prefix].

MLflow signs in with AZURE_STORAGE_CONNECTION_STRING if it exists, else with azure-identity's default chain
(mlflow/store/artifact/azure_blob_artifact_repo.py), so an empty one must not be in the environment.
"""

import contextlib
import functools
import mimetypes
import os
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from stackops.errors import StackError, one_line
from stackops.settings import Secrets, artifact_uri

ANY_ADDRESS = True
"""With a connection string MLflow asks that one's account, whichever the address names."""
TIMEOUTS = {"connection_timeout": 4, "read_timeout": 8, "retry_total": 1}
URI = re.compile(r"wasbs://([^@/]+)@([^./@]+)\.(blob\.core\.[^/]+)(?:/(.*))?")


def destination(env: Mapping[str, str]) -> str:
    """Return the URI that keeps all transfers on the server (see relay.py)."""
    return f"relay:{artifact_uri(env)}"


def environment(env: Mapping[str, str], secrets: Secrets) -> dict[str, str]:
    """Return the connection string if there is one; without it the machine's identity is used."""
    value = secrets.read("azure_connection_string").strip()
    return {"AZURE_STORAGE_CONNECTION_STRING": value} if value else {}


def location(env: Mapping[str, str]) -> tuple[str, str, str]:
    """Return (container, account's host name, prefix); the prefix is "" or ends with a slash."""
    match = URI.fullmatch(artifact_uri(env))
    if not match:
        raise StackError(
            f"ARTIFACT_URI is {artifact_uri(env)!r}; it must look like wasbs://container@account.blob.core.windows.net"
        )
    container, account, domain, prefix = match.groups()
    return container, f"{account}.{domain}", f"{prefix.strip('/')}/" if prefix else ""


def probe(env: Mapping[str, str], name: str) -> None:
    """Write, read, list and delete one blob. Raises StackError with the cause."""
    from azure.core.exceptions import AzureError

    container, host, prefix = location(env)
    where = f"artifact store {artifact_uri(env)}"
    key, body = prefix + name, name.encode()
    try:
        with _service(host) as service:
            folder = service.get_container_client(container)
            folder.upload_blob(key, body, overwrite=True)
            intact = folder.download_blob(key).readall() == body
            next(iter(folder.list_blobs(name_starts_with=key, results_per_page=1)), None)
            folder.delete_blob(key)
    except (AzureError, ValueError) as error:
        raise explain(error, where) from None
    if not intact:
        raise StackError(f"{where}: it gave back other bytes than were written")


def _service(host: str, **options: object):
    from azure.storage.blob import BlobServiceClient

    options = {**TIMEOUTS, **options}
    if text := os.environ.get("AZURE_STORAGE_CONNECTION_STRING"):
        return BlobServiceClient.from_connection_string(text, **options)
    from azure.identity import DefaultAzureCredential

    return BlobServiceClient(f"https://{host}", credential=DefaultAzureCredential(), **options)


@functools.cache
def _transfers(host: str):
    return _service(host, read_timeout=60, retry_total=3)


def _blob(uri: str):
    container, account, domain, name = URI.fullmatch(uri).groups()
    return _transfers(f"{account}.{domain}").get_blob_client(container, name)


class Writer:
    """Writes one blob in blocks; see stores/__init__.py."""

    def __init__(self, uri: str):
        from azure.storage.blob import ContentSettings

        self.blob, self.blocks = _blob(uri), []
        self.settings = ContentSettings(content_type=mimetypes.guess_type(uri)[0])

    def whole(self, body: BinaryIO) -> None:
        """Write the blob in one go."""
        self.blob.upload_blob(body, overwrite=True, content_settings=self.settings)

    def part(self, body: BinaryIO) -> None:
        """Write the next block."""
        name = b64encode(b"%08d" % len(self.blocks)).decode()
        self.blob.stage_block(name, body)
        self.blocks.append(name)

    def finish(self) -> None:
        """Make the blob of its blocks."""
        self.blob.commit_block_list(self.blocks, content_settings=self.settings)

    def abort(self) -> None:
        """Nothing is to be done: Azure drops blocks that nobody commits after a week."""


def read(uri: str, chunk: int) -> tuple[int, Iterator[bytes]]:
    """Return the blob's size in bytes and its content in pieces (Azure's client chooses their size)."""
    found = _blob(uri).download_blob()
    return found.size, found.chunks()


def missing(error: Exception) -> bool:
    """Return whether `error` says that there is no such blob."""
    return getattr(error, "status_code", None) == 404


def explain(error: Exception, where: str) -> StackError:
    """Return the sentence for an exception of the Azure client."""
    from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ServiceRequestError

    code = str(getattr(error, "error_code", "") or "")
    if code.endswith("ContainerNotFound"):
        return StackError(f"{where}: there is no such container; create it, or correct its name in .env")
    if isinstance(error, ClientAuthenticationError) or code.endswith("AuthenticationFailed"):
        return StackError(
            f"{where}: the key is wrong or there is none; check the secret azure_connection_string, "
            "or the identity of this machine"
        )
    if isinstance(error, HttpResponseError) and error.status_code == 403:
        return StackError(
            f"{where}: access is denied; the identity needs Storage Blob Data Contributor on the container"
        )
    if isinstance(error, ServiceRequestError):
        return StackError(
            f"{where}: it cannot be reached ({one_line(error, 160)}); is the account's name right?"
        )
    if isinstance(error, ValueError):
        return StackError(
            f"{where}: the secret azure_connection_string is not a connection string; copy it again"
        )
    return StackError(f"{where}: {one_line(error)}")


def items(env: Mapping[str, str], folder: str = "") -> Iterator[tuple[str, int, float]]:
    """Yield (path below the root, bytes, time) of every blob below a folder. Raises StackError."""
    from azure.core.exceptions import AzureError

    container, host, prefix = location(env)
    try:
        for found in (
            _transfers(host).get_container_client(container).list_blobs(name_starts_with=prefix + folder)
        ):
            yield found.name.removeprefix(prefix), found.size, found.last_modified.timestamp()
    except (AzureError, ValueError) as error:
        raise explain(error, f"artifact store {artifact_uri(env)}") from None


def remove(env: Mapping[str, str], names: Sequence[str]) -> None:
    """Remove blobs, with their snapshots. Raises StackError with the first refusal."""
    from azure.core.exceptions import AzureError, ResourceNotFoundError

    container, host, prefix = location(env)
    folder = _transfers(host).get_container_client(container)

    def one(name: str) -> None:
        with contextlib.suppress(ResourceNotFoundError):
            folder.delete_blob(prefix + name, delete_snapshots="include")

    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, names))
    except (AzureError, ValueError) as error:
        raise explain(error, f"artifact store {artifact_uri(env)}") from None
