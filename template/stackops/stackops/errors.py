"""The one exception for failures that are expected and have a remedy."""

import errno

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
