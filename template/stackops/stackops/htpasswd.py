"""Reads a password from standard input and prints a line for an htpasswd file: NAME:$6$...

SHA-512 crypt with 5000 rounds: bcrypt would cost the reverse proxy 30 times more for every single request.
"""

import argparse
import sys

from stackops.errors import StackError

HELP = "print an htpasswd line for NAME; the password comes from standard input"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument("name", metavar="NAME", help="the user's name")


def line(name: str, password: str) -> str:
    """Return the line. Raises StackError for a name or a password that cannot be used."""
    from passlib.hash import sha512_crypt

    if not name or any(c == ":" or c.isspace() or not c.isprintable() for c in name):
        raise StackError("a user's name is not empty and has no colon and no blank")
    if not password or not password.isprintable():
        raise StackError(
            "the password is empty or has characters that cannot be typed; give one line on standard input"
        )
    return f"{name}:{sha512_crypt.using(rounds=5000).hash(password)}"


def run(args: argparse.Namespace) -> None:
    """Read one line and print one line."""
    print(line(args.name, sys.stdin.readline().rstrip("\r\n")))
