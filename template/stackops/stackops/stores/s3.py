"""An S3 bucket: AWS, or any server that speaks S3 (MLFLOW_S3_ENDPOINT_URL).

boto3 finds credentials and region by itself: AWS_SHARED_CREDENTIALS_FILE, a role of the machine, and so on.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from stackops.errors import StackError, one_line
from stackops.settings import Secrets, artifact_uri

TIMEOUTS = {"connect_timeout": 4, "read_timeout": 8, "retries": {"total_max_attempts": 2, "mode": "standard"}}

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


def settle() -> None:
    """Let every boto3 client of this process give up a connection after a few seconds (default: 60)."""
    import boto3
    import botocore.session
    from botocore.config import Config

    session = botocore.session.get_session()
    session.set_default_client_config(Config(connect_timeout=TIMEOUTS["connect_timeout"]))
    boto3.setup_default_session(botocore_session=session)
