"""Moves the rows of another MLflow into this stack's database: a SQLite file, a ./mlruns folder, another
PostgreSQL database, or a backup that this command made.

First it looks for whatever the database would refuse or change, and with --check it ends there. Then it loads
everything in one transaction and compares both sides. The source is only read.
"""

import argparse
import logging
import sys
import time
import warnings
from contextlib import closing, contextmanager
from pathlib import Path

from stackops import settings
from stackops.backends import postgres
from stackops.errors import StackError
from stackops.migration import (
    files,
    hazards,
    load,
    older,
    pgloader,
    prepare,
    repair,
    source,
    staging,
    switches,
    target,
)
from stackops.migration.report import Hazard, Report, encrypted, full, judge, mapping, readable
from stackops.migration.report import arguments as options

HELP = "move another MLflow's rows into this stack's database"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    options(parser, "mlflow.db, an mlruns folder, postgresql+psycopg2://…, or a backup")
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
                judge(report, args, place.called)
                if args.check:
                    return
                if args.stage == "prepare":
                    hand_over(rows, place, names, env, work)
                    return
                move(rows, place, names, args, env, say)
    if args.json:
        print(report.as_json(), flush=True)
    say(f"moved {sum(report.rows.values()):,} rows in {time.monotonic() - started:.1f} s")


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
    copy, report.kind = prepare.make_copy(path, called, work, say)
    if report.kind == "file store":
        repairs = [*repairs, "renumber"]
    with closing(source.SQLite(copy, called)) as rows:
        mend(rows, place, wanted, repairs, report, say)
        yield rows, report


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
            report.renumbered = repair.renumber(rows.connection)
        prepare.map_artifacts(rows, wanted, report)
        if "rollups" in repairs:
            repair.drop_rollups(rows, say)
    report.found = hazards.find(rows, found)
    asked = [hazard for hazard in report.found if hazard.fix.removeprefix("FIX=") in repairs]
    if asked:
        repair.repair(rows, found, asked, repairs, say)
        report.found = hazards.find(rows, found)


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
        if revision not in files.history(part).known:
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
            report.found.append(Hazard("missing-table", name, "", 0, "", "the source has no such table", ""))
        names |= own & set(rows.tables)
    known = names | {name for part in files.PARTS for name in files.own_tables(part)}
    for name in sorted(set(rows.tables) - known):
        if count := rows.total(name):
            report.notes.append(f"{name} is no table of MLflow's and stays behind ({count:,} rows)")
    report.rows = {name: rows.total(name) for name in sorted(names & set(rows.tables))}
    report.notes += encrypted(report.rows)
    if not isinstance(rows, source.Backup):  # which was made here: the server has started over its rows
        report.found += switches.switched_off(rows, report.rows, env, isinstance(rows, source.SQLite))
    report.occupied = target.occupied(place, sorted(names))
    return sorted(names)


def move(rows, place: target.Target, names: list[str], args, env, say) -> None:
    """Load and verify; with --replace, write a backup first. Raises StackError; then nothing was changed."""
    if older.is_older(rows, place):
        with staging.undone(env, place):
            target.wait_for_silence(place)
            older.bring(place, rows, env, say)
            reserve(place, names, args, say)
            users = sorted(files.own_tables("users") & set(names)) if "users" in rows.parts else []
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
        raise full(place.called, occupied)
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
