"""How the last backup ended, for `make status`, `make doctor` and the metrics."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

NAME = "last.json"


def path() -> Path:
    """Return the file, in the volume that all containers of the stack share."""
    return Path(os.environ.get("TMPDIR") or "/var/tmp", "backup", NAME)


def text(content: Mapping) -> str:
    """Return it as text. Keys: began, ended, ok, set, to, bytes, objects, copied, rows, error."""
    return json.dumps(content, indent=1) + "\n"


def write(text: str) -> None:
    """Write it, wholly or not at all."""
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{NAME}")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def read() -> dict | None:
    """Return it, or None if there was no backup yet."""
    try:
        return json.loads(path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
