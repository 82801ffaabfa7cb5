"""The one exception for failures that are expected and have a remedy."""


class StackError(Exception):
    """A failure that a person can mend.

    The message is one sentence that says what is wrong, where, and what to do next. It never holds a secret.
    """


def one_line(error: object, limit: int = 300) -> str:
    """Return the text of `error` as a single line of at most `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
