"""The list of users at the proxy: the admin's line follows the secret admin_password, the others stay."""

from stackops import htpasswd
from stackops.rotation.files import Files

MADE_OF = "plain"
ADMIN = "admin"


def propose(name: str, files: Files) -> str:
    """Return the list with the admin's new hash."""
    line = htpasswd.line(ADMIN, files.coming("admin_password"))
    others = [other for other in files.text(name).splitlines() if not other.startswith(f"{ADMIN}:")]
    return "\n".join([line, *others]) + "\n"
