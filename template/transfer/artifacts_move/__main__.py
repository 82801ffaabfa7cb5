"""Copies every artifact between this stack's store and another one, and has the database follow.

Runs in a container of its own (`make artifacts-move`), with the settings of the server for this stack's store and
OTHER_… for the other. Nothing is deleted. If anything goes wrong the database stays as it was; a plain second
run goes on where the first one ended.
"""

import argparse
import hashlib
import os
import sys
from pathlib import Path

from stackops import artifact_uris, settings
from stackops.errors import StackError, one_line

from artifacts_move import copying, stores
from artifacts_move.copying import Journal, Report, objects, size_in_words

OTHER_SECRETS = "/run/other"
JOURNALS = Path(os.environ.get("TMPDIR") or "/var/tmp", "artifacts-move")


def arguments(argv: list[str]) -> argparse.Namespace:
    """Return what is asked for."""
    parser = argparse.ArgumentParser(prog="artifacts-move", description=__doc__)
    side = parser.add_mutually_exclusive_group(required=True)
    side.add_argument("--to", metavar="URI", help="copy from this stack's store to that one")
    side.add_argument("--from", dest="source", metavar="URI", help="copy from that store to this stack's")
    parser.add_argument("--known-as", metavar="URI", help="that store as the database knows it (default: as given)")
    parser.add_argument("--copy-only", action="store_true", help="leave the locations in the database as they are")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument("--keep", choices=("source", "target"), default="", help="which side wins where both differ")
    parser.add_argument(
        "--distrust", action="store_true", help="read again, on both sides, what earlier runs have copied"
    )
    parser.add_argument("--jobs", type=int, default=16, help="objects at once (default: 16)")
    return parser.parse_args(argv)


def other_environment(env: dict[str, str]) -> dict[str, str]:
    """Return what the other store's client goes by: OTHER_ENDPOINT and OTHER_REGION, and nothing of ours."""
    return {
        "MLFLOW_S3_ENDPOINT_URL": env.get("OTHER_ENDPOINT", ""),
        "AWS_DEFAULT_REGION": env.get("OTHER_REGION", ""),
        "MLFLOW_S3_IGNORE_TLS": env.get("OTHER_IGNORE_TLS", ""),
    }


def mapping(source: str, target: str, direct: bool) -> artifact_uris.Mapping:
    """Return how locations change. Clients follow those in the target only with direct access, and never into a
    folder of the server; else they ask the server. What only the server follows names the target."""
    olds = [source] if "://" in source else [source, f"file://{source}"]
    new = target if "://" in target else f"file://{target}"
    followed = target if direct and "://" in target else artifact_uris.SERVED
    return [pair for old in olds for pair in ((old, followed), (old, new))]


def apart(source: stores.Store, target: stores.Store) -> None:
    """Raise StackError if one store is in the other."""
    one, endpoint = source.where.partition(" at ")[::2]
    other, other_endpoint = target.where.partition(" at ")[::2]
    one, other = f"{one.rstrip('/')}/", f"{other.rstrip('/')}/"
    if endpoint == other_endpoint and (one.startswith(other) or other.startswith(one)):
        raise StackError(f"{source.where} and {target.where} are one place, or one is in the other; give another")


def engine(uri: str):
    """Return the database. Its locations change only when all artifacts are there."""
    import sqlalchemy
    from sqlalchemy.pool import NullPool

    return sqlalchemy.create_engine(uri, poolclass=NullPool)


def say(text: str) -> None:
    """Print one line at once."""
    print(f"artifacts-move: {text}", flush=True)


def dry_run(source: stores.Store, target: stores.Store, journal: Journal, changes: list) -> None:
    """Say what would be done; reads the lists of both sides and no object."""
    found, there = copying.look(source), copying.look(target)
    needs = copying.plan(found, there, journal.all())
    copies = needs["copy"]
    say(f"would copy {objects(len(copies))}, {size_in_words(sum(item.size for item in copies))}")
    say(
        f"{len(needs['skip']):,} are already there, {len(needs['compare']):,} are there and would be compared, "
        f"{len(needs['different']):,} are there and different"
    )
    for change in changes:
        say(f"would change {change.rows:,} of {change.place.name}, e.g. {change.before} -> {change.after}")


def tell(report: Report, changes: list) -> None:
    """Print the report."""
    rate = report.copied_bytes / report.seconds if report.seconds else 0
    say(
        f"copied {objects(report.copied)}, {size_in_words(report.copied_bytes)} in {report.seconds:.1f} s "
        f"({size_in_words(rate)}/s); {report.same:,} were there already; all were compared with what was read"
    )
    if report.kept:
        say(f"left alone, because it is different in the target: {objects(report.kept)}")
    if changes:
        say(f"changed the locations of {artifact_uris.in_words(changes)}")
    say(f"OK: {objects(report.found)}, {size_in_words(report.found_bytes)}")


def run(args: argparse.Namespace) -> None:
    """Do everything. Raises StackError with the cause."""
    env = settings.adopt()
    backend = settings.backend(env)
    here = settings.artifact_uri(env)
    own = stores.open_store(here, here, str(settings.secrets(env).folder), env)
    uri = args.source or args.to
    other = stores.open_store(uri, args.known_as or uri, OTHER_SECRETS, other_environment(env))
    source, target = (other, own) if args.source else (own, other)
    apart(source, target)
    direct = env.get("ARTIFACT_ACCESS") == "direct"
    changing = [] if args.copy_only else mapping(source.uri, target.uri, direct)
    database = engine(backend.uri(env))
    with database.connect() as connection:
        changes = artifact_uris.count(connection, changing)
    artifact_uris.refuse_too_long(changes)

    JOURNALS.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(f"{source.where}\n{target.where}".encode()).hexdigest()[:24]
    journal = Journal(JOURNALS / f"{name}.db")
    say(f"from {source.where} to {target.where}")
    if args.dry_run:
        dry_run(source, target, journal, changes)
        return
    report = copying.move(source, target, journal, say, args.jobs, args.keep, args.distrust)
    if not report.found:
        raise StackError(f"there is nothing in {source.where}; is it the right place?")
    if report.different:
        raise StackError(
            f"{objects(len(report.different))} in {target.where} differ from what is in {source.where} (one is "
            f"{report.different[0]}); KEEP=source copies them again, KEEP=target leaves them; "
            "the locations in the database were not changed"
        )
    with backend.exclusive(env), database.begin() as connection:
        changes = artifact_uris.apply(connection, changing)
    tell(report, changes)


def main() -> int:
    """Run, and end with 0, or with 1 and one sentence."""
    args = arguments(sys.argv[1:])
    try:
        run(args)
        return 0
    except StackError as error:
        print(f"artifacts-move: error: {one_line(error, 1000)}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get("STACKOPS_DEBUG"):
            raise
        print(f"artifacts-move: error: {type(error).__name__}: {one_line(error)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
