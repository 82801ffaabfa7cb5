"""An Azure Blob container."""

import contextlib
import mimetypes
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import BlobServiceClient, ContentSettings
from stackops.errors import StackError

from artifacts_move.stores import PART, Item, part_size, parts, under

URI = re.compile(r"wasbs://([^@/]+)@([^/]+)(?:/(.*))?")


class Store:
    """See stores.py. Azure keeps a checksum of small blobs only, and clients may set it: blobs are read back."""

    def __init__(self, uri: str, known_as: str, secrets: str, env: Mapping[str, str]):
        match = URI.fullmatch(uri)
        if not match:
            raise StackError(f"{uri!r} must look like wasbs://container@account.blob.core.windows.net")
        container, host, prefix = match.groups()
        self.prefix = f"{prefix.strip('/')}/" if prefix else ""
        self.uri, self.where = known_as, uri
        options = {"connection_timeout": 10, "read_timeout": 60, "retry_total": 4}
        key = Path(secrets, "azure_connection_string")
        if text := key.read_text().strip() if key.is_file() else "":
            try:
                service = BlobServiceClient.from_connection_string(text, **options)
            except ValueError:
                raise StackError("azure_connection_string is no connection string; copy it again") from None
        else:
            from azure.identity import DefaultAzureCredential

            service = BlobServiceClient(f"https://{host}", credential=DefaultAzureCredential(), **options)
        self.folder = service.get_container_client(container)

    def items(self) -> Iterator[Item]:
        for found in self.folder.list_blobs(name_starts_with=self.prefix):
            if name := under(self.prefix, found.name):
                yield Item(name, found.size, found.etag.strip('"'))

    def stat(self, name: str) -> Item:
        found = self.folder.get_blob_client(self.prefix + name).get_blob_properties()
        return Item(name, found.size, found.etag.strip('"'))

    def read(self, name: str) -> Iterator[bytes]:
        return self.folder.download_blob(self.prefix + name).chunks()

    def write(self, name: str, size: int, pieces: Iterable[bytes]) -> Item:
        blob = self.folder.get_blob_client(self.prefix + name)
        settings = ContentSettings(content_type=mimetypes.guess_type(name)[0])
        if size <= PART:
            sent = blob.upload_blob(b"".join(pieces), overwrite=True, content_settings=settings)
            return Item(name, size, sent["etag"].strip('"'))
        blocks = []
        for number, part in enumerate(parts(pieces, part_size(size))):
            blocks.append(b64encode(b"%08d" % number).decode())
            blob.stage_block(blocks[-1], part)
        sent = blob.commit_block_list(blocks, content_settings=settings)
        return Item(name, size, sent["etag"].strip('"'))

    def folders(self) -> list[str]:
        found = [one.name for one in self.folder.walk_blobs(self.prefix, delimiter="/")]
        return [name.removeprefix(self.prefix).rstrip("/") for name in found if name.endswith("/")]

    def delete(self, name: str) -> None:
        with contextlib.suppress(ResourceNotFoundError):
            self.folder.delete_blob(self.prefix + name)

    def tidy(self) -> None:
        """Nothing is left behind."""

    def checks(self) -> bool:
        return False

    def vouches(self, size: int) -> str:
        return ""
