"""Makes or revokes the token with which a user signs in without a browser, and prints it on standard output.

A token is the user's password in MLflow, so a user has one: a new one replaces it, and revoking it leaves a
password that nobody knows. It is signed and carries its end, so that one that is made up or too old is
refused without a look at the database. `stackops token ci` also adds the user `ci` if there is none.
"""

import argparse
import hashlib
import hmac
import logging
import re
import secrets as random
import sys
import time
import warnings
from collections.abc import Mapping

from stackops import accounts, settings
from stackops.errors import StackError, one_line

HELP = "make (or with --revoke take back) the token of USER"
DAY = 86_400
LONGEST = 366
"""Days that a token may live."""
FORM = re.compile(r"mst_([0-9a-f]{1,12})_([0-9a-f]{48})_([0-9a-f]{64})")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
"""Of users that are made here. Those of the provider have an @ or a colon in their names (sso.py)."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument("user", metavar="USER", help="a user of the stack, or the name of a new one")
    parser.add_argument("--days", default="90", metavar="N", help=f"at most {LONGEST} (default: 90)")
    parser.add_argument("--revoke", action="store_true", help="the user's token is worth nothing from now on")


def signature(key: str, user: str, until: str, word: str) -> str:
    """Return the signature of a token."""
    text = "\n".join(("token", user, until, word))
    return hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()


def new(key: str, user: str, until: int) -> str:
    """Return a new token of `user` that ends at the second `until`."""
    end, word = f"{until:x}", random.token_hex(24)
    return f"mst_{end}_{word}_{signature(key, user, end, word)}"


def is_valid(key: str, user: str, token: str, now: float) -> bool:
    """Whether this stack has signed `token` for `user` and its time is not over; it may still be revoked."""
    if not (parts := FORM.fullmatch(token)):
        return False
    until, word, signed = parts.groups()
    return hmac.compare_digest(signature(key, user, until, word), signed) and now < int(until, 16)


def days(text: str) -> int:
    """Return the number of days. Raises StackError unless it is from 1 to LONGEST."""
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= LONGEST:
        raise StackError(f"days: {text!r} is not a number from 1 to {LONGEST}")
    return int(text)


def key(env: Mapping[str, str]) -> str:
    """Return the key that signs tokens. Raises StackError."""
    return settings.secrets(env).need("flask_secret_key")


def issue(env: Mapping[str, str], user: str, lifetime: int) -> str:
    """Give the user a new token, which replaces the old one, and return it."""
    from mlflow.server import auth

    made = new(key(env), user, int(time.time()) + lifetime * DAY)
    auth.store.update_user(user, password=made)
    accounts.announce(accounts.marker(env))
    return made


def revoke(env: Mapping[str, str], user: str) -> None:
    """See that the user's token is worth nothing, in every process of the server."""
    from mlflow.server import auth

    auth.store.update_user(user, password=random.token_hex(32))
    accounts.announce(accounts.marker(env))


def run(args: argparse.Namespace) -> None:
    """Do it. Raises StackError."""
    lifetime, user = days(args.days), args.user
    if user == accounts.ADMIN:
        raise StackError(f"{user} signs in with the password in secrets/admin_password and has no token")

    env = settings.adopt()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)

    from mlflow.exceptions import MlflowException
    from mlflow.server import auth

    try:
        auth.store.init_db(auth.auth_config.database_uri)
        if not auth.store.has_user(user, use_primary=True):
            if args.revoke or not NAME.fullmatch(user):
                raise StackError(
                    f"there is no user {user!r}; people become users when they sign in for the first time, "
                    "and a new name here has small letters, digits, dots, '_' and '-'"
                )
            auth.store.create_user(user, random.token_hex(32))
            print(f"made the user {user}, who has no permission yet", file=sys.stderr)
        if args.revoke:
            revoke(env, user)
            print(f"the token of {user} is revoked", file=sys.stderr)
        else:
            print(issue(env, user, lifetime))
    except MlflowException as error:
        raise StackError(f"MLflow's users cannot be changed: {one_line(error)}") from None
