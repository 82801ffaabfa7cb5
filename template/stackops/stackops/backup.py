"""Makes one backup: the database as it is now, and then every artifact, with a list of all that is in it.

Clients may go on writing: whatever was acknowledged before the beginning is in the backup, and it is
consistent. What an earlier backup has is not copied again. A backup that does not end leaves nothing:
neither a set nor a changed one. An earlier set that is damaged is named and left alone.
"""

import argparse
import errno
import importlib
import importlib.metadata
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from stackops import settings
from stackops.errors import StackError, one_line
from stackops.saving import artifacts, journal, listing, lock, manifest
from stackops.saving.manifest import Damaged, Manifest
from stackops.saving.place import Place, absent, digest, pool_name
from stackops.saving.sealing import Seal

HELP = "back up database and artifacts"
OTHER_SECRETS = "/run/other"
KEEP = 14
KEYS = "secrets/crypto_kek_passphrase and secrets/webhook_encryption_key"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    place_arguments(parser)
    parser.add_argument("--no-artifacts", action="store_true", help="the database alone")
    parser.add_argument(
        "--no-pruning", action="store_true", help="let older backups stay, however many there are"
    )
    parser.add_argument(
        "--template", default="", metavar="VERSION", help="the release that the stack was rendered from"
    )


def place_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where backups are."""
    parser.add_argument(
        "--place",
        default="/backups",
        metavar="URI",
        help="a folder, or the URI of one in a store (default: /backups)",
    )
    parser.add_argument(
        "--called", default="", metavar="NAME", help="how messages name it (default: as it is)"
    )


def opened(args: argparse.Namespace) -> Place:
    """Return the place that the options name. Raises StackError."""
    called = args.called or args.place
    # A key of its own, or else the stack's.
    own = Path(OTHER_SECRETS).is_dir() and any(Path(OTHER_SECRETS).iterdir())
    keys = OTHER_SECRETS if own else str(settings.secrets(os.environ).folder)
    try:
        from artifacts_move.__main__ import other_environment

        return Place(args.place, called, keys, other_environment(dict(os.environ)))
    except ImportError:
        raise StackError("this runs in the image that make backup, restore and backups build") from None
    except StackError:
        raise
    except Exception as error:
        raise StackError(f"{called} cannot be used: {one_line(error)}") from error


def database(env: Mapping[str, str]):
    """Return the module that saves and loads this stack's database."""
    return importlib.import_module(f"stackops.saving.{env['STACK_BACKEND']}")


def keep(env: Mapping[str, str]) -> int:
    """Return how many backups stay. Raises StackError if BACKUP_KEEP is no number above 0."""
    value = env.get("BACKUP_KEEP") or str(KEEP)
    if not value.isdecimal() or int(value) < 1:
        raise StackError(f"BACKUP_KEEP is {value!r}; it must be a whole number above 0")
    return int(value)


def now() -> datetime:
    """Return the time."""
    return datetime.now(UTC).replace(microsecond=0)


def in_words(size: float) -> str:
    """Return a number of bytes for people."""
    from artifacts_move.copying import size_in_words

    return size_in_words(size)


def say(text: str) -> None:
    """Print one line at once."""
    print(text, flush=True)


@dataclass
class Options:
    """What is asked for."""

    project: str
    template: str
    artifacts: bool
    keep: int | None
    recipient: str


def run(args: argparse.Namespace) -> None:
    """Make a backup and write down how it ended. Raises StackError."""
    env = settings.adopt()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    options = Options(
        project=settings.need(env, "STACK_NAME"),
        template=args.template,
        artifacts=not args.no_artifacts,
        keep=None if args.no_pruning else keep(env),
        recipient=env.get("BACKUP_AGE_RECIPIENT", "").strip(),
    )
    with lock.alone("make backup"):
        began, place, record = now(), None, {"to": args.called or args.place}
        try:
            place = opened(args)
            record |= make(env, place, options, began)
        except BaseException as error:
            record |= {"ok": False, "error": one_line(error) if str(error) else "interrupted"}
            note(place, began, record)
            raise
        note(place, began, record | {"ok": True, "error": ""})


def note(place: Place | None, began: datetime, record: dict) -> None:
    """Write last.json, for the stack and beside the backups. A backup holds without it too."""
    text = journal.text({"began": began.isoformat(), "ended": now().isoformat(), **record})
    try:
        journal.write(text)
    except OSError as error:
        say(f"note: 'make status' will not know how this backup ended: {one_line(error, 120)}")
    if place:
        try:
            place.write(journal.NAME, text.encode())
        except Exception as error:
            say(f"note: {journal.NAME} cannot be written to {place.called}: {one_line(error, 120)}")


@contextmanager
def undone(place: Place, name: str, added: list[str]) -> Iterator[None]:
    """Take away what a backup that fails has left. A full disk becomes a sentence."""
    try:
        yield
    except BaseException as error:
        try:
            place.remove(name)
            place.drop(added)
            place.end()
        except Exception as second:
            say(f"note: {place.called}/{name} is not whole and cannot be removed: {one_line(second, 120)}")
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise StackError(
                f"the disk of {place.called} is full: make room there ('make backups KEEP=2' removes "
                "all but the newest two), then try again; the earlier backups are as they were"
            ) from None
        raise


def make(env: Mapping[str, str], place: Place, options: Options, began: datetime) -> dict:
    """Make a backup; return what is to be written down. Raises StackError; then nothing is left of it."""
    seal = Seal(options.recipient)
    names = place.names()
    earlier, damaged = sets(place, names, options.project)
    for name in names:
        if name in damaged:
            say(f"note: {damaged[name]}; it is left alone, and nothing of it is used")
        elif name not in earlier:
            say(f"{name} is what an interrupted backup has left: removed")
            place.remove(name)
    name = manifest.next_name(began, names)
    added: list[str] = []
    with undone(place, name, added):
        folder = place.begin(name)
        made = contents(env, place, options, seal, folder, earlier, added)
        made.began, made.name, made.ended = began.isoformat(), name, now().isoformat()
        place.finish(made)
    place.end()
    say(f"made {name} in {place.called}: {made.rows:,} rows, {in_words(made.bytes)}")
    number = options.keep
    if emptied(made, earlier):
        number = None
        say("note: the artifact store is empty, and was not when earlier backups were made: they all stay")
    earlier[name] = made
    prune(place, earlier, number, sorted(damaged))
    if options.recipient:
        say(
            f"only the private key of {options.recipient} opens it; and a restored stack needs {KEYS} "
            "of today"
        )
    else:
        say(
            f"keep {KEYS} beside it, in another safe place: what users keep encrypted in the database "
            f"needs them"
        )
    return {
        "set": name,
        "bytes": made.bytes,
        "rows": made.rows,
        "objects": (made.artifacts or {}).get("objects", 0),
        "copied": len(added),
    }


def emptied(made: Manifest, earlier: Mapping[str, Manifest]) -> bool:
    """Return whether a store of which earlier backups have something has nothing any more."""
    return (
        made.artifacts is not None
        and not made.artifacts["objects"]
        and any(one.artifacts and one.artifacts["objects"] for one in earlier.values())
    )


def sets(place: Place, names: list[str], project: str) -> tuple[dict[str, Manifest], dict[str, str]]:
    """Return the backups that are whole, and of those that are damaged what is wrong with each.

    Only what can be read quickly is looked at: the manifest and the list of artifacts. Raises StackError if
    the backups are another stack's.
    """
    found, damaged = {}, {}
    for name in names:
        try:
            one = place.manifest(name)
            if one and one.artifacts is not None:
                listed(place, one)
        except Damaged as error:
            damaged[name] = str(error)
            continue
        if one is None:
            continue
        if project and one.project != project:
            raise StackError(
                f"{place.called} has backups of the stack {one.project}; give each stack a place of its own"
            )
        found[name] = one
    return found, damaged


def listed(place: Place, one: Manifest) -> Path:
    """Return the list of a backup's artifacts. Raises Damaged if it is not as it was written."""
    try:
        path = place.fetch(one.name, manifest.LISTING)
        whole = digest(path) == one.files.get(manifest.LISTING)
    except Exception as error:
        if not absent(error):
            raise
        whole = False
    if not whole:
        raise Damaged(f"the backup {one.name} is damaged: {manifest.LISTING} is not what was written")
    return path


def contents(
    env: Mapping[str, str],
    place: Place,
    options: Options,
    seal: Seal,
    folder: Path,
    earlier: Mapping[str, Manifest],
    added: list[str],
) -> Manifest:
    """Make all files but the manifest, and return that."""
    started = time.monotonic()
    shot = database(env).snapshot(env, folder)
    size = sum((folder / file).stat().st_size for file in shot.files)
    say(
        f"database: {sum(shot.tables.values()):,} rows in {len(shot.tables)} tables, {in_words(size)} "
        f"({time.monotonic() - started:.1f} s)"
    )
    paths = [seal.file(folder / file) for file in shot.files]
    store, numbers = None, None
    if options.artifacts:
        started = time.monotonic()
        store = artifacts.own_store(env)
        there = place.pooled()
        known, trusted = remembered(place, there, earlier, store.where)
        saved = artifacts.save(store, place, seal, known, trusted, there, added)
        listing.write(folder / manifest.LISTING, saved.entries)
        paths.append(folder / manifest.LISTING)
        numbers = {"objects": len(saved.entries), "bytes": sum(entry.size for entry in saved.entries)}
        say(
            f"artifacts: {numbers['objects']:,} objects, {in_words(numbers['bytes'])}; {len(saved.added):,} "
            f"of them new, {in_words(saved.added_bytes)} ({time.monotonic() - started:.1f} s)"
        )
    return Manifest(
        project=options.project,
        began="",
        ended="",
        backend=env["STACK_BACKEND"],
        mlflow=importlib.metadata.version("mlflow"),
        template=options.template,
        revisions=shot.revisions,
        tables=shot.tables,
        sums=shot.sums,
        schema=shot.schema,
        store={
            "uri": settings.artifact_uri(env),
            "access": env.get("ARTIFACT_ACCESS", ""),
            "where": store.where if store else "",
        },
        files={path.name: digest(path) for path in paths},
        artifacts=numbers,
        age=options.recipient,
    )


def remembered(
    place: Place, there: Mapping[str, int], earlier: Mapping[str, Manifest], where: str
) -> tuple[dict[str, listing.Entry], set[str]]:
    """Return what the newest backup of this very store says of its objects, and what of the pool is certain.

    `there` is the pool: name -> size. Certain is what a whole backup names; what an interrupted one has left
    is written again.
    """
    known: dict[str, listing.Entry] = {}
    trusted: set[str] = set()
    newest = next((n for n in sorted(earlier, reverse=True) if earlier[n].store.get("where") == where), None)
    for name, one in earlier.items():
        if one.artifacts is None:
            continue
        for entry in listing.read(place.fetch(name, manifest.LISTING), name):
            pooled = pool_name(entry.sha256, one.age)
            size = there.get(pooled)
            if size is not None and (one.age or size == entry.size):
                trusted.add(pooled)
            if name == newest:
                known[entry.name] = entry
    return known, trusted


def prune(
    place: Place,
    found: dict[str, Manifest],
    number: int | None,
    damaged: list[str],
    why: str = "BACKUP_KEEP",
) -> None:
    """Remove the oldest backups above that number, and from the pool what no backup needs.

    What a damaged one needs is not known, so the pool stays as it is while there is one.
    """
    if number is not None:
        for name in manifest.surplus(list(found), number):
            place.remove(name)
            del found[name]
            say(f"removed {name}: {why}={number}")
    if damaged:
        say(f"note: no artifact is removed from the pool while a damaged backup is there ({damaged[0]})")
        return
    needed = {
        pool_name(entry.sha256, one.age)
        for name, one in found.items()
        if one.artifacts is not None
        for entry in listing.read(place.fetch(name, manifest.LISTING), name)
    }
    place.drop([name for name in place.pooled() if name not in needed])
    place.end()
