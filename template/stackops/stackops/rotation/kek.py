"""The passphrase of the key that encrypts keys: MLflow wraps the key of each stored secret with it.

MLflow's own `mlflow crypto rotate-kek` takes the passphrase on its command line and also raises a version, of
which the server must then be told for ever. The version need not change when the passphrase does, so here it
stays: one thing less that can be out of step. MLflow's own function wraps all rows anew, in one transaction.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stackops import settings
from stackops.errors import StackError
from stackops.rotation.files import Files, random

if TYPE_CHECKING:
    from sqlalchemy import Connection


def propose(name: str, files: Files) -> str:
    """Return random characters."""
    return random()


def rewrap(connection: "Connection", old: str, new: str, version: int) -> tuple[int, int]:
    """Wrap every key that `old` opens with `new`. Returns how many those were, and how many nobody opens.

    What `new` opens already stays as it is: a second run changes nothing.
    """
    import sqlalchemy as sa
    from mlflow.exceptions import MlflowException
    from mlflow.store.tracking.dbmodels.models import SqlGatewaySecret
    from mlflow.utils.crypto import KEKManager, rotate_secret_encryption, unwrap_dek

    table = SqlGatewaySecret.__table__
    if not sa.inspect(connection).has_table(table.name):
        return 0, 0
    wrapped, lost = 0, 0
    rows = connection.execute(
        sa.select(table.c.secret_id, table.c.encrypted_value, table.c.wrapped_dek)
    ).all()
    if not rows:
        return 0, 0
    before, after = KEKManager(old, version), KEKManager(new, version)
    for key, value, dek in rows:
        try:
            unwrap_dek(dek, after.get_kek())
            continue
        except MlflowException:
            pass
        try:
            dek = rotate_secret_encryption(value, dek, before, after).wrapped_dek
        except MlflowException:
            lost += 1
            continue
        connection.execute(sa.update(table).where(table.c.secret_id == key).values(wrapped_dek=dek))
        wrapped += 1
    return wrapped, lost


def _all(env: Mapping[str, str], old: str, new: str) -> tuple[int, int]:
    import sqlalchemy as sa
    from sqlalchemy.pool import NullPool

    version = int(env.get("MLFLOW_CRYPTO_KEK_VERSION") or 1)
    engine = sa.create_engine(settings.backend(env).uri(env), poolclass=NullPool)
    with engine.begin() as connection:
        return rewrap(connection, old, new, version)


def switch(env: Mapping[str, str], name: str, old: str, new: str) -> str:
    """Wrap all stored keys with the new passphrase; return what was done."""
    wrapped, lost = _all(env, old, new)
    return f"{wrapped} stored keys wrapped anew" + (
        f"; {lost} could not be read before either and stay as they are" if lost else ""
    )


def prove(env: Mapping[str, str], name: str, old: str, new: str) -> None:
    """Wrap what a server may have stored since; only then the old passphrase opens nothing more."""
    if _all(env, old, new)[0] and _all(env, old, new)[0]:
        raise StackError(f"{name}: keys are still stored with the old one; run it again")
