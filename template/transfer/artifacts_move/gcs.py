"""A Google Cloud Storage bucket."""

import contextlib
import mimetypes
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from google.cloud import storage
from google.cloud.exceptions import NotFound

from artifacts_move.stores import CHUNK, PART, Item, part_size, parts, split, under


class Store:
    """See stores.py. Google keeps the MD5 of what it received, whatever the size."""

    def __init__(self, uri: str, known_as: str, secrets: str, env: Mapping[str, str]):
        bucket, self.prefix = split(uri)
        self.uri, self.where = known_as, uri
        key = Path(secrets, "gcs_credentials.json")
        has_key = key.is_file() and key.read_text().strip()
        client = storage.Client.from_service_account_json(str(key)) if has_key else storage.Client()
        self.bucket = client.bucket(bucket)

    def items(self) -> Iterator[Item]:
        for found in self.bucket.list_blobs(prefix=self.prefix):
            if name := under(self.prefix, found.name):
                yield self._item(name, found)

    def stat(self, name: str) -> Item:
        blob = self.bucket.blob(self.prefix + name)
        blob.reload()
        return self._item(name, blob)

    def _item(self, name: str, blob: storage.Blob) -> Item:
        md5 = b64decode(blob.md5_hash).hex() if blob.md5_hash else ""
        return Item(name, blob.size, str(blob.generation), md5)

    def read(self, name: str) -> Iterator[bytes]:
        # As stored: a gzip-encoded object would otherwise arrive unpacked, with another size.
        with self.bucket.blob(self.prefix + name).open("rb", chunk_size=PART, raw_download=True) as file:
            while piece := file.read(CHUNK):
                yield piece

    def write(self, name: str, size: int, pieces: Iterable[bytes]) -> Item:
        blob = self.bucket.blob(self.prefix + name)
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        if size <= PART:
            blob.upload_from_string(b"".join(pieces), content_type=kind)
            return self._item(name, blob)
        stream = blob.open("wb", content_type=kind, chunk_size=part_size(size), ignore_flush=True)
        try:
            for part in parts(pieces, part_size(size)):
                stream.write(part)
            stream.close()
        except BaseException:
            stream.terminate()
            raise
        return self.stat(name)

    def folders(self) -> list[str]:
        found = self.bucket.list_blobs(prefix=self.prefix, delimiter="/")
        list(found)  # the folders are known when all pages were read
        return [name.removeprefix(self.prefix).rstrip("/") for name in found.prefixes]

    def delete(self, name: str) -> None:
        with contextlib.suppress(NotFound):
            self.bucket.blob(self.prefix + name).delete()

    def tidy(self) -> None:
        """Nothing is left behind."""

    def checks(self) -> bool:
        return False

    def vouches(self, size: int) -> str:
        return "md5"
