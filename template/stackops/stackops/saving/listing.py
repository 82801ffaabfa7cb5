"""The list of a backup's artifacts: a JSON object a line, packed, in the order of the store."""

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stackops.errors import StackError, one_line


@dataclass(frozen=True, slots=True)
class Entry:
    """An artifact: its name in the store, size, SHA-256, and what the store calls this version of it."""

    name: str
    size: int
    sha256: str
    version: str


def write(path: Path, entries: Iterable[Entry]) -> None:
    """Write the list."""
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=5) as file:
        for one in entries:
            file.write(json.dumps([one.name, one.size, one.sha256, one.version], ensure_ascii=False) + "\n")


def read(path: Path, called: str) -> Iterator[Entry]:
    """Yield the artifacts of a list. Raises StackError if it is damaged."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                name, size, sha256, version = json.loads(line)
                yield Entry(str(name), int(size), str(sha256), str(version))
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise StackError(
            f"the list of artifacts of the backup {called} is damaged ({one_line(error, 80)})"
        ) from None
