"""Loads a backup into this stack: its own, or a new stack's, with another artifact store or another database.

First everything is checked, and nothing is touched: the manifest, the checksum of every file and of every
artifact, that this MLflow knows the schema, that nothing would be lost. Then artifacts are copied, and the
database is replaced last, wholly or not at all. Artifacts that the store has besides stay.
"""

import argparse
import importlib.util
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from stackops import artifact_uris, backup, schema, settings
from stackops.errors import StackError
from stackops.saving import artifacts, listing, lock, manifest
from stackops.saving.manifest import Manifest
from stackops.saving.place import Place, digest
from stackops.saving.sealing import SUFFIX, Opener

HELP = "check a backup and load it"
IDENTITY = "/run/other/age_identity"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    backup.place_arguments(parser)
    parser.add_argument("--at", default="latest", metavar="TIME", help="which backup (default: latest)")
    parser.add_argument(
        "--check", action="store_true", help="only check; print the backup's name to standard output"
    )
    parser.add_argument(
        "--only", choices=["artifacts"], help="copy what the store does not have, and leave the database"
    )
    parser.add_argument("--replace", action="store_true", help="replace what the stack holds")
    parser.add_argument(
        "--mark", default="", metavar="HOW", help="write down that the backup was proved to be good"
    )
    parser.add_argument(
        "--fix", default="", metavar="NAME[,NAME…]", help="repairs on the way to another kind of database"
    )


def say(text: str) -> None:
    """Print one line at once, beside what is printed for scripts."""
    print(text, file=sys.stderr, flush=True)


@dataclass
class Backup:
    """A backup, and what reads it."""

    place: Place
    found: Manifest
    opener: Opener

    def entries(self) -> list[listing.Entry]:
        """Return its artifacts. Raises StackError if the list is damaged."""
        if self.found.artifacts is None:
            return []
        return list(listing.read(self.place.fetch(self.found.name, manifest.LISTING), self.found.name))

    def unpacked(self, folder: Path) -> Manifest:
        """Put the database's files into `folder`, decrypted; return the manifest with their real names."""
        files = {}
        for name in self.found.files:
            if name == manifest.LISTING:
                continue
            plain, path = name.removesuffix(SUFFIX), self.place.fetch(self.found.name, name)
            if plain != name:
                self.opener.file(path, folder / plain)
            else:
                (folder / plain).symlink_to(path)
            files[plain] = digest(folder / plain)
        return replace(self.found, files=files, name=self.found.name)


def run(args: argparse.Namespace) -> None:
    """Check, and unless --check was given, load. Raises StackError."""
    env = settings.adopt()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    place = backup.opened(args)
    name = manifest.choose(
        [n for n in place.names() if place.read(f"{n}/{manifest.NAME}")], args.at, place.called
    )
    whole = Backup(place, place.manifest(name), Opener(Path(IDENTITY)))
    if args.mark:
        mark(whole, args.mark)
        return
    with lock.alone("make restore"):
        try:
            if args.check:
                check(env, whole, args.replace or bool(args.only))
                print(name, flush=True)
            elif args.only:
                bring_artifacts(env, whole, args.replace)
            else:
                load(env, whole, args.fix)
        finally:
            place.end()


def mark(whole: Backup, how: str) -> None:
    """Write down beside the backup that it was proved to be good."""
    import json

    text = json.dumps({"at": backup.now().isoformat(), "how": how}) + "\n"
    whole.place.write(f"{whole.found.name}/{manifest.VERIFIED}", text.encode())


def check(env: Mapping[str, str], whole: Backup, replacing: bool) -> None:
    """Raise StackError unless this backup is as it was written, fits here, and nothing would be lost."""
    found, place = whole.found, whole.place
    fits(env, found)
    for file, known in found.files.items():
        path = place.fetch(found.name, file)
        if not path.is_file() or digest(path) != known:
            raise StackError(
                f"the backup {found.name} is damaged: {file} is not what was written; take another one"
            )
    if found.age:
        whole.opener.need()
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
            whole.unpacked(Path(folder))
    entries = whole.entries()
    artifacts.check(place, entries, whole.opener, found.age)
    say(f"{found.name}: {found.rows:,} rows and {len(entries):,} artifacts are as they were saved")
    if not replacing:
        refuse_to_lose(env, found)


def fits(env: Mapping[str, str], found: Manifest) -> None:
    """Raise StackError unless this stack can take the backup."""
    if found.backend != env["STACK_BACKEND"] and not importlib.util.find_spec("stackops.saving.across"):
        raise StackError(
            f"the backup {found.name} is of another kind of database ({found.backend}), which this stack's "
            "cannot take; restore it into a stack whose answer for backend is of that kind"
        )
    folders = {"tracking": ("store", "db_migrations"), "users": ("server", "auth", "db", "migrations")}
    from alembic.script import ScriptDirectory

    for part, revision in found.revisions.items():
        if part == "users" and not settings.accounts(env):
            continue
        known = {
            one.revision for one in ScriptDirectory(str(schema.migrations(*folders[part]))).walk_revisions()
        }
        if revision not in known:
            raise StackError(
                f"the backup {found.name} comes from a newer MLflow ({found.mlflow}, schema {revision}) "
                "than this stack's; update this stack first"
            )


def refuse_to_lose(env: Mapping[str, str], found: Manifest) -> None:
    """Raise StackError if the stack holds something already."""
    occupied = backup.database(env).occupied(env)
    if occupied:
        table, rows = max(occupied.items(), key=lambda item: item[1])
        raise StackError(
            f"this stack has rows already ({rows:,} in {table}); REPLACE=1 replaces them after a backup"
        )
    if found.artifacts is not None and next(iter(artifacts.own_store(env).items()), None):
        raise StackError(
            "this stack has artifacts already; REPLACE=1 brings back those of the backup after another one"
        )


def load(env: Mapping[str, str], whole: Backup, fix: str) -> None:
    """Copy the artifacts, then replace the database. Raises StackError."""
    found = whole.found
    fits(env, found)
    if found.artifacts is not None:
        bring_artifacts(env, whole, True)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        plain = whole.unpacked(folder)
        for file, known in found.files.items():
            if file in plain.files and plain.files[file] != known:
                raise StackError(f"the backup {found.name} is damaged: {file} is not what was written")
        if found.backend == env["STACK_BACKEND"]:
            backup.database(env).load(env, folder, plain, say)
        else:
            from stackops.saving import across

            across.load(env, folder, plain, fix, say)
    say(f"database: {found.rows:,} rows in {len(found.tables)} tables; counts and checksums are right")
    follow(env, found)


def bring_artifacts(env: Mapping[str, str], whole: Backup, replacing: bool) -> None:
    """Copy the artifacts that the store does not have, and with `replacing` those that differ."""
    found, entries = whole.found, whole.entries()
    if found.artifacts is None:
        raise StackError(f"the backup {found.name} is of the database alone: take another one with AT=")
    store = artifacts.own_store(env)
    same = store.where == found.store.get("where")
    back = artifacts.bring_back(store, whole.place, entries, whole.opener, found.age, same, replacing, say)
    say(
        f"artifacts: {len(entries):,} are there, {back.count:,} of them were copied, "
        f"{backup.in_words(back.bytes)}"
    )
    if back.left:
        say(f"{back.left:,} differ from the backup and were left as they are: REPLACE=1 replaces them")


def follow(env: Mapping[str, str], found: Manifest) -> None:
    """Change the locations of artifacts in the database if this stack's store is another one."""
    import sqlalchemy
    from artifacts_move.__main__ import mapping
    from sqlalchemy.pool import NullPool

    here = settings.artifact_uri(env)
    if (there := found.store["uri"]) == here:
        return
    engine = sqlalchemy.create_engine(settings.backend(env).uri(env), poolclass=NullPool)
    with engine.begin() as connection:
        changes = artifact_uris.apply(
            connection, mapping(there, here, env.get("ARTIFACT_ACCESS") == "direct")
        )
    if changes:
        say(f"artifacts: changed the locations of {artifact_uris.in_words(changes)}")
