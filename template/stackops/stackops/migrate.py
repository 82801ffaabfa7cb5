"""Moves the rows of another MLflow into this stack's database: a SQLite file, a ./mlruns folder, another
PostgreSQL database, or a backup that this command made.

First it looks for whatever the database would refuse or change, and with --check it ends there. Then it loads
everything in one transaction and compares both sides. The source is only read.
"""

import argparse
import json
import logging
import os
import re
import sys
import time
import warnings
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from stackops import artifact_uris, settings
from stackops.backends import postgres
from stackops.errors import StackError, one_line
from stackops.migration import hazards, load, older, pgloader, prepare, source, staging, target

HELP = "move another MLflow's rows into this stack's database"
BACKUPS = "/backups"
LOCATIONS = 12  # of artifacts, in the report for a person


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument(
        "source", metavar="FROM", help="mlflow.db, an mlruns folder, postgresql+psycopg2://…, or a backup"
    )
    parser.add_argument("--called", metavar="NAME", help="how messages name FROM (default: as it is)")
    parser.add_argument("--check", action="store_true", help="only look; change nothing")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    parser.add_argument(
        "--replace", action="store_true", help="replace rows that are there, after a backup of them"
    )
    parser.add_argument(
        "--artifacts",
        metavar="OLD=NEW[,OLD=NEW…]",
        default="",
        help="where artifacts are now: replaces these prefixes",
    )
    parser.add_argument(
        "--fix", metavar="NAME[,NAME…]", default="", help=f"repairs on the copy: {', '.join(hazards.FIXES)}"
    )
    parser.add_argument(
        "--stage", choices=("all", "prepare", "finish"), default="all", help="the two halves around pgloader"
    )
    parser.add_argument(
        "--password-stdin",
        action="store_true",
        help="read the source database's password from standard input",
    )
    parser.add_argument(
        "--passfile-stdin", action="store_true", help="read a passfile of libpq's from standard input instead"
    )
    parser.add_argument(
        "--backups", metavar="FOLDER", default=BACKUPS, help=f"where backups go (default: {BACKUPS})"
    )


@dataclass
class Report:
    """What the look at source and target found, for a person or for --json."""

    source: str
    kind: str = ""
    revision: str = ""
    rows: dict[str, int] = field(default_factory=dict)
    found: list[hazards.Hazard] = field(default_factory=list)
    occupied: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    renumbered: dict[int, int] = field(default_factory=dict)
    locations: list[dict] = field(default_factory=list)

    def as_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(
            {
                **vars(self),
                "found": [hazard.as_dict() for hazard in self.found],
                "ok": not (self.found or self.occupied),
            },
            indent=2,
        )

    def as_text(self) -> str:
        """Return the report as a person reads it."""
        full = {name: count for name, count in self.rows.items() if count}
        lines = [f"source: {self.source}, {self.kind}, schema {self.revision}"]
        lines.append(f"rows: {sum(full.values()):,} in {len(full)} tables")
        if self.renumbered:
            lines.append("experiments with new ids (old -> new):")
            lines += [f"  {old} -> {new}" for old, new in self.renumbered.items()]
        if self.locations:
            lines.append("artifacts:")
            lines += [f"  {place['rows']:>9,}  {_where(place)}" for place in self.locations[:LOCATIONS]]
            if more := self.locations[LOCATIONS:]:
                lines.append(f"  {sum(place['rows'] for place in more):>9,}  in {len(more)} other places")
        lines += [f"note: {note}" for note in self.notes]
        if self.found:
            rows = [("rows", "where", "what", "for example", "add to the command")]
            rows += [
                (
                    f"{h.count:,}",
                    f"{h.table}.{h.column}" if h.column else h.table,
                    h.why,
                    one_line(h.example, 70),
                    h.fix or "-",
                )
                for h in self.found
            ]
            widths = [max(len(row[column]) for row in rows) for column in range(5)]
            lines.append("in the way:")
            lines += [
                (
                    "  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
                ).rstrip()
                for row in rows
            ]
        else:
            lines.append("in the way: nothing")
        if self.occupied:
            lines.append(
                f"target: has rows already ({some(self.occupied)}); REPLACE=1 replaces them after a backup"
            )
        else:
            lines.append("target: empty")
        return "\n".join(lines)


def _where(place: dict) -> str:
    """Return an artifact location, and where it is mapped to."""
    return one_line(place["from"], 120) + (f" -> {place['to']}" if place["to"] else "")


def some(counts: dict[str, int]) -> str:
    """Return the largest three of the counts in words."""
    largest = sorted(counts.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{count:,} in {name}" for name, count in largest)


def mapping(text: str) -> list[tuple[str, str]]:
    """Return the pairs of ARTIFACTS. Raises StackError for anything but OLD=NEW."""
    pairs = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        old, equals, new = word.partition("=")
        if not (old and equals and new):
            raise StackError(
                f"ARTIFACTS has {word!r}; write OLD=NEW, for example ARTIFACTS=./mlruns=mlflow-artifacts:"
            )
        pairs.append((old, new))
    return pairs


def fixes(text: str) -> list[str]:
    """Return the names in FIX. Raises StackError for one that there is not."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in hazards.FIXES:
            raise StackError(f"FIX has {name!r}, which is no repair; there are {', '.join(hazards.FIXES)}")
    return names


def run(args: argparse.Namespace) -> None:
    """Look, and unless --check was given, move. Raises StackError; then the target is as it was."""
    env = settings.adopt()
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    started = time.monotonic()
    to_stderr = args.json

    def say(text: str) -> None:
        print(text, file=sys.stderr if to_stderr else sys.stdout, flush=True)

    wanted, repairs = mapping(args.artifacts), fixes(args.fix)
    with target.opened(env) as place, load.explained(place), prepare.workplace(args.stage) as work:
        if args.stage == "finish":
            report = finish(place, work, args, env, say)
        else:
            with opened_source(args, env, place, work, wanted, repairs, say) as (rows, report):
                names = look(rows, place, report, env)
                judge(place, args, report)
                if args.check:
                    return
                if args.stage == "prepare":
                    hand_over(rows, place, names, env, work)
                    return
                move(rows, place, names, args, env, say)
    if args.json:
        print(report.as_json(), flush=True)
    say(f"moved {sum(report.rows.values()):,} rows in {time.monotonic() - started:.1f} s")


def judge(place: target.Target, args: argparse.Namespace, report: Report) -> None:
    """Print the report, and raise StackError if something is in the way."""
    refused = report.found or (report.occupied and not args.replace)
    if not args.json:
        print(report.as_text(), flush=True)
    elif args.check or refused:
        print(report.as_json(), flush=True)
    if report.found:
        raise StackError(
            f"{len(report.found)} things are in the way, see above; add what the last column says, "
            "or mend the source"
        )
    if refused:
        raise full(place, report.occupied)


@contextmanager
def opened_source(args, env, place: target.Target, work: Path, wanted, repairs, say):
    """Give the source, ready to be loaded, and the report on it. Raises StackError if it cannot be moved."""
    called = args.called or args.source
    report = Report(called)
    path = Path(args.source)
    if "://" in args.source:
        with closing(other_database(args, env)) as rows:
            report.source, report.kind = rows.called, "PostgreSQL"
            refuse_changes(report.kind, wanted, repairs)
            yield rows, report
        return
    readable(path, called)
    if (path / source.Backup.MANIFEST).is_file():
        rows, report.kind = source.Backup(path, called), "backup"
        refuse_changes(report.kind, wanted, repairs)
        yield rows, report
        return
    copy = work / "copy.db"
    if path.is_dir() and (path / "mlflow.db").is_file():
        path, called = path / "mlflow.db", f"{called.rstrip('/')}/mlflow.db"
    if path.is_dir():
        if not prepare.is_file_store(path):
            raise StackError(
                f"{called} is neither an mlruns folder nor a backup, and has no mlflow.db; look for the "
                "right path"
            )
        report.kind = "file store"
        repairs = [*repairs, "renumber"]
        prepare.copy_file_store(path, called, work, copy, say)
    else:
        report.kind = "SQLite"
        prepare.copy_sqlite(path, called, copy)
    prepare.upgrade(copy, called, say)
    with closing(source.SQLite(copy, called)) as rows:
        mend(rows, place, wanted, repairs, report, say)
        yield rows, report


def readable(path: Path, called: str) -> None:
    """Raise StackError unless the source is there and this user may read it, with its folder."""
    try:
        path.stat()
        if path.is_dir():
            next(path.iterdir(), None)
    except FileNotFoundError:
        raise StackError(f"there is no {called}; look for the right path") from None
    except OSError as error:
        raise StackError(
            f"{called} cannot be read: {error.strerror}; the user {os.getuid()}, who runs the stack, must be "
            "able to read it and to enter its folder"
        ) from None


def refuse_changes(kind: str, wanted, repairs) -> None:
    """Raise StackError if something is to be changed on the way that is never copied."""
    if wanted or repairs:
        raise StackError(
            f"ARTIFACTS and FIX work on a copy, and a {kind} is moved as it is; move first, then use make "
            "artifacts-move"
        )


def other_database(args, env) -> source.Postgres:
    """Connect to the source database; its password goes into a private file of its own for libpq."""
    passfile = str(settings.runtime_dir(env) / "pgpass-source")
    if args.passfile_stdin:
        settings.write_private({passfile: sys.stdin.read()})
    elif args.password_stdin:
        from sqlalchemy.engine import make_url

        password = sys.stdin.readline().rstrip("\r\n")
        settings.write_private({passfile: postgres.passfile(make_url(args.source).username or "*", password)})
    else:
        passfile = None
    return source.Postgres(args.source, passfile)


def mend(rows: source.SQLite, place: target.Target, wanted, repairs, report: Report, say) -> None:
    """Renumber, rewrite and repair the copy, and note what is left in the way."""
    found = {name: table for name, table in place.tables.items() if name in rows.tables}
    if "tracking" in rows.parts:
        if "renumber" in repairs:
            report.renumbered = prepare.renumber(rows.connection)
        for uri, count in prepare.locations(rows.connection).items():
            report.locations.append({"from": uri, "rows": count, "to": artifact_uris.rewrite(uri, wanted)})
        left = [place["from"] for place in report.locations if not place["to"] and on_disk(place["from"])]
        report.notes += [elsewhere(one_line(uri, 500)) for uri in left[:LOCATIONS]]
        if more := left[LOCATIONS:]:
            report.notes.append(f"so are the artifacts in {len(more)} other places, which --json lists")
        if wanted:
            prepare.rewrite(rows.path, wanted)
        if "rollups" in repairs:
            prepare.drop_rollups(rows, say)
    report.found = hazards.find(rows, found)
    asked = [hazard for hazard in report.found if hazard.fix.removeprefix("FIX=") in repairs]
    if asked:
        prepare.repair(rows, found, asked, repairs, say)
        report.found = hazards.find(rows, found)


def on_disk(uri: str) -> bool:
    """Whether an artifact location is a folder, so that clients would look for it on their own disks."""
    return uri.startswith("file:") or not re.match(r"[a-z][\w+.-]+:", uri)


def elsewhere(uri: str) -> str:
    """Return the advice for artifacts in a folder that nobody mapped."""
    return (
        f"the artifacts in {uri} are files of the old machine; bring them with make artifacts-move, "
        f"and add ARTIFACTS={uri}=mlflow-artifacts:"
    )


def look(rows, place: target.Target, report: Report, env) -> list[str]:
    """Compare both sides' schemas, fill the report, and return the tables to move. Raises StackError."""
    if not rows.parts:
        raise StackError(
            f"{rows.called} is no MLflow database: it has no schema of MLflow's; look for the right one"
        )
    names: set[str] = set()
    for part, revision in rows.parts.items():
        if part not in place.parts:
            if len(rows.parts) == 1:
                raise StackError(
                    f"{rows.called} holds MLflow's users, and this stack does not use them; answer auth: "
                    "mlflow first"
                )
            report.notes.append("MLflow's users stay behind: this stack does not use them")
            continue
        newest = place.parts[part]
        if revision not in source.history(part).known:
            raise StackError(
                f"{rows.called} comes from a newer MLflow than this stack's (schema {revision}); "
                "raise the stack's version first"
            )
        if revision != newest and part == "users":
            raise StackError(
                f"MLflow's users in {rows.called} have the schema {revision} and this stack's {newest}; "
                "bring a copy of that database to this MLflow version first (mlflow.server.auth db upgrade)"
            )
        own = place.mlflow_tables(part)
        report.revision = revision
        if revision != newest:
            report.notes.append(f"the schema {revision} is older: a copy of the rows goes to {newest}")
            names |= own
            continue
        for name in sorted(own - set(rows.tables)):
            report.found.append(
                hazards.Hazard("missing-table", name, "", 0, "", "the source has no such table", "")
            )
        names |= own & set(rows.tables)
    known = names | {name for part in source.PARTS for name in target.own_tables(part)}
    for name in sorted(set(rows.tables) - known):
        if count := rows.total(name):
            report.notes.append(f"{name} is no table of MLflow's and stays behind ({count:,} rows)")
    report.rows = {name: rows.total(name) for name in sorted(names & set(rows.tables))}
    for table, secret in (("secrets", "crypto_kek_passphrase"), ("webhooks", "webhook_encryption_key")):
        if report.rows.get(table):
            report.notes.append(f"{table} are encrypted: put the key of the old server into secrets/{secret}")
    if not isinstance(rows, source.Backup):  # which was made here: the server has started over its rows
        report.found += hazards.switched_off(rows, report.rows, env, isinstance(rows, source.SQLite))
    report.occupied = target.occupied(place, sorted(names))
    return sorted(names)


def full(place: target.Target, occupied: dict[str, int]) -> StackError:
    """Return the refusal to replace rows that nobody said may go."""
    return StackError(
        f"the {place.called} has rows already ({some(occupied)}); REPLACE=1 replaces them after a backup"
    )


def move(rows, place: target.Target, names: list[str], args, env, say) -> None:
    """Load and verify; with --replace, write a backup first. Raises StackError; then nothing was changed."""
    if older.is_older(rows, place):
        with staging.undone(env, place):
            target.wait_for_silence(place)
            older.bring(place, rows, env, say)
            reserve(place, names, args, say)
            users = sorted(target.own_tables("users") & set(names)) if "users" in rows.parts else []
            older.finish(place, rows, users, say)
        return
    reserve(place, names, args, say)
    staging.drop(place)
    load.load(place, rows, names, say)


def reserve(place: target.Target, names: list[str], args, say) -> None:
    """Keep everybody else away, and with --replace write a backup of the rows. Raises StackError."""
    target.wait_for_silence(place)
    target.lock(place, names)
    occupied = target.occupied(place, names)
    if occupied and not args.replace:
        raise full(place, occupied)
    if occupied:
        folder = Path(args.backups) / time.strftime("before-migrate-%Y%m%d-%H%M%S")
        source.write_backup(place.connection, {n: place.tables[n] for n in names}, place.parts, folder)
        say(f"backup: {folder.name}; make migrate FROM=backups/{folder.name} REPLACE=1 brings it back")


def hand_over(rows, place: target.Target, names: list[str], env, work: Path) -> None:
    """Make everything ready for pgloader. Raises StackError if it cannot load this source."""
    if not isinstance(rows, source.SQLite) or "tracking" not in rows.parts:
        raise StackError(
            "pgloader loads only MLflow's SQLite files and folders; leave ENGINE out for this source"
        )
    target.wait_for_silence(place)
    pgloader.save(work, names)
    staging.make(place, env)


def finish(place: target.Target, work: Path, args, env, say) -> Report:
    """Do what comes after pgloader. Raises StackError; then the old tables are as they were."""
    names = pgloader.remembered(work)
    called = args.called or args.source
    with staging.undone(env, place), closing(source.SQLite(work / "copy.db", called)) as rows:
        reserve(place, names, args, say)
        pgloader.finish(place, rows, names, say)
        return Report(
            rows.called, "SQLite", rows.parts["tracking"], {name: rows.total(name) for name in names}
        )
