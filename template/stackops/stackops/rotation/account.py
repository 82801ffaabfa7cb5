"""The admin's password among MLflow's own users. The job before the server makes it the secret's."""

from collections.abc import Mapping

from stackops.errors import StackError
from stackops.rotation.files import Files, random


def propose(name: str, files: Files) -> str:
    """Return random characters."""
    return random(24)


def prove(env: Mapping[str, str], name: str, old: str, new: str) -> None:
    """MLflow accepts the new password and refuses the old one."""
    from mlflow.server import auth

    auth.store.init_db(auth.auth_config.database_uri, read_db_uri=auth.auth_config.read_database_uri)
    for password, wanted in ((new, True), (old, False)):
        user = env["MLFLOW_AUTH_ADMIN_USERNAME"]
        if auth.store.authenticate_user(user, password, use_primary=True) != wanted:
            raise StackError(f"MLflow {'refuses the new' if wanted else 'accepts the old'} {name}")
