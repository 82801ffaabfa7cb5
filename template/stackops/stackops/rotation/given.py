"""A secret that others issue: it comes by standard input. The stack's start shows whether it works."""

import sys

from stackops.rotation.files import Files


def propose(name: str, files: Files) -> str:
    """Return what standard input says, without the newline with which editors end a file."""
    return sys.stdin.read().rstrip("\r\n")
