"""A folder on the server's own disk (ARTIFACT_URI is its path)."""

from collections.abc import Mapping
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
        file.write_bytes(name.encode())
        intact = file.read_bytes() == name.encode()
        file.unlink()
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
