"""Changes secrets while the stack lives on. scripts/rotate-secrets.sh calls it, three times:

`propose` writes each new secret beside the one in force; `switch`, with the server resting, makes the rest of
the stack accept them and puts them into force; `prove`, with the server back, shows that the new ones are
accepted and the old ones are not, and only then deletes the old ones. What is interrupted, the next run
finishes.

The secrets are named as NAME:KIND:GROUP:SERVICES, where KIND is a module of `rotation` and SERVICES are those
that read the secret at their start.
"""

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

from stackops import settings
from stackops.errors import StackError
from stackops.rotation.files import Files

HELP = "change secrets; scripts/rotate-secrets.sh calls it"
GIVEN = "given"


@dataclass(frozen=True)
class Secret:
    """One row of the table in scripts/rotate-secrets.sh."""

    name: str
    kind: str
    group: str
    services: tuple[str, ...]

    @property
    def module(self) -> ModuleType:
        """The module that knows how to change it."""
        return importlib.import_module(f"stackops.rotation.{self.kind}")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument("step", choices=["propose", "switch", "prove", "put-back"])
    parser.add_argument("secrets", nargs="+", metavar="NAME:KIND:GROUP:SERVICES")
    parser.add_argument("--only", default="all", help="names or groups, with commas (default: all)")
    parser.add_argument("--folder", default="/rotate", help="the secrets, writable (default: /rotate)")


def table(rows: Sequence[str]) -> list[Secret]:
    """Return the rows of the table."""
    found = []
    for row in rows:
        name, kind, group, services = row.split(":")
        found.append(Secret(name, kind, group, tuple(filter(None, services.split(",")))))
    return found


def chosen(secrets: Sequence[Secret], only: str) -> list[Secret]:
    """Return the secrets that `only` means (words with commas between them), and those that are made of them.

    `all` leaves out what others issue. Raises StackError for a word that means none.
    """
    if only == "all":
        return [secret for secret in secrets if secret.kind != GIVEN]
    words = only.split(",")
    for word in words:
        if not any(word in (secret.name, secret.group) for secret in secrets):
            names = ", ".join(secret.name for secret in secrets)
            groups = ", ".join(dict.fromkeys(secret.group for secret in secrets))
            raise StackError(f"there is no secret {word!r}; SECRET is one of {names}, or a group: {groups}")
    named = [secret for secret in secrets if secret.name in words or secret.group in words]
    made_of = {made for secret in named if (made := getattr(secret.module, "MADE_OF", None))}
    kinds = {secret.kind for secret in named}
    group = {secret.group for secret in named}
    return [
        secret
        for secret in secrets
        if secret in named
        or (secret.group in group and secret.kind in made_of)
        or (secret.group in group and getattr(secret.module, "MADE_OF", None) in kinds)
    ]


def agenda(files: Files, secrets: Sequence[Secret], only: str) -> tuple[list[Secret], bool]:
    """Return what is to be done, in order, and whether it is the end of an interrupted run.

    What was replaced and not proved comes before anything new: then only that is finished.
    """
    proposed, replaced = files.begun([secret.name for secret in secrets])
    wanted = [] if replaced else [secret.name for secret in chosen(secrets, only)]
    names = {*wanted, *proposed, *replaced}
    due = [secret for secret in secrets if secret.name in names]
    due.sort(key=lambda s: (hasattr(s.module, "MADE_OF"), not hasattr(s.module, "FIRST")))
    return due, bool(proposed or replaced)


def propose(files: Files, due: Sequence[Secret]) -> list[str]:
    """Write the proposals that are missing; return the services that read any of them."""
    for secret in due:
        if not files.next(secret.name).exists() and not files.old(secret.name).exists():
            files.propose(secret.name, secret.module.propose(secret.name, files))
    return list(dict.fromkeys(service for secret in due for service in secret.services))


def switch(files: Files, due: Sequence[Secret], say: Callable[[str], None]) -> None:
    """Let the stack accept each proposal and put it into force, one after the other."""
    for secret in due:
        said = ""
        if step := getattr(secret.module, "switch", None):
            # The first ones come without; the others connect to the database with what is in force by then.
            env = settings.present(os.environ) if hasattr(secret.module, "FIRST") else settings.adopt()
            said = step(env, secret.name, files.before(secret.name), files.coming(secret.name))
        files.replace(secret.name)
        say(f"{secret.name}: new" + (f" ({said})" if said else ""))


def prove(files: Files, due: Sequence[Secret], say: Callable[[str], None]) -> None:
    """Prove all, then forget the old ones. Raises StackError and keeps them if a proof fails."""
    env = settings.adopt()
    for secret in due:
        if (proof := getattr(secret.module, "prove", None)) and files.old(secret.name).exists():
            proof(env, secret.name, files.before(secret.name), files.text(secret.name))
    for secret in due:
        files.forget(secret.name)
    say(f"proved: {len(due)} new secrets work, the old ones are refused and deleted")


def put_back(files: Files, due: Sequence[Secret], say: Callable[[str], None]) -> None:
    """Put what others issue into force as it was: nothing else of the stack knows of it, so that is all."""
    for secret in due:
        if secret.kind == GIVEN:
            files.put_back(secret.name)
            say(f"{secret.name}: as it was")


def run(args: argparse.Namespace) -> None:
    """Do one step. Raises StackError."""
    os.environ["SECRETS_DIR"] = args.folder
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    files, secrets = Files(args.folder), table(args.secrets)
    due, unfinished = agenda(files, secrets, args.only)

    def say(text: str) -> None:
        print(f"rotate-secrets: {text}", file=sys.stderr, flush=True)

    if args.step == "propose":
        if unfinished:
            say(f"an earlier run was interrupted: finishing {', '.join(secret.name for secret in due)}")
        print(" ".join(propose(files, due)))
    elif args.step == "switch":
        switch(files, due, say)
    elif args.step == "prove":
        prove(files, due, say)
    else:
        put_back(files, due, say)
