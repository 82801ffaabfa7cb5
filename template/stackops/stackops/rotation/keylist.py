"""The store's own list of keys: the secret key beside each access key follows the files of those keys."""

import json
from collections.abc import Mapping

from stackops import settings
from stackops.rotation import pair
from stackops.rotation.files import Files

MADE_OF = "pair"


def follow(text: str, keys: dict[str, str]) -> str:
    """Return the list with the secret keys of `keys` (access key -> secret key)."""
    content = json.loads(text)
    for identity in content["identities"]:
        for credential in identity.get("credentials", ()):
            access = credential["accessKey"]
            credential["secretKey"] = keys.get(access, credential["secretKey"])
    lines = ",\n  ".join(json.dumps(identity) for identity in content.pop("identities"))
    more = "".join(f", {json.dumps(name)}: {json.dumps(value)}" for name, value in content.items())
    return f'{{"identities": [\n  {lines}\n]{more}}}\n'


def propose(name: str, files: Files) -> str:
    """Return the list with the keys that are about to be in force."""
    keys = {}
    for path in files.folder.iterdir():
        if not path.name.startswith(".") and pair.SECRET.search(text := files.coming(path.name)):
            found = pair.key(text)
            keys[found["aws_access_key_id"]] = found["aws_secret_access_key"]
    return follow(files.text(name), keys)


def prove(env: Mapping[str, str], name: str, old: str, new: str) -> None:
    """`pair` proves the keys. A list of another kind of access, with keys that are no more, is deleted.

    `make init` makes that one anew when the access changes.
    """
    for path in settings.secrets(env).folder.glob("object_store*.json"):
        if path.name != name:
            path.unlink()
