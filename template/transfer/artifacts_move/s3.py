"""An S3 bucket, of Amazon or of any server that speaks S3."""

import contextlib
import json
import mimetypes
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait

import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError

from artifacts_move.stores import CHUNK, PART, Item, part_size, parts, split, under

AHEAD = 8  # parts that are on their way while their objects are read on, of all objects together
PART_ARGUMENTS = ("SSECustomerAlgorithm", "SSECustomerKey", "SSECustomerKeyMD5", "RequestPayer")


class Store:
    """See stores.py. An ETag is the MD5 of the content, or of the parts' MD5s, unless the bucket encrypts with a
    key of its own; where it is something else it does not match, and the object is read back."""

    def __init__(self, uri: str, known_as: str, secrets: str, env: Mapping[str, str]):
        self.bucket, self.prefix = split(uri)
        endpoint = env.get("MLFLOW_S3_ENDPOINT_URL") or None
        self.uri, self.where = known_as, uri + (f" at {endpoint}" if endpoint else "")
        session = botocore.session.Session()
        # Two stores have two keys; without one, the machine's role is used, and not the other's key.
        key = os.path.join(secrets, "s3_credentials")
        session.set_config_variable("credentials_file", key if os.path.isfile(key) else os.devnull)
        self.client = session.create_client(
            "s3",
            region_name=env.get("AWS_DEFAULT_REGION") or "us-east-1",
            endpoint_url=endpoint,
            verify=False if env.get("MLFLOW_S3_IGNORE_TLS", "").lower() in ("true", "1") else None,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": env.get("MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE", "auto")},
                connect_timeout=10,
                read_timeout=60,
                retries={"mode": "standard", "total_max_attempts": 5},
                max_pool_connections=64,
            ),
        )
        self.pool, self.ahead = ThreadPoolExecutor(AHEAD), threading.BoundedSemaphore(AHEAD)
        self.extra = json.loads(env.get("MLFLOW_S3_UPLOAD_EXTRA_ARGS") or "{}")

    def _place(self, name: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.prefix + name}

    def items(self) -> Iterator[Item]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
        for page in pages:
            for found in page.get("Contents", ()):
                if name := under(self.prefix, found["Key"]):
                    yield self._item(name, found["Size"], found)

    def stat(self, name: str) -> Item:
        found = self.client.head_object(**self._place(name))
        return self._item(name, found["ContentLength"], found)

    def _item(self, name: str, size: int, found: Mapping) -> Item:
        tag = found["ETag"].strip('"')
        return Item(name, size, tag, tag)

    def read(self, name: str) -> Iterator[bytes]:
        return self.client.get_object(**self._place(name))["Body"].iter_chunks(CHUNK)

    def write(self, name: str, size: int, pieces: Iterable[bytes]) -> Item:
        place = self._place(name)
        kind = mimetypes.guess_type(name)[0]
        extra = {**({"ContentType": kind} if kind else {}), **self.extra}
        if size <= PART:
            sent = self.client.put_object(**place, Body=b"".join(pieces), **extra)
            return self._item(name, size, sent)
        self._forget(place)
        upload = {**place, "UploadId": self.client.create_multipart_upload(**place, **extra)["UploadId"]}
        repeated = {k: v for k, v in extra.items() if k in PART_ARGUMENTS}
        ahead: list[Future] = []
        arrived = 0
        try:
            for number, part in enumerate(parts(pieces, part_size(size)), 1):
                ahead.append(self._send(PartNumber=number, Body=part, **upload, **repeated))
                del part
                while arrived < len(ahead) and ahead[arrived].done():
                    ahead[arrived].result()  # a store that refuses a part is not sent the rest
                    arrived += 1
            tags = [{"PartNumber": n, "ETag": one.result()["ETag"]} for n, one in enumerate(ahead, 1)]
            sent = self.client.complete_multipart_upload(**upload, MultipartUpload={"Parts": tags})
            return self._item(name, size, sent)
        except BaseException:
            wait(ahead)  # a part that arrives after the end would stay for ever
            self.client.abort_multipart_upload(**upload)
            raise

    def _send(self, **part) -> Future:
        """Upload a part beside the reading of the next one; here and now if AHEAD of them are on their way already."""
        if self.ahead.acquire(blocking=False):

            def upload():
                try:
                    return self.client.upload_part(**part)
                finally:
                    self.ahead.release()

            return self.pool.submit(upload)
        done: Future = Future()
        done.set_result(self.client.upload_part(**part))
        return done

    def _forget(self, place: Mapping[str, str]) -> None:
        """Throw away the parts that an interrupted run of this program left of this object."""
        with contextlib.suppress(ClientError):  # some keys may not ask
            found = self.client.list_multipart_uploads(Bucket=place["Bucket"], Prefix=place["Key"])
            for one in found.get("Uploads", ()):
                if one["Key"] == place["Key"]:
                    self.client.abort_multipart_upload(**place, UploadId=one["UploadId"])

    def folders(self) -> list[str]:
        asked = {"Bucket": self.bucket, "Prefix": self.prefix, "Delimiter": "/"}
        pages = self.client.get_paginator("list_objects_v2").paginate(**asked)
        found = [one["Prefix"] for page in pages for one in page.get("CommonPrefixes", ())]
        return [key.removeprefix(self.prefix).rstrip("/") for key in found]

    def delete(self, name: str) -> None:
        self.client.delete_object(**self._place(name))

    def tidy(self) -> None:
        """Nothing is left behind."""

    def vouches(self, size: int) -> str:
        return "md5" if size <= PART else "parts"
