"""Adds, lists and removes the users of this stack, and changes their passwords.

A password comes as one line on standard input, never as an argument. Changes take effect at once, without
a restart. The admin's password is the secret admin_password: it is changed there, and the admin stays.
"""

import argparse
import os
import sys
from collections.abc import Mapping
from typing import Protocol

from stackops import settings
from stackops.errors import StackError
from stackops.settings import ADMIN, MINIMUM

HELP = "add, list and remove users, and change their passwords"
LONGEST = 200
"""Characters of a password. MLflow's own users have the same minimum."""


class Users(Protocol):
    """Where users are kept. The methods raise StackError."""

    def names(self) -> list[tuple[str, str]]:
        """Return (name, what else is to be said) of each."""

    def add(self, name: str, password: str) -> None:
        """Add a user who is not there yet."""

    def password(self, name: str, password: str) -> None:
        """Give a user another password."""

    def remove(self, name: str) -> None:
        """Remove a user."""


def home(env: Mapping[str, str]) -> Users:
    """Return the users of this stack. Raises StackError."""
    if not (logins := settings.logins(env)):
        raise StackError("this stack keeps no users")
    return logins.users(env)


def check_name(name: str) -> str:
    """Return the name. Raises StackError if it cannot be a user's."""
    if not 1 <= len(name) <= 100 or name.startswith("#") or any(c == ":" or c.isspace() for c in name):
        raise StackError("a user's name has 1 to 100 characters, no blank, no colon, and no # in front")
    if not name.isprintable():
        raise StackError("the user's name has characters that cannot be typed")
    return name


def check_password(password: str) -> str:
    """Return the password. Raises StackError if it is too weak or cannot be typed."""
    if not MINIMUM <= len(password) <= LONGEST:
        raise StackError(f"a password has {MINIMUM} to {LONGEST} characters")
    if not password.isprintable():
        raise StackError("the password has characters that cannot be typed")
    return password


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="print the names")
    for action, text in (
        ("add", "add a user; the password comes from standard input"),
        ("password", "change a password; the new one comes from standard input"),
        ("remove", "remove a user"),
    ):
        actions.add_parser(action, help=text).add_argument("name", metavar="NAME")


def run(args: argparse.Namespace) -> None:
    """Do one action and say what was done."""
    if args.action == "list":
        for name, more in sorted(home(os.environ).names()):
            print(f"{name}  {more}" if more else name)
        return
    name = check_name(args.name)
    if name == ADMIN and args.action == "remove":
        raise StackError(f"{ADMIN} stays: somebody must be able to look after the others")
    if name == ADMIN and args.action == "password":
        raise StackError(
            f"the password of {ADMIN} is in secrets/admin_password: write the new one there, "
            "then run make down and make up"
        )
    if args.action == "remove":
        home(os.environ).remove(name)
        print(f"removed {name}")
        return
    password = check_password(sys.stdin.readline().rstrip("\r\n"))
    if args.action == "add":
        home(os.environ).add(name, password)
        print(f"added {name}")
    else:
        home(os.environ).password(name, password)
        print(f"{name} has a new password")
