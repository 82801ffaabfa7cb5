"""Whose is a file in the store? Text only.

MLflow puts the id of a run, a logged model or a trace into the path of everything that belongs to it:
`EXPERIMENT/RUN/artifacts/…`, `EXPERIMENT/models/MODEL/artifacts/…`, `EXPERIMENT/traces/TRACE/artifacts/…`.
"""

import re
from collections.abc import Iterable
from urllib.parse import unquote

RUN = re.compile(r"[0-9a-f]{32}")
MODEL = re.compile(r"m-[0-9A-Za-z-]{8,}")
TRACE = re.compile(r"tr-[0-9A-Za-z-]{1,47}")
OURS = (".stackops-probe", ".artifacts-move")
"""Folders below the root that are not MLflow's."""


def inside(uri: str, root: str) -> str | None:
    """Return the path below the store's root that a location means, or None if it means another place.

    The root itself, a path with `..` and one that the server would read in another way are other places.
    """
    if uri.startswith("mlflow-artifacts:"):
        path = uri.removeprefix("mlflow-artifacts:")
        if path.startswith("//") and not path.startswith("///"):
            return None  # of another server
    elif f"{uri}/".startswith(f"{root}/"):
        path = uri.removeprefix(root)
    elif root.startswith("/") and f"{uri}/".startswith(f"file://{root}/"):
        path = uri.removeprefix(f"file://{root}")
    else:
        return None
    parts = path.strip("/").split("/")
    return None if {"", ".", ".."} & {*parts} or {"?", "#", "\\"} & {*path} else "/".join(parts)


def segments(location: str) -> set[str]:
    """Return the parts between the slashes of a location, as written and unquoted."""
    return {part for text in (location, unquote(location)) for part in re.split("[/:]", text) if part}


def folder(location: str, id: str, root: str) -> str | None:
    """Return the folder below the root that belongs to `id` alone, with a slash at its end, or None.

    Nothing else is ever removed from a store: the id must be one of the folders on the way.
    """
    path = inside(location, root)
    return f"{path}/" if path and id in path.split("/") else None


def ids(name: str) -> list[str]:
    """Return what in a file's path may be the id of a run, a logged model or a trace."""
    return [
        part
        for part in name.split("/")[:-1]
        if RUN.fullmatch(part) or MODEL.fullmatch(part) or TRACE.fullmatch(part)
    ]


def ancestors(name: str) -> Iterable[str]:
    """Yield the path itself and every folder above it."""
    while name:
        yield name
        name = name.rpartition("/")[0]
