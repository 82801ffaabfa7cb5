"""How the last backup and the last clean-up ended, for `make status`, `make doctor` and the metrics."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

NAME = "last.json"
CLEANUP = "last-clean-up.json"
DUE = "due.json"


def path(name: str = NAME) -> Path:
    """Return the file, in the volume that all containers of the stack share."""
    return Path(os.environ.get("TMPDIR") or "/var/tmp", "backup", name)


def text(content: Mapping) -> str:
    """Return it as text.

    Keys: began, ended, ok, error; of a backup also set, to, bytes, objects, copied, rows; of a clean-up done.
    """
    return json.dumps(content, indent=1) + "\n"


def write(text: str, name: str = NAME) -> None:
    """Write it, wholly or not at all."""
    file = path(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{name}")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def read(name: str = NAME) -> dict | float | None:
    """Return it, or None if there was none yet."""
    try:
        return json.loads(path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def plan(moment: float) -> None:
    """Write down when the next backup is due, in seconds since 1970. On a full disk nobody is told."""
    with suppress(OSError):
        write(json.dumps(moment), DUE)


def due() -> float | None:
    """Return that moment, or None if nobody makes backups without being told to."""
    found = read(DUE)
    return float(found) if isinstance(found, int | float) else None
