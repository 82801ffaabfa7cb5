"""The one exception for failures that are expected and have a remedy."""

import errno

DAMAGED = (
    "DataCorrupted",
    "invalid page in block",
    "could not read block",
    "disk image is malformed",
    "file is not a database",
)
FULL = ("disk is full", "No space left on device", "Disk quota exceeded")


class StackError(Exception):
    """A failure that a person can mend.

    The message is one sentence that says what is wrong, where, and what to do next. It never holds a secret.
    """


def one_line(error: object, limit: int = 300) -> str:
    """Return the text of `error` as a single line of at most `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def disk_is_full(error: BaseException) -> bool:
    """Return whether that is why something failed, as the system or a database says it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(words in str(error) for words in FULL)


def database_is_damaged(error: BaseException) -> bool:
    """Return whether that is why something failed, as the database says it."""
    return any(words in f"{type(error).__name__}: {error}" for words in DAMAGED)
