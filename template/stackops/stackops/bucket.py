"""Creates the stack's own bucket if it is missing, with the store's admin key. Safe to run again.

CORS_ALLOWED_ORIGINS, if it is set, names the pages from which browsers may fetch objects by presigned URLs.
"""

import argparse
import configparser
import os
import time
from datetime import UTC, datetime, timedelta

from stackops import settings
from stackops.errors import StackError

HELP = "create the artifact bucket if it is missing (admin key)"
ABANDONED = timedelta(days=1)
"""How long after its start a multi-part upload that has not ended never will."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument(
        "--wait",
        type=float,
        default=60,
        metavar="SECONDS",
        help="how long to wait for the store (default: 60)",
    )


def admin_key(text: str) -> dict[str, str]:
    """Return boto3's arguments from a shared-credentials file's text. Raises StackError if it has no key."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(text)
        section = parser["default"]
        return {name: section[name] for name in ("aws_access_key_id", "aws_secret_access_key")}
    except (configparser.Error, KeyError):
        raise StackError("the secret object_store_admin holds no key; run make init") from None


def run(args: argparse.Namespace) -> None:
    """Wait for the store, then create the bucket. Raises StackError with the cause."""
    from botocore.exceptions import BotoCoreError, ClientError

    from stackops.stores import s3

    env = settings.present(os.environ)
    name, _ = s3.location(env)
    where = f"bucket {name} at {settings.need(env, 'MLFLOW_S3_ENDPOINT_URL')}"
    client = s3.client(
        {k: v for k, v in env.items() if k != "AWS_SHARED_CREDENTIALS_FILE"},
        **admin_key(settings.secrets(env).need("object_store_admin")),
    )
    until = time.monotonic() + args.wait
    while True:
        try:
            print(f"{where}: {'created' if create(client, name) else 'exists'}", flush=True)
            if origins := env.get("CORS_ALLOWED_ORIGINS"):
                allow(client, name, origins.split(","))
                print(f"{where}: open to browsers on {origins}", flush=True)
            if count := tidy(client, name, datetime.now(UTC)):
                print(f"{where}: removed the parts of {count} uploads that never ended", flush=True)
            return
        except ClientError as error:
            if (
                error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) < 500
                or time.monotonic() >= until
            ):
                raise s3.explain(error, where) from None
        except BotoCoreError as error:
            if time.monotonic() >= until:
                raise s3.explain(error, where) from None
        time.sleep(1)


def tidy(client, name: str, now: datetime) -> int:
    """Delete what killed servers left of multi-part uploads: no listing shows it, and it takes room for ever.

    Returns the number of uploads.
    """
    count = 0
    for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=name):
        for upload in page.get("Uploads", ()):
            if now - upload["Initiated"] > ABANDONED:
                client.abort_multipart_upload(Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"])
                count += 1
    return count


def create(client, name: str) -> bool:
    """Create the bucket; return whether it was missing."""
    from botocore.exceptions import ClientError

    try:
        client.head_bucket(Bucket=name)
        return False
    except ClientError as error:
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != 404:
            raise
    region = client.meta.region_name
    extra = (
        {} if region in (None, "us-east-1") else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    )
    try:
        client.create_bucket(Bucket=name, **extra)
        return True
    except (client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
        return False


def allow(client, name: str, origins: list[str]) -> None:
    """Let browsers on pages of `origins` read and write with presigned URLs (CORS)."""
    rule = {
        "AllowedOrigins": origins,
        "AllowedMethods": ["GET", "HEAD", "PUT"],
        "AllowedHeaders": ["*"],
        "ExposeHeaders": ["ETag", "Content-Length", "Content-Range"],
        "MaxAgeSeconds": 3600,
    }
    client.put_bucket_cors(Bucket=name, CORSConfiguration={"CORSRules": [rule]})
