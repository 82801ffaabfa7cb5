"""What a look at the source and at this stack's database has found, and what ARTIFACTS says of it."""

import argparse
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stackops.errors import StackError, one_line

BACKUPS = "/backups"
LOCATIONS = 12  # of artifacts, in the report for a person


def arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the options that do not depend on this stack's database; `what` says what FROM may be."""
    parser.add_argument("source", metavar="FROM", help=what)
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
        "--backups", metavar="FOLDER", default=BACKUPS, help=f"where backups go (default: {BACKUPS})"
    )


@dataclass(frozen=True)
class Hazard:
    """Rows that would not arrive as they are; `fix` is what to add to the command, or empty: ask a person."""

    code: str
    table: str
    column: str
    count: int
    example: str
    why: str
    fix: str

    def as_dict(self) -> dict:
        """Return it for --json."""
        return asdict(self)


@dataclass
class Report:
    """What the look at source and target found, for a person or for --json."""

    source: str
    kind: str = ""
    revision: str = ""
    rows: dict[str, int] = field(default_factory=dict)
    found: list[Hazard] = field(default_factory=list)
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


def some(counts: Mapping[str, int]) -> str:
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


def on_disk(uri: str) -> bool:
    """Whether an artifact location is a folder, so that clients would look for it on their own disks."""
    return uri.startswith("file:") or not re.match(r"[a-z][\w+.-]+:", uri)


def elsewhere(uri: str) -> str:
    """Return the advice for artifacts in a folder that nobody mapped."""
    return (
        f"the artifacts in {uri} are files of the old machine; bring them with make artifacts-move, "
        f"and add ARTIFACTS={uri}=mlflow-artifacts:"
    )


def encrypted(rows: Mapping[str, int]) -> list[str]:
    """Return the notes on keys that do not move with the rows of these tables."""
    keys = (("secrets", "crypto_kek_passphrase"), ("webhooks", "webhook_encryption_key"))
    return [
        f"{table} are encrypted: put the key of the old server into secrets/{secret}"
        for table, secret in keys
        if rows.get(table)
    ]


def judge(report: Report, args: argparse.Namespace, called: str) -> None:
    """Print the report; `called` is the target. Raises StackError if something is in the way."""
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
        raise full(called, report.occupied)


def full(called: str, occupied: Mapping[str, int]) -> StackError:
    """Return the refusal to replace rows that nobody said may go."""
    return StackError(
        f"the {called} has rows already ({some(occupied)}); REPLACE=1 replaces them after a backup"
    )
