"""A folder on the server's own disk (ARTIFACT_URI is its path)."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from stackops.errors import StackError
from stackops.settings import Secrets, artifact_uri


def destination(env: Mapping[str, str]) -> str:
    """Return the folder. The server streams uploads into it and serves downloads from it without a copy."""
    return artifact_uri(env)


def environment(env: Mapping[str, str], secrets: Secrets) -> dict[str, str]:
    """Nothing is needed."""
    return {}


def probe(env: Mapping[str, str], name: str) -> None:
    """Write, read and delete one file. Raises StackError if the folder cannot be used."""
    folder = Path(artifact_uri(env))
    file = folder / name
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            file.write_bytes(name.encode())
            intact = file.read_bytes() == name.encode()
        finally:
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another probe is there, or what one has left that was killed
            file.parent.rmdir()
    except OSError as error:
        raise StackError(
            f"the artifact folder {folder} cannot be used: {error.strerror}; check that it belongs to the "
            "user that runs the stack and that the disk is not full"
        ) from None
    if not intact:
        raise StackError(
            f"the artifact folder {folder} gave back other bytes than were written; check the disk"
        )


def _failed(error: OSError) -> None:
    raise StackError(
        f"{error.filename} cannot be used ({error.strerror}); let user {os.getuid()} in, as the stack runs"
    ) from None


def items(env: Mapping[str, str], folder: str = "") -> Iterator[tuple[str, int, float]]:
    """Yield (path below the root, bytes, time) of every file below a folder; links are not followed."""
    root = Path(artifact_uri(env))
    if not (root / folder).is_dir():
        return
    for where, folders, files in os.walk(root / folder, onerror=_failed):
        folders.sort()
        for file in files:
            path = Path(where, file)
            with contextlib.suppress(FileNotFoundError):  # somebody else may remove it meanwhile
                status = path.lstat()
                yield path.relative_to(root).as_posix(), status.st_size, status.st_mtime


def remove(env: Mapping[str, str], names: Sequence[str]) -> None:
    """Remove files, and the folders that are empty then."""
    root = Path(artifact_uri(env))
    for name in names:
        path = root / name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            _failed(error)
        for folder in path.parents:
            if folder == root or root not in folder.parents:
                break
            try:
                folder.rmdir()
            except OSError:
                break  # something is still in there
