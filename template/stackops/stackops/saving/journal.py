"""How the last backup ended, for `make status`, `make doctor` and the metrics."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

NAME = "last.json"
DUE = "due.json"


def path() -> Path:
    """Return the file, in the volume that all containers of the stack share."""
    return Path(os.environ.get("TMPDIR") or "/var/tmp", "backup", NAME)


def write(content: Mapping) -> str:
    """Write it, and return its text. Keys: began, ended, ok, set, to, bytes, objects, copied, rows, error."""
    text = json.dumps(content, indent=1) + "\n"
    _write(path(), text)
    return text


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def read() -> dict | None:
    """Return it, or None if there was no backup yet."""
    try:
        return json.loads(path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def plan(moment: float) -> None:
    """Write down when the next backup is due, in seconds since 1970. On a full disk nobody is told."""
    with suppress(OSError):
        _write(path().with_name(DUE), json.dumps(moment))


def due() -> float | None:
    """Return that moment, or None if nobody makes backups without being told to."""
    try:
        return float(json.loads(path().with_name(DUE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
