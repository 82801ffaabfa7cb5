"""An S3 bucket: AWS, or any server that speaks S3 (MLFLOW_S3_ENDPOINT_URL).

boto3 finds credentials and region by itself: AWS_SHARED_CREDENTIALS_FILE, a role of the machine, and so on.
"""

import functools
import json
import mimetypes
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from stackops.errors import StackError, one_line
from stackops.settings import Secrets, artifact_uri

TIMEOUTS = {"connect_timeout": 4, "read_timeout": 8, "retries": {"total_max_attempts": 2, "mode": "standard"}}

PART_ARGUMENTS = ("SSECustomerAlgorithm", "SSECustomerKey", "SSECustomerKeyMD5", "RequestPayer")
"""What of MLFLOW_S3_UPLOAD_EXTRA_ARGS each part of a large upload needs as well."""

CAUSES = {
    "NoSuchBucket": "there is no such bucket; create it, or correct the bucket's name in .env",
    "404": "there is no such bucket; create it, or correct the bucket's name in .env",
    "AccessDenied": "access is denied; the bucket must exist, and the key needs to list it and to read, "
    "write and delete objects in it",
    "403": "access is denied; the key needs to list the bucket and to read, write and delete objects in it",
    "InvalidAccessKeyId": "the access key is unknown there; check the secret with the S3 credentials",
    "SignatureDoesNotMatch": "the secret key is wrong; check the secret with the S3 credentials",
    "InvalidToken": "the session token is not valid; check the secret with the S3 credentials",
    "ExpiredToken": "the session token has expired; renew the credentials",
    "PermanentRedirect": "the bucket is in another region; correct AWS_DEFAULT_REGION",
    "301": "the bucket is in another region; correct AWS_DEFAULT_REGION",
    "IllegalLocationConstraintException": "the bucket is in another region; correct AWS_DEFAULT_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region; correct AWS_DEFAULT_REGION",
    "InternalError": "it failed (InternalError): its disk may be full, its log says more",
    "RequestTimeTooSkewed": "the clock of this machine is wrong; correct it",
}


def destination(env: Mapping[str, str]) -> str:
    """Return the URI that keeps all transfers on the server (see relay.py)."""
    return f"relay:{artifact_uri(env)}"


def environment(env: Mapping[str, str], secrets: Secrets) -> dict[str, str]:
    """Return nothing but a shorter patience; credentials have their own variables.

    The old default of boto3 is five attempts of up to 60 s each, while a worker's thread waits.
    """
    return {"AWS_RETRY_MODE": "standard", "AWS_MAX_ATTEMPTS": "3"}


def location(env: Mapping[str, str]) -> tuple[str, str]:
    """Return (bucket, prefix); the prefix is "" or ends with a slash. Raises StackError for another URI."""
    parts = urlsplit(artifact_uri(env))
    if parts.scheme != "s3" or not parts.netloc:
        raise StackError(
            f"ARTIFACT_URI is {artifact_uri(env)!r}; it must look like s3://bucket or s3://bucket/prefix"
        )
    prefix = parts.path.strip("/")
    return parts.netloc, f"{prefix}/" if prefix else ""


def client(env: Mapping[str, str], **credentials: str):
    """Return a boto3 client that gives up soon, with MLflow's settings for endpoint, TLS and addressing."""
    import boto3
    from botocore.config import Config

    # An empty file is fine (no keys: the machine has a role); one that is missing would be ignored silently.
    if (path := env.get("AWS_SHARED_CREDENTIALS_FILE")) and not Path(path).is_file():
        raise StackError(f"AWS_SHARED_CREDENTIALS_FILE names {path}, which is not there; run make init")
    insecure = env.get("MLFLOW_S3_IGNORE_TLS", "").lower() in ("true", "1")
    style = env.get("MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE", "auto")
    return boto3.client(
        "s3",
        endpoint_url=env.get("MLFLOW_S3_ENDPOINT_URL") or None,
        verify=False if insecure else None,
        config=Config(signature_version="s3v4", s3={"addressing_style": style}, **TIMEOUTS),
        **credentials,
    )


def explain(error: Exception, where: str) -> StackError:
    """Return the sentence for a boto3 exception."""
    from botocore import exceptions

    if isinstance(error, exceptions.ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        return StackError(f"{where}: {CAUSES.get(code) or one_line(error)}")
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return StackError(
            f"{where}: there are no credentials; fill the secret with them, or give this machine a role"
        )
    if isinstance(error, exceptions.SSLError):
        return StackError(
            f"{where}: its TLS certificate is not trusted; set AWS_CA_BUNDLE to the CA certificate"
        )
    if isinstance(error, exceptions.HTTPClientError | exceptions.EndpointConnectionError):
        return StackError(
            f"{where}: it cannot be reached ({one_line(error, 160)}); is it running, is the address right?"
        )
    return StackError(f"{where}: {one_line(error)}")


def probe(env: Mapping[str, str], name: str) -> None:
    """Write, read, list and delete one object. Raises StackError with the cause."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, prefix = location(env)
    endpoint = env.get("MLFLOW_S3_ENDPOINT_URL")
    where = f"artifact store {artifact_uri(env)}" + (f" at {endpoint}" if endpoint else "")
    key, body = prefix + name, name.encode()
    try:
        extra = json.loads(env.get("MLFLOW_S3_UPLOAD_EXTRA_ARGS") or "{}")
    except ValueError:
        raise StackError("MLFLOW_S3_UPLOAD_EXTRA_ARGS is not JSON; correct it in .env") from None
    try:
        s3 = client(env)
        s3.put_object(Bucket=bucket, Key=key, Body=body, **extra)
        intact = s3.get_object(Bucket=bucket, Key=key)["Body"].read() == body
        s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
        s3.delete_object(Bucket=bucket, Key=key)
    except (BotoCoreError, ClientError, Boto3Error, ValueError) as error:
        raise explain(error, where) from None
    if not intact:
        raise StackError(f"{where}: it gave back other bytes than were written")


def clock(env: Mapping[str, str]) -> float:
    """Return what the store's clock says, in seconds since 1970: it refuses requests 15 minutes off."""
    from email.utils import parsedate_to_datetime

    answer = client(env).list_objects_v2(Bucket=location(env)[0], MaxKeys=1)
    return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()


@functools.cache
def transfers():
    """Return the boto3 client for streamed objects; a role's credentials it renews by itself."""
    import boto3
    from botocore.config import Config

    style = os.environ.get("MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE", "auto")
    insecure = os.environ.get("MLFLOW_S3_IGNORE_TLS", "").lower() in ("true", "1")
    return boto3.client(
        "s3",
        endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None,
        verify=False if insecure else None,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": style},
            connect_timeout=TIMEOUTS["connect_timeout"],
            read_timeout=60,
            max_pool_connections=50,
        ),
    )


def _owner() -> dict[str, str]:
    owner = os.environ.get("MLFLOW_S3_EXPECTED_BUCKET_OWNER")
    return {"ExpectedBucketOwner": owner} if owner else {}


def _place(uri: str) -> dict[str, str]:
    parts = urlsplit(uri, allow_fragments=False)
    return {"Bucket": parts.netloc, "Key": uri.removeprefix(f"s3://{parts.netloc}/"), **_owner()}


class Writer:
    """Writes one object in parts; see stores/__init__.py."""

    def __init__(self, uri: str):
        self.client, self.place, self.upload, self.tags = transfers(), _place(uri), None, []
        kind, encoding = mimetypes.guess_type(uri)
        self.extra = {
            **({"ContentType": kind} if kind else {}),
            **({"ContentEncoding": encoding} if encoding else {}),
            **json.loads(os.environ.get("MLFLOW_S3_UPLOAD_EXTRA_ARGS") or "{}"),
        }

    def whole(self, body: BinaryIO) -> None:
        """Write the object in one request."""
        self.client.put_object(**self.place, Body=body, **self.extra)

    def part(self, body: BinaryIO) -> None:
        """Write the next part."""
        if self.upload is None:
            made = self.client.create_multipart_upload(**self.place, **self.extra)
            self.upload = {**self.place, "UploadId": made["UploadId"]}
        number = len(self.tags) + 1
        extra = {name: value for name, value in self.extra.items() if name in PART_ARGUMENTS}
        sent = self.client.upload_part(**self.upload, PartNumber=number, Body=body, **extra)
        self.tags.append({"PartNumber": number, "ETag": sent["ETag"]})

    def finish(self) -> None:
        """Make the object of its parts."""
        self.client.complete_multipart_upload(**self.upload, MultipartUpload={"Parts": self.tags})

    def abort(self) -> None:
        """Throw the parts away."""
        if self.upload:
            self.client.abort_multipart_upload(**self.upload)


def read(uri: str, chunk: int) -> tuple[int, Iterator[bytes]]:
    """Return the object's size in bytes and its content in pieces of `chunk` bytes."""
    found = transfers().get_object(**_place(uri))
    return found["ContentLength"], found["Body"].iter_chunks(chunk)


def missing(error: Exception) -> bool:
    """Return whether `error` says that there is no such object."""
    code = getattr(error, "response", {}).get("Error", {}).get("Code")
    return code in ("NoSuchKey", "404")


def settle() -> None:
    """Let every boto3 client of this process give up a connection after a few seconds (default: 60)."""
    import boto3
    import botocore.session
    from botocore.config import Config

    session = botocore.session.get_session()
    session.set_default_client_config(Config(connect_timeout=TIMEOUTS["connect_timeout"]))
    boto3.setup_default_session(botocore_session=session)


def items(env: Mapping[str, str], folder: str = "") -> Iterator[tuple[str, int, float]]:
    """Yield (path below the root, bytes, time) of every object below a folder. Raises StackError."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, prefix = location(env)
    pages = transfers().get_paginator("list_objects_v2")
    try:
        for page in pages.paginate(Bucket=bucket, Prefix=prefix + folder, **_owner()):
            for found in page.get("Contents", ()):
                name = found["Key"].removeprefix(prefix)
                yield name, found["Size"], found["LastModified"].timestamp()
    except (BotoCoreError, ClientError) as error:
        raise explain(error, f"artifact store {artifact_uri(env)}") from None


def remove(env: Mapping[str, str], names: Sequence[str]) -> None:
    """Remove objects, at most 1000. Raises StackError with the first refusal."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, prefix = location(env)
    where = f"artifact store {artifact_uri(env)}"
    keys = [{"Key": prefix + name} for name in names]
    try:
        answer = transfers().delete_objects(
            Bucket=bucket, Delete={"Objects": keys, "Quiet": True}, **_owner()
        )
    except (BotoCoreError, ClientError) as error:
        raise explain(error, where) from None
    if errors := answer.get("Errors"):
        code = errors[0].get("Code", "")
        raise StackError(f"{where}: {CAUSES.get(code) or code}, for {one_line(errors[0].get('Key'), 160)}")
