"""The Fernet key of the webhooks' secrets in the database: all are encrypted anew, in one transaction."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stackops import settings
from stackops.errors import StackError
from stackops.rotation.files import Files

if TYPE_CHECKING:
    from sqlalchemy import Connection


def propose(name: str, files: Files) -> str:
    """Return a new Fernet key."""
    from cryptography.fernet import Fernet

    return Fernet.generate_key().decode()


def encrypt_again(connection: "Connection", old: str, new: str) -> tuple[int, int]:
    """Encrypt with `new` what `old` opens. Returns how many those were, and how many nobody opens.

    What `new` opens already stays as it is: a second run changes nothing. MLflow's own column type would
    decrypt on the way, so the column is taken as the text that it is.
    """
    import sqlalchemy as sa
    from cryptography.fernet import Fernet, InvalidToken, MultiFernet

    if not sa.inspect(connection).has_table("webhooks"):
        return 0, 0
    table = sa.table("webhooks", sa.column("webhook_id", sa.String()), sa.column("secret", sa.String()))
    done, lost = 0, 0
    first = Fernet(new)
    both = MultiFernet([first, Fernet(old)])
    for key, token in connection.execute(sa.select(table).where(table.c.secret.is_not(None))).all():
        try:
            first.decrypt(token)
            continue
        except InvalidToken:
            pass
        try:
            token = both.rotate(token.encode()).decode()
        except InvalidToken:
            lost += 1
            continue
        connection.execute(sa.update(table).where(table.c.webhook_id == key).values(secret=token))
        done += 1
    return done, lost


def _all(env: Mapping[str, str], old: str, new: str) -> tuple[int, int]:
    import sqlalchemy as sa
    from sqlalchemy.pool import NullPool

    engine = sa.create_engine(settings.backend(env).uri(env), poolclass=NullPool)
    with engine.begin() as connection:
        return encrypt_again(connection, old, new)


def switch(env: Mapping[str, str], name: str, old: str, new: str) -> str:
    """Encrypt all secrets of webhooks with the new key; return what was done."""
    done, lost = _all(env, old, new)
    return f"{done} webhooks' secrets encrypted anew" + (
        f"; {lost} could not be read before either and stay as they are" if lost else ""
    )


def prove(env: Mapping[str, str], name: str, old: str, new: str) -> None:
    """Encrypt what a server may have stored since; only then the old key opens nothing more."""
    if _all(env, old, new)[0] and _all(env, old, new)[0]:
        raise StackError(f"{name}: webhooks are still stored with the old one; run it again")
