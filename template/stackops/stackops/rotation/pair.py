"""A key of this stack's own object store, as the AWS tools read it. The access key is its name, and stays."""

import configparser
import re
from collections.abc import Mapping

from stackops.errors import StackError
from stackops.rotation.files import Files, random

SECRET = re.compile(r"(?m)^(aws_secret_access_key\s*=\s*)(\S+)")


def propose(name: str, files: Files) -> str:
    """Return the file with another secret key. Raises StackError if it has none."""
    text, count = SECRET.subn(lambda match: match[1] + random(), files.text(name))
    if count != 1:
        raise StackError(f"secrets/{name} holds no key of the form that the AWS tools read; run make init")
    return text + "\n"


def key(text: str) -> dict[str, str]:
    """Return boto3's arguments from the text of such a file."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(text)
    return {name: parser["default"][name] for name in ("aws_access_key_id", "aws_secret_access_key")}


def accepted(env: Mapping[str, str], text: str) -> bool:
    """Whether the store knows the key. Raises StackError if the store does not answer."""
    from botocore.exceptions import BotoCoreError, ClientError

    from stackops.stores import s3

    bucket, _ = s3.location(env)
    plain = {name: value for name, value in env.items() if name != "AWS_SHARED_CREDENTIALS_FILE"}
    try:
        s3.client(plain, **key(text)).list_objects_v2(Bucket=bucket, MaxKeys=1)
        return True
    except ClientError as error:
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (401, 403):
            return False
        raise s3.explain(error, "the object store") from None
    except BotoCoreError as error:
        raise s3.explain(error, "the object store") from None


def prove(env: Mapping[str, str], name: str, old: str, new: str) -> None:
    """The store accepts the new key and refuses the old one."""
    for text, wanted in ((new, True), (old, False)):
        if accepted(env, text) != wanted:
            raise StackError(f"the object store {'refuses the new' if wanted else 'accepts the old'} {name}")
