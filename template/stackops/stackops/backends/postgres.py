"""PostgreSQL, in this stack or managed elsewhere.

The driver is named in the URI (SQLAlchemy 2.1 would otherwise want psycopg 3) and the password is not: libpq
takes it from a passfile, so that it is in no command line, no environment and no log.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote, urlencode

from stackops import sizing
from stackops.errors import StackError, one_line
from stackops.settings import Secrets, need, runtime_dir, servers, servers_at_once

PASSFILE = "pgpass"
LOCK = 0x6D6C666C6F77  # "mlflow": the advisory lock of schema changes
LOCK_MINUTES = 15
REUSES_NUMBERS = False

HOPELESS = (
    ("password authentication failed", "check the user and the secret db_password"),
    ("no password supplied", "check the secret db_password"),
    ("role ", "create the role, or correct DB_USER"),
    ("database ", "create the database, or correct DB_NAME"),
    ("not permitted to log in", "give the role LOGIN"),
    ("permission denied for database", "grant the role CONNECT"),
    ("no pg_hba.conf entry", "let this host in, or set DB_SSLMODE=require if the server wants TLS"),
    ("pg_hba.conf rejects", "let this host in, or set DB_SSLMODE=require if the server wants TLS"),
    ("certificate verify failed", "put the server's CA certificate into DB_SSLROOTCERT"),
    ("does not match host name", "use the host name of the certificate in DB_HOST"),
    ("root certificate file", "put the server's CA certificate into DB_SSLROOTCERT"),
    ("could not read root certificate", "put the server's CA certificate into DB_SSLROOTCERT"),
    ("server does not support ssl", "the server has no TLS; correct DB_SSLMODE"),
    ("invalid sslmode", "correct DB_SSLMODE"),
)
"""What no waiting cures: part of the message -> what to do."""


def parameters(env: Mapping[str, str]) -> dict[str, str]:
    """Return libpq's options for a connection, besides host, port, user, database and password.

    A DB_SSLROOTCERT that is missing or an empty file counts as not set; verify-ca and verify-full then trust
    the public certificate authorities (certifi), as some managed databases need it.
    """
    options = {"connect_timeout": "5", "application_name": "mlflow"}
    mode = env.get("DB_SSLMODE")
    if mode:
        options["sslmode"] = mode
    if (path := env.get("DB_SSLROOTCERT")) and _has_content(path):
        options["sslrootcert"] = path
    elif mode in ("verify-ca", "verify-full"):
        import certifi

        options["sslrootcert"] = certifi.where()
    return options


def _has_content(path: str) -> bool:
    try:
        return Path(path).stat().st_size > 0
    except OSError:
        return False


def uri(env: Mapping[str, str]) -> str:
    """Return the database's URI without a password."""
    host, port = need(env, "DB_HOST"), env.get("DB_PORT") or "5432"
    host = f"[{host}]" if ":" in host else host
    user, name = quote(need(env, "DB_USER"), safe=""), quote(need(env, "DB_NAME"), safe="")
    return f"postgresql+psycopg2://{user}@{host}:{port}/{name}?{urlencode(parameters(env))}"


def replica_uri(env: Mapping[str, str]) -> str:
    """Return the URI of a copy that is read from, as DB_READ_REPLICA_URI names it, or "" if there is none.

    It is a copy of the same database: the same user reads it, with the same password, and with the same
    options unless it names others. Raises StackError for anything else.
    """
    text = env.get("DB_READ_REPLICA_URI")
    if not text:
        return ""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    name, example = "MLFLOW_READ_REPLICA_BACKEND_STORE_URI", "postgresql://HOST:5432/NAME"
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise StackError(f"{name} is no address of a database; write {example}") from None
    if url.password is not None:
        raise StackError(f"{name} has a password in it; leave it out: the one in secrets/db_password is used")
    if not url.drivername.startswith("postgresql") or not url.host or not url.database:
        raise StackError(f"{name} is no address of a PostgreSQL database; write {example}")
    if url.username not in (None, need(env, "DB_USER")):
        raise StackError(f"{name} names another user than DB_USER; leave the user out of it")
    if (url.host, url.port or 5432) == (need(env, "DB_HOST"), int(env.get("DB_PORT") or 5432)):
        raise StackError(
            f"{name} is the address of the database itself; write that of its copy, or take it out"
        )
    made = url.set(
        drivername="postgresql+psycopg2",
        username=need(env, "DB_USER"),
        port=url.port or 5432,
        query={**parameters(env), **url.query},
    )
    return made.render_as_string(hide_password=False)


def accounts_uri(env: Mapping[str, str]) -> str:
    """Return the URI of the users' tables: the same database."""
    return uri(env)


def passfile(user: str, password: str) -> str:
    r"""Return the text of a libpq passfile. A `\` or `:` inside a field is written with a `\` before it."""

    def field(text: str) -> str:
        return text.replace("\\", "\\\\").replace(":", "\\:")

    return f"*:*:*:{field(user)}:{field(password)}\n"


def files(env: Mapping[str, str], secrets: Secrets) -> dict[str, str]:
    """Return the passfile. Raises StackError if the secret db_password is missing or has several lines."""
    password = secrets.need("db_password")
    if "\n" in password or "\r" in password:
        raise StackError("the secret db_password has more than one line; a password is one line")
    return {PASSFILE: passfile(need(env, "DB_USER"), password)}


def max_connections(env: Mapping[str, str]) -> int:
    """Return the number of connections the server may use. Raises StackError if it is no number."""
    value = env.get("DB_MAX_CONNECTIONS") or "100"
    if not value.isdecimal():
        raise StackError(f"DB_MAX_CONNECTIONS is {value!r}; it must be a whole number")
    return int(value)


def max_workers(env: Mapping[str, str], engines: int) -> int:
    """Return the most workers that leave each engine its two connections."""
    return sizing.connections_per_pool(max_connections(env), servers(env), engines) // 2


def environment(env: Mapping[str, str], workers: int, engines: int) -> dict[str, str]:
    """Return the passfile's place, and pools that stay below the database's limit, over all servers."""
    found = {"PGPASSFILE": str(runtime_dir(env) / PASSFILE)}
    own = {"MLFLOW_SQLALCHEMYSTORE_POOL_SIZE", "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW"}
    if not own & env.keys():
        limit = max_connections(env)
        processes = sizing.processes(limit, workers, engines, servers(env), servers_at_once(env))
        size, overflow = sizing.pool(limit, processes, engines)
        found["MLFLOW_SQLALCHEMYSTORE_POOL_SIZE"] = str(size)
        found["MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW"] = str(overflow)
    if replica := replica_uri(env):
        found["MLFLOW_READ_REPLICA_BACKEND_STORE_URI"] = replica
    return found


def remedy(message: str) -> str | None:
    """Return what to do about libpq's `message`, or None if waiting may help."""
    text = message.lower()
    for part, advice in HOPELESS:
        if part in ("role ", "database "):
            if f'{part}"' in text and "does not exist" in text:
                return advice
        elif part in text:
            return advice
    return None


def gist(message: str) -> str:
    """Return what went wrong from libpq's `message`: one line for every address it tried, then hints."""
    lines = message.strip().splitlines() or ["no message"]
    return one_line(lines[0].rpartition(" failed: ")[2].removeprefix("FATAL:"))


def connect(env: Mapping[str, str]):
    """Return a new psycopg2 connection."""
    import psycopg2

    return psycopg2.connect(
        host=need(env, "DB_HOST"),
        port=env.get("DB_PORT") or "5432",
        dbname=need(env, "DB_NAME"),
        user=need(env, "DB_USER"),
        passfile=str(runtime_dir(env) / PASSFILE),
        **parameters(env),
    )


def wait(env: Mapping[str, str], seconds: float) -> None:
    """Return when the database lets us in and we may create tables there.

    Keeps trying for `seconds` while it is starting or unreachable; gives up at once where that cannot help.
    Raises StackError with the cause.
    """
    import psycopg2

    where = f"database {need(env, 'DB_NAME')} on {need(env, 'DB_HOST')}:{env.get('DB_PORT') or '5432'}"
    until = time.monotonic() + seconds
    while True:
        try:
            with closing(connect(env)) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT current_schema(), has_schema_privilege(current_schema(), 'CREATE')")
                schema, allowed = cursor.fetchone()
            break
        except psycopg2.OperationalError as error:
            message = gist(str(error))
            if advice := remedy(one_line(error, 2000)):
                raise StackError(f"{where} refuses the connection: {message}; {advice}") from None
            if time.monotonic() >= until:
                raise StackError(
                    f"{where} did not answer within {seconds:.0f} s: {message}; is it running and reachable?"
                ) from None
        time.sleep(1)
    if not schema or not allowed:
        user = need(env, "DB_USER")
        raise StackError(f"{where}: role {user} may not create tables; make it the database's owner")


def vital_signs(env: Mapping[str, str]) -> dict[str, float]:
    """Return how many seconds the database's clock is ahead, and its connections: used, most, planned.

    Not every role may see the connections of others; then they are only its own.
    """
    with closing(connect(env)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT extract(epoch FROM clock_timestamp())::float, "
            "(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'), "
            "current_setting('max_connections')::int"
        )
        now, used, limit = cursor.fetchone()
        skew = now - time.time()
    return {"skew": skew, "connections": used, "max_connections": limit, "planned": max_connections(env)}


def size(env: Mapping[str, str]) -> int:
    """Return the size of the database in bytes."""
    with closing(connect(env)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_database_size(current_database())")
        return cursor.fetchone()[0]


def server_limit(env: Mapping[str, str]) -> int:
    """Return how many connections the database server lets in, over all its users."""
    with closing(connect(env)) as connection, connection.cursor() as cursor:
        cursor.execute("SHOW max_connections")
        return int(cursor.fetchone()[0])


def mark(env: Mapping[str, str]) -> str:
    """Nothing is needed: a schema change that fails leaves nothing behind."""
    return ""


def engine(env: Mapping[str, str]):
    """Return a SQLAlchemy engine."""
    import sqlalchemy
    from sqlalchemy.pool import NullPool

    return sqlalchemy.create_engine(uri(env), poolclass=NullPool)


@contextmanager
def exclusive(env: Mapping[str, str]) -> Iterator[None]:
    """Hold an advisory lock while the schema changes; others wait for at most 15 minutes.

    The lock belongs to an open transaction, which also works through a connection pooler.
    """
    import psycopg2

    with closing(connect(env)) as connection, connection.cursor() as cursor:
        cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        cursor.execute(f"SET LOCAL lock_timeout = '{LOCK_MINUTES}min'")
        try:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        except psycopg2.errors.LockNotAvailable:
            raise StackError(
                f"another process has been changing the database's schema for {LOCK_MINUTES} minutes; "
                "wait for it or stop it, then start again"
            ) from None
        yield
