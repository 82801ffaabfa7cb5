"""An S3 bucket, of Amazon or of any server that speaks S3."""

import contextlib
import hashlib
import json
import mimetypes
import os
import threading
import uuid
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError
from stackops.errors import StackError

from artifacts_move.stores import CHUNK, PART, PROBES, Item, part_size, parts, split, under

AHEAD = 8  # parts that are on their way while their objects are read on, of all objects together
PART_ARGUMENTS = ("SSECustomerAlgorithm", "SSECustomerKey", "SSECustomerKeyMD5", "RequestPayer")
REFUSALS = ("BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch")  # what servers say to a wrong checksum


def sha256(content: bytes) -> str:
    """Return a checksum as S3 writes it."""
    return b64encode(hashlib.sha256(content).digest()).decode()


def together(sums: Sequence[Mapping], sent: Mapping) -> bool:
    """Return whether what a server says of a whole object follows from what it said of its parts."""
    with contextlib.suppress(ValueError):  # an ETag that is no MD5
        tags = b"".join(bytes.fromhex(one["ETag"].strip('"')) for one in sums)
        if sent["ETag"].strip('"') == f"{hashlib.md5(tags, usedforsecurity=False).hexdigest()}-{len(sums)}":
            return True
    all_sums = sha256(b"".join(b64decode(one["ChecksumSHA256"]) for one in sums))
    return sent.get("ChecksumSHA256") == f"{all_sums}-{len(sums)}"


class Store:
    """See stores.py. Most servers compare what arrives with a SHA-256 that is sent along, and one that was seen to
    refuse a wrong one is believed. Of others the ETag is looked at: it is the MD5 of the content, or of the parts'
    MD5s, unless the bucket encrypts with a key of its own; where it does not match, the object is read back."""

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
                s3={
                    "addressing_style": env.get("MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE", "auto"),
                    # The content is under the signature all the same: by its checksum, a signed header.
                    "payload_signing_enabled": False,
                },
                connect_timeout=10,
                read_timeout=60,
                retries={"mode": "standard", "total_max_attempts": 5},
                max_pool_connections=64,
            ),
        )
        self.pool, self.ahead = ThreadPoolExecutor(AHEAD), threading.BoundedSemaphore(AHEAD)
        self.extra = json.loads(env.get("MLFLOW_S3_UPLOAD_EXTRA_ARGS") or "{}")
        self.checked = False

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
            sent = self._put(self.client.put_object, Body=b"".join(pieces), **place, **extra)
            if self.checked and not sent["confirmed"]:
                self._read_again(name, size, [sent])
            return self._item(name, size, sent)
        self._forget(place)
        started = {**place, **extra, **({"ChecksumAlgorithm": "SHA256"} if self.checked else {})}
        upload = {**place, "UploadId": self.client.create_multipart_upload(**started)["UploadId"]}
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
            kept = ("ETag", "ChecksumSHA256") if self.checked else ("ETag",)
            sent_parts = [one.result() for one in ahead]
            sums = [{"PartNumber": n, **{key: one[key] for key in kept}} for n, one in enumerate(sent_parts, 1)]
            sent = self.client.complete_multipart_upload(**upload, MultipartUpload={"Parts": sums})
        except BaseException:
            wait(ahead)  # a part that arrives after the end would stay for ever
            self.client.abort_multipart_upload(**upload)
            raise
        if self.checked and not (all(one["confirmed"] for one in sent_parts) and together(sums, sent)):
            self._read_again(name, size, sums)
        return self._item(name, size, sent)

    def _send(self, **part) -> Future:
        """Upload a part beside the reading of the next one; here and now if AHEAD of them are on their way already."""
        if self.ahead.acquire(blocking=False):

            def upload():
                try:
                    return self._put(self.client.upload_part, **part)
                finally:
                    self.ahead.release()

            return self.pool.submit(upload)
        done: Future = Future()
        done.set_result(self._put(self.client.upload_part, **part))
        return done

    def _put(self, call: Callable[..., dict], Body: bytes, **words) -> dict:
        """Send some bytes; a server that checks gets their SHA-256 with them, and is to give it back."""
        if not self.checked:
            return call(Body=Body, **words)
        ours = sha256(Body)
        sent = call(Body=Body, ChecksumSHA256=ours, **words)
        theirs = sent.get("ChecksumSHA256")
        if theirs not in (None, ours):
            raise StackError(
                f"{words['Key']}: {self.where} stored other bytes than were sent; check it, then try again"
            )
        return {**sent, "ChecksumSHA256": ours, "confirmed": theirs == ours}

    def _read_again(self, name: str, size: int, sums: list[dict]) -> None:
        """Raise StackError if an object does not consist of the parts with these checksums."""
        there = [sha256(part) for part in parts(self.read(name), part_size(size))]
        if there != [one["ChecksumSHA256"] for one in sums]:
            raise StackError(f"{name}: {self.where} gave back other bytes than were written; check it, then try again")

    def checks(self) -> bool:
        """Send a small object with its checksum, then with a wrong one: see whether the server tells them apart."""
        self.checked = not any(key.startswith("Checksum") for key in self.extra) and self._tells_apart()
        return self.checked

    def _tells_apart(self) -> bool:
        place, right, wrong = self._place(f"{PROBES}{uuid.uuid4()}"), sha256(b"right"), sha256(b"wrong")
        try:
            sent = self.client.put_object(**place, Body=b"right", ChecksumSHA256=right, **self.extra)
            if sent.get("ChecksumSHA256") != right:
                return False
            self.client.put_object(**place, Body=b"right", ChecksumSHA256=wrong, **self.extra)
            return False
        except ClientError as error:
            return error.response["Error"].get("Code") in REFUSALS
        finally:
            with contextlib.suppress(ClientError):
                self.client.delete_object(**place)

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
