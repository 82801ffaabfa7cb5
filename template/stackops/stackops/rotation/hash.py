"""The list of users: the admin's line follows the secret admin_password, the others stay."""

from stackops import htpasswd
from stackops.rotation.files import Files

MADE_OF = "plain"
ADMIN = "admin"


def propose(name: str, files: Files) -> str:
    """Return the list with the admin's new hash."""
    return htpasswd.changed(files.text(name), ADMIN, htpasswd.make(files.coming("admin_password")))
