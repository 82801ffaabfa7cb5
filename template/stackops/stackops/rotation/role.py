"""The password of a role of this stack's PostgreSQL. A role may change its own."""

from collections.abc import Mapping
from contextlib import closing

from stackops.backends import postgres
from stackops.errors import StackError, one_line
from stackops.rotation.files import Files, random
from stackops.settings import need

FIRST = True
"""The others need the database, with the password in force."""

SUPERUSER = "postgres"


def role(env: Mapping[str, str], name: str) -> tuple[str, str]:
    """Return the role whose password the secret `name` is, and a database that it may enter."""
    return (
        (SUPERUSER, SUPERUSER)
        if name == "postgres_password"
        else (need(env, "DB_USER"), need(env, "DB_NAME"))
    )


def propose(name: str, files: Files) -> str:
    """Return random characters."""
    return random()


def connect(env: Mapping[str, str], name: str, password: str):
    """Return a connection, or None where the password is wrong. Raises StackError if nobody answers."""
    import psycopg2

    user, database = role(env, name)
    try:
        return psycopg2.connect(
            host=need(env, "DB_HOST"),
            port=env.get("DB_PORT") or "5432",
            dbname=database,
            user=user,
            password=password,
            **postgres.parameters(env),
        )
    except psycopg2.OperationalError as error:
        if "password authentication failed" in str(error):
            return None
        message = postgres.gist(one_line(error, 1000))
        raise StackError(f"the database does not answer: {message}; run make up") from None


def switch(env: Mapping[str, str], name: str, old: str, new: str) -> str:
    """Give the role its new password; the database sees and logs only the hash that is made here."""
    from psycopg2 import extensions, sql

    user, _ = role(env, name)
    if already := connect(env, name, new):
        already.close()
        return f"role {user} has its new password already"
    connection = connect(env, name, old)
    if not connection:
        raise StackError(f"the database lets {user} in neither with secrets/{name} nor with the new password")
    with closing(connection), connection, connection.cursor() as cursor:
        hashed = extensions.encrypt_password(new, user, connection, "scram-sha-256")
        cursor.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(user), sql.Literal(hashed)))
    return f"role {user} has a new password"


def prove(env: Mapping[str, str], name: str, old: str, new: str) -> None:
    """The new password is let in, the old one is not."""
    for password, wanted in ((new, True), (old, False)):
        found = connect(env, name, password)
        if found:
            found.close()
        if bool(found) != wanted:
            raise StackError(f"the database {'accepts the old' if found else 'refuses the new'} {name}")
