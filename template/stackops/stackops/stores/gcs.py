"""A Google Cloud Storage bucket: gs://BUCKET[/prefix].

Credentials are a service account's key file or the machine's identity.
"""

from collections.abc import Mapping
from urllib.parse import urlsplit

from stackops.errors import StackError, one_line
from stackops.settings import Secrets, artifact_uri

TIMEOUT = (4, 8)
KEY = "gcs_credentials.json"


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
