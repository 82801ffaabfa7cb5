"""Lists the backups that there are, the newest first; with --last, says how the last run ended.

With --keep, removes the oldest ones before: on a full disk no new backup makes them go.
"""

import argparse
import json
import os
from datetime import UTC, datetime

from stackops import backup, settings
from stackops.errors import StackError
from stackops.saving import journal, lock, manifest
from stackops.saving.manifest import Damaged, Manifest
from stackops.saving.place import Place
from stackops.words import ago

HELP = "list the backups"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    backup.place_arguments(parser)
    parser.add_argument("--last", action="store_true", help="only say how the last backup ended")
    parser.add_argument(
        "--keep", metavar="NUMBER", help="first remove all but the newest, and what only they needed"
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def age(stamp: str, now: datetime) -> str:
    """Return the same for a time in ISO 8601."""
    return ago((now - datetime.fromisoformat(stamp)).total_seconds())


def last(found: dict | None, now: datetime) -> str:
    """Return how the last backup ended, in one line."""
    if found is None:
        return "backup: none was made yet (make backup)"
    if not found["ok"]:
        return f"backup: FAILED {age(found['ended'], now)}: {found['error']}"
    return f"backup: {found['set']} in {found['to']}, {age(found['ended'], now)}"


def row(one: Manifest, verified: dict | None, now: datetime) -> tuple[str, ...]:
    """Return what the list says of a backup."""
    return (
        one.name,
        age(one.ended, now),
        f"{one.rows:,}",
        "-" if one.artifacts is None else f"{one.artifacts['objects']:,}",
        backup.in_words(one.bytes),
        one.mlflow,
        "age" if one.age else "-",
        f"{age(verified['at'], now)} ({verified['how']})" if verified else "no",
    )


def thin(place: Place, number: str) -> None:
    """Remove all but the newest backups. Raises StackError if that is no number, or they are others'."""
    if not number.isdecimal() or int(number) < 1:
        raise StackError(f"KEEP is {number!r}; it must be a whole number above 0")
    env = settings.present(os.environ)
    with lock.alone("make backups"):
        found, damaged = backup.sets(place, place.names(), settings.need(env, "STACK_NAME"))
        backup.prune(place, found, int(number), sorted(damaged), "KEEP")


def run(args: argparse.Namespace) -> None:
    """Print it. Raises StackError if the place cannot be read."""
    now = datetime.now(UTC)
    if args.last:
        print(json.dumps(journal.read()) if args.json else last(journal.read(), now), flush=True)
        return
    place = backup.opened(args)
    if args.keep is not None:
        thin(place, args.keep)
    rows, listed = [("backup", "age", "rows", "artifacts", "size", "MLflow", "encrypted", "verified")], []
    for name in sorted(place.names(), reverse=True):
        try:
            one = place.manifest(name)
            if one and one.artifacts is not None:
                backup.listed(place, one)
        except Damaged:
            rows.append((name, "", "", "", "", "", "", "DAMAGED"))
            continue
        if one is None:
            rows.append((name, "", "", "", "", "", "", "unfinished"))
            continue
        verified = manifest.verified(place.read(f"{name}/{manifest.VERIFIED}"))
        rows.append(row(one, verified, now))
        listed.append(
            {**json.loads(manifest.to_text(one)), "name": name, "bytes": one.bytes, "verified": verified}
        )
    if args.json:
        print(json.dumps(listed, indent=1), flush=True)
        return
    if not rows[1:]:
        print(f"there is no backup in {place.called}", flush=True)
        return
    widths = [max(len(one[column]) for one in rows) for column in range(len(rows[0]))]
    for one in rows:
        print(
            "  ".join(text.ljust(width) for text, width in zip(one, widths, strict=True)).rstrip(), flush=True
        )
