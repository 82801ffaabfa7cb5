"""Moves another MLflow's rows into this stack's SQLite file: from a SQLite file, a ./mlruns folder, or a
backup that this command made.

The source is only read. A copy of it is brought to this MLflow version and looked at, and with --check it
ends there. Then the copy takes the file's place, in one step.
"""

import argparse
import hashlib
import logging
import shutil
import sqlite3
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from stackops import settings
from stackops.backends import sqlite
from stackops.errors import StackError, one_line
from stackops.migration import prepare, switches
from stackops.migration.files import SEEDED, File, own_tables, sqlite_file
from stackops.migration.report import Report, encrypted, full, judge, mapping, readable
from stackops.migration.report import arguments as options

HELP = "move another MLflow's rows into this stack's SQLite file"
USERS = "auth.db"
Say = Callable[[str], None]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    options(parser, "mlflow.db, an mlruns folder, or a backup")


def run(args: argparse.Namespace) -> None:
    """Look, and unless --check was given, move. Raises StackError; then the target is as it was."""
    env = settings.adopt()
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    started = time.monotonic()

    def say(text: str) -> None:
        print(text, file=sys.stderr if args.json else sys.stdout, flush=True)

    with prepare.workplace() as work, explained():
        copy, target, report = look(args, env, work, say)
        judge(report, args, f"database {target.name}")
        if args.check:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with sqlite.exclusive(env):
            put(copy, target, report, args, say)
    if args.json:
        print(report.as_json(), flush=True)
    say(f"moved {sum(report.rows.values()):,} rows in {time.monotonic() - started:.1f} s")


@contextmanager
def explained() -> Iterator[None]:
    """Turn what SQLite says of the copy into one sentence; nothing was changed then."""
    try:
        yield
    except sqlite3.Error as error:
        raise StackError(
            f"the copy of the source cannot be used: {one_line(error)}; nothing was changed"
        ) from None


def look(args, env: Mapping[str, str], work: Path, say: Say) -> tuple[Path, Path, Report]:
    """Return the prepared copy, the file whose place it takes, and the report on it. Raises StackError."""
    called, wanted = args.called or args.source, mapping(args.artifacts)
    if "://" in args.source:
        raise StackError(f"{called} is no file; this stack takes a SQLite file or an mlruns folder")
    readable(Path(args.source), called)
    copy, kind = prepare.make_copy(Path(args.source), called, work, say)
    report = Report(called, kind)
    with closing(File(copy, called)) as rows:
        part = "tracking" if "tracking" in rows.parts else "users"
        if part == "users" and not settings.accounts(env):
            raise StackError(
                f"{called} holds MLflow's users, and this stack does not use them; answer auth: mlflow first"
            )
        if len(rows.parts) > 1:
            report.notes.append("MLflow's users in it are not used: here they have a file of their own")
        report.revision, own = rows.parts[part], sorted(own_tables(part) & set(rows.tables))
        report.rows = {name: rows.total(name) for name in own}
        if part == "tracking":
            prepare.map_artifacts(rows, wanted, report)
            report.notes += encrypted(report.rows)
            report.found = switches.switched_off(rows, report.rows, env, copied=False)
        sound(rows.connection, called)
    target = sqlite.database(env) if part == "tracking" else sqlite.database(env).with_name(USERS)
    report.occupied = occupied(target, own)
    return copy, target, report


def sound(connection: sqlite3.Connection, called: str) -> None:
    """Raise StackError unless SQLite finds the database whole, with its indexes."""
    (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise StackError(f"{called} is damaged ({one_line(found)}); bring a backup of it, or mend it first")


def occupied(target: Path, names: list[str]) -> dict[str, int]:
    """Return the tables of the file that hold more than a fresh stack's rows, with the number of those."""
    if not target.exists():
        return {}
    found = {}
    with sqlite_file(target, target.name) as connection:
        there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        for name in sorted(there & set(names)):
            only = f" WHERE NOT ({SEEDED[name]})" if name in SEEDED else ""
            if count := connection.execute(f'SELECT count(*) FROM "{name}"{only}').fetchone()[0]:
                found[name] = count
    return found


def put(copy: Path, target: Path, report: Report, args, say: Say) -> None:
    """Let the copy take the place of the target; with --replace, keep the old one first. Raises StackError.

    Renaming is the one step that changes something; whoever is killed before it has changed nothing.
    """
    incoming = target.with_name(f"{target.name}.incoming")
    try:
        shutil.copyfile(copy, incoming)
        sqlite.sync(incoming)
        if target.exists():
            shutil.copymode(target, incoming)
            let_go(target)
            if there := occupied(target, list(report.rows)):
                if not args.replace:
                    raise full(f"database {target.name}", there)
                keep(target, Path(args.backups), say)
        with incoming.open("rb") as new, copy.open("rb") as old:
            if hashlib.file_digest(new, "sha256").digest() != hashlib.file_digest(old, "sha256").digest():
                raise StackError(f"the disk gave back other bytes than were written to {incoming}; check it")
        incoming.replace(target)
        sqlite.sync(target.parent)
    except OSError as error:
        raise StackError(
            f"{target} cannot be written: {error.strerror}; make room, nothing was changed"
        ) from None
    finally:
        incoming.unlink(missing_ok=True)
    say(f"verified: {len(report.rows)} tables in one file, which is whole and was read back")


def let_go(target: Path) -> None:
    """Return when nobody has the file open, and all of it is in it: no log beside it. Raises StackError."""
    try:
        with closing(sqlite3.connect(target)) as connection:
            (mode,) = connection.execute("PRAGMA journal_mode=DELETE").fetchone()
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise StackError(
                f"{target.name} cannot be used: {one_line(error)}; nothing was changed"
            ) from None
        mode = "wal"
    if mode != "delete":
        raise StackError(f"{target.name} is in use; stop the server first")


def keep(target: Path, backups: Path, say: Say) -> None:
    """Copy the file into a new folder of backups. Raises StackError."""
    while (folder := backups / time.strftime("before-migrate-%Y%m%d-%H%M%S")).exists():
        time.sleep(0.2)
    path = folder / target.name
    try:
        folder.mkdir(mode=0o700, parents=True)
        shutil.copyfile(target, path)
        sqlite.sync(path)
        with closing(sqlite3.connect(path)) as connection:
            sound(connection, target.name)
    except OSError as error:
        raise StackError(
            f"the backup {folder} cannot be written: {error.strerror}; nothing was changed"
        ) from None
    brings_back = f"backups/{folder.name}" + ("" if target.name == "mlflow.db" else f"/{target.name}")
    say(f"backup: {folder.name}; the same command with FROM={brings_back} REPLACE=1 brings it back")
