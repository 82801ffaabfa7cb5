"""What is written about a backup, in its manifest.json: the last file of a set, without which it is none."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime, timedelta

from stackops.errors import StackError, one_line

FORMAT = 1
NAME = "manifest.json"
LISTING = "artifacts.jsonl.gz"
VERIFIED = "verified.json"
POOL = "artifacts"
STAMP = "%Y%m%dT%H%M%SZ"
IS_SET = re.compile(r"\d{8}T\d{6}Z")


class Damaged(StackError):
    """A backup is not as it was written."""


@dataclass(frozen=True)
class File:
    """A file of a set as it is kept: its size and SHA-256."""

    size: int
    sha256: str


@dataclass
class Snapshot:
    """A database in files.

    What they are called, the schema of each part (tracking, users) as Alembic names it, and the number of
    rows by table. Some databases have a checksum by table, and a schema for the tables, as well.
    """

    files: list[str]
    revisions: dict[str, str]
    tables: dict[str, int]
    sums: dict[str, str] = field(default_factory=dict)
    schema: str = ""


@dataclass
class Manifest:
    """Everything about one backup. `artifacts` is None if it was made without; `age` is who can read it."""

    project: str
    began: str
    ended: str
    backend: str
    mlflow: str
    template: str
    revisions: dict[str, str]
    tables: dict[str, int]
    sums: dict[str, str]
    schema: str
    store: dict[str, str]
    files: dict[str, File]
    artifacts: dict[str, int] | None
    age: str = ""
    format: int = FORMAT
    name: str = field(default="", compare=False)

    @property
    def rows(self) -> int:
        """The number of all rows."""
        return sum(self.tables.values())

    @property
    def bytes(self) -> int:
        """What the files and the artifacts of this backup take, those that it shares with others too."""
        return sum(file.size for file in self.files.values()) + (self.artifacts or {}).get("bytes", 0)


def _sum(content: Mapping) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def to_text(manifest: Manifest) -> str:
    """Return the text of manifest.json; its last line is the checksum of the rest."""
    content = {name: value for name, value in asdict(manifest).items() if name != "name"}
    return json.dumps({**content, "sha256": _sum(content)}, indent=1) + "\n"


def from_text(text: bytes, name: str) -> Manifest:
    """Return what manifest.json says of the backup `name`. Raises Damaged if it is not as it was written."""
    try:
        content = json.loads(text)
        written = content.pop("sha256")
        if content["format"] > FORMAT:
            raise StackError(
                f"the backup {name} was made by a newer release of the stack (format {content['format']}); "
                "update this stack first"
            )
        if _sum(content) != written:
            raise Damaged(f"the backup {name} is damaged: its manifest.json was altered; take another one")
        known = {one.name for one in fields(Manifest)}
        made = Manifest(**{key: value for key, value in content.items() if key in known}, name=name)
        made.files = {key: File(**value) for key, value in made.files.items()}
        return made
    except StackError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(
            f"the backup {name} is damaged: its manifest.json cannot be read ({one_line(error, 80)}); "
            "take another one"
        ) from None


def next_name(now: datetime, names: list[str]) -> str:
    """Return the name of a new set: the time, or a second after the newest if the clock was set back."""
    name = now.astimezone(UTC).strftime(STAMP)
    if names and name <= (newest := max(names)):
        name = (datetime.strptime(newest, STAMP) + timedelta(seconds=1)).strftime(STAMP)
    return name


def verified(text: bytes | None) -> dict | None:
    """Return when and how a backup was proved to be good, or None if nothing readable says so."""
    try:
        found = json.loads(text or b"null")
        datetime.fromisoformat(found["at"])
        return {"at": str(found["at"]), "how": str(found["how"])}
    except (ValueError, KeyError, TypeError):
        return None


def surplus(names: list[str], keep: int) -> list[str]:
    """Return the sets that are one too many, oldest first; the newest `keep` stay."""
    return sorted(names)[: max(0, len(names) - keep)]


def choose(names: list[str], wanted: str, where: str) -> str:
    """Return the set that AT names: `latest`, or the start of one name only. Raises StackError."""
    if not names:
        raise StackError(f"there is no backup in {where}; look for the right place")
    if wanted in ("", "latest"):
        return max(names)
    fitting = [name for name in names if name.startswith(wanted)]
    if len(fitting) == 1:
        return fitting[0]
    these = ", ".join(sorted(names)[-5:])
    raise StackError(
        f"AT={wanted} is {'no backup' if not fitting else f'{len(fitting)} backups'} in {where}; "
        f"the newest are {these}"
    )
