"""MLflow's own users and permissions (its basic-auth app)."""

import functools
import logging
import secrets as tokens
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import Scope

from stackops import schema, settings
from stackops.errors import StackError, one_line
from stackops.settings import ADMIN, MINIMUM

CONFIG = "basic_auth.ini"
AUTHORIZATION = "mlflow.server.auth:authenticate_request_basic_auth"
PERMISSIONS = ("NO_PERMISSIONS", "READ", "USE", "EDIT", "MANAGE")

TEMPLATE = """\
[mlflow]
database_uri = {uri}
admin_username = {admin}
authorization_function = {function}
# With NO_PERMISSIONS a user sees only what somebody gave to them.
default_permission = {permission}
# Checking a password costs 0.3 s of CPU; a checked one is remembered for a minute (20 times more requests),
# and forgotten when users change.
auth_cache_ttl_seconds = 60
"""


def files(env: Mapping[str, str]) -> dict[str, str]:
    """Return the app's configuration. A `%` is doubled: configparser would take it for a reference.

    STACK_AUTHORIZATION names another function that says who sends a request. Raises StackError.
    """
    uri = settings.backend(env).accounts_uri(env).replace("%", "%%")
    permission = env.get("DEFAULT_PERMISSION") or "NO_PERMISSIONS"
    if permission not in PERMISSIONS:
        raise StackError(f"the default permission {permission!r} is none of {', '.join(PERMISSIONS)}")
    function = env.get("STACK_AUTHORIZATION") or AUTHORIZATION
    return {CONFIG: TEMPLATE.format(uri=uri, admin=ADMIN, function=function, permission=permission)}


def environment(env: Mapping[str, str], secrets: settings.Secrets) -> dict[str, str]:
    """Return the variables of the app. Raises StackError if a secret is missing or the password too short."""
    password = secrets.need("admin_password")
    if len(password) < MINIMUM:
        raise StackError(f"the secret admin_password is too short; use at least {MINIMUM} characters")
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings.runtime_dir(env) / CONFIG),
        "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.need("flask_secret_key"),
        # With which MLflow's own jobs call its gateway; `mlflow server` makes it for its app basic-auth only.
        "_MLFLOW_INTERNAL_GATEWAY_AUTH_TOKEN": tokens.token_hex(32),
    }


def close_store(env: Mapping[str, str]) -> None:
    """Have a model version's source in this stack's store lie within a run or model that its maker may read.

    MLflow asks that of `mlflow-artifacts:` only (mlflow/server/handlers.py). The store's own address, and
    `relay:`, by which the server reaches it, would open all of it to whoever makes a model version there.
    So would any address of a store whose client does not go where the address says (ANY_ADDRESS).
    """
    from mlflow.server import handlers

    theirs, store = handlers._is_mlflow_artifact_source, urlsplit(env.get("ARTIFACT_URI", ""))
    closed = {"relay", store.scheme} if getattr(settings.store(env), "ANY_ADDRESS", False) else {"relay"}
    bucket = store.netloc.lower()

    def asks_for_owner(source: str) -> bool:
        place = urlsplit(source)
        inside = bool(bucket) and place.netloc.lower() == bucket
        return place.scheme.lower() in closed or inside or theirs(source)

    handlers._is_mlflow_artifact_source = asks_for_owner


PLACES = {"mlflow.artifactLocation", "mlflow.trace.archiveLocation"}
"""Tags of a trace that say where the server reads its data."""


def close_traces() -> None:
    """Have the server alone say where a trace's data is.

    MLflow's client does not send these tags, and its server takes them from whoever does: a trace of one's
    own would show what another one has at that place. With a trace they are left out, as the client does;
    alone they are refused, as MLflow does with the places of archived spans.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Store

    start, start_v2, end_v2 = (
        Store.start_trace,
        Store.deprecated_start_trace_v2,
        Store.deprecated_end_trace_v2,
    )
    set_tag = Store.set_trace_tag

    def kept(tags: Mapping[str, str]) -> dict[str, str]:
        return {key: value for key, value in tags.items() if key not in PLACES}

    def start_trace(self, trace_info):
        trace_info.tags = kept(trace_info.tags)
        return start(self, trace_info)

    def deprecated_start_trace_v2(self, *args, tags, **more):
        return start_v2(self, *args, tags=kept(tags), **more)

    def deprecated_end_trace_v2(self, *args, tags, **more):
        return end_v2(self, *args, tags=kept(tags), **more)

    def set_trace_tag(self, trace_id, key, value):
        if key in PLACES:
            raise MlflowException.invalid_parameter_value(
                f"Tag '{key}' is immutable and cannot be set on a trace."
            )
        return set_tag(self, trace_id, key, value)

    for function in (start_trace, deprecated_start_trace_v2, deprecated_end_trace_v2, set_trace_tag):
        setattr(Store, function.__name__, function)


RUNS = 10_000
"""Of so many runs a worker remembers the experiment: 7 MB."""


def remember_experiments(env: Mapping[str, str]) -> None:
    """Have the experiment of a run, which never changes, be looked up once.

    For whoever is no admin, MLflow reads the whole run to learn it, before each answer about that run. With
    workspaces it must: a run exists in its own one only. An MLflow that asks in another way goes on so.
    """
    from mlflow.server import auth

    theirs = getattr(auth, "_fetch_or_none", None)
    if theirs is None or settings.has_workspaces(env):
        return

    @functools.lru_cache(RUNS)
    def experiment_of(run_id: str) -> SimpleNamespace:
        run = auth._get_tracking_store().get_run(run_id)
        return SimpleNamespace(info=SimpleNamespace(experiment_id=run.info.experiment_id))

    def fetch_or_none(fetch: Callable, name: str):
        return theirs(experiment_of if fetch.__name__ == "get_run" else fetch, name)

    auth._fetch_or_none = fetch_or_none


def is_fastapi_to_permit(scope: Scope) -> bool:
    """Whether MLflow judges this request before Flask does, which judges its own.

    It is what MLflow's function asks first, by MLflow's own means, before it passes a request on.
    """
    from mlflow.server import auth

    path = auth.get_routed_asgi_path(Request(scope))
    if auth.is_unprotected_route(path):
        return False
    return auth.MLFLOW_BASIC_AUTH_FAIL_CLOSED.get() or bool(
        auth._find_fastapi_validator(path, scope["method"])
    )


SELDOM = {"fastapi_permission_middleware": is_fastapi_to_permit}
"""MLflow's function that asks for permissions around every request, and which ones need it (shortcuts.py)."""


def tables(env: Mapping[str, str]) -> schema.State:
    """Return the state of the users' tables."""
    scripts = schema.migrations("server", "auth", "db", "migrations")
    return schema.look(settings.backend(env).accounts_uri(env), scripts, "alembic_version_auth")


def prepare(env: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Bring the users' tables up to date, create the admin, and make the admin's password the secret's.

    The caller holds the lock and has put `environment` into this process's environment. The secret is the
    truth: MLflow itself ignores a changed MLFLOW_AUTH_ADMIN_PASSWORD once the user exists. Raises StackError.
    """
    state = tables(env)
    if not state.known:
        schema.decide(state, "users'")

    from mlflow.exceptions import MlflowException
    from mlflow.server import auth

    name, password = env["MLFLOW_AUTH_ADMIN_USERNAME"], env["MLFLOW_AUTH_ADMIN_PASSWORD"]
    try:
        auth.bootstrap_admin_user()
        if not auth.store.authenticate_user(name, password, use_primary=True):
            auth.store.update_user(name, password=password)
            say(f"users: the password of {name} is now the secret's")
    except MlflowException as error:
        raise StackError(f"MLflow's users cannot be set up: {one_line(error)}") from None
    if state.revision != state.newest:
        say(f"users: tables now {state.newest}")
    say(f"users: {name} exists")


class Users:
    """MLflow's users, in its own store."""

    def __init__(self, env: Mapping[str, str]):
        """Open the store. Raises StackError if the tables are not those of this MLflow."""
        schema.require(tables(env), "users'")
        from mlflow.server import auth

        auth.store.init_db(auth.auth_config.database_uri)
        self.auth, self.marker = auth, marker(env)

    def names(self) -> list[tuple[str, str]]:
        """Return (name, "admin" or nothing)."""
        return [(user.username, "admin" if user.is_admin else "") for user in self.auth.store.list_users()]

    def add(self, name: str, password: str) -> None:
        """Add a user, who has no permission yet. Raises StackError if the name is taken."""
        if self.auth.store.has_user(name):
            raise StackError(f"there is a user {name} already")
        self.auth.store.create_user(name, password)

    def password(self, name: str, password: str) -> None:
        """Change a user's password. Raises StackError if there is no such user."""
        self.need(name)
        self.auth.store.update_user(name, password=password)
        announce(self.marker)

    def remove(self, name: str) -> None:
        """Remove a user and what was granted to them. Raises StackError if there is no such user."""
        if self.need(name).is_admin and sum(user.is_admin for user in self.auth.store.list_users()) == 1:
            raise StackError(f"{name} is the last admin and stays")
        self.auth.store.delete_user(name)
        announce(self.marker)

    def need(self, name: str):
        """Return a user. Raises StackError if there is none of that name."""
        if not self.auth.store.has_user(name):
            raise StackError(f"there is no user {name}")
        return self.auth.store.get_user(name)


def users(env: Mapping[str, str]) -> Users:
    """Return the users of this stack; makes this process look like the server."""
    adopted = settings.adopt()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    settings.backend(adopted).wait(adopted, 10)
    return Users(adopted)


def marker(env: Mapping[str, str]) -> Path:
    """Return the file that changes when a user's password changes or a user goes (guard.py)."""
    return settings.shared_dir(env) / "users.changed"


def announce(path: Path) -> None:
    """Let every process of every server forget the logins that it has checked."""
    settings.write_private({str(path): f"{tokens.token_hex(8)}\n"})


def forget_experiments(env: Mapping[str, str], experiments: Iterable[int]) -> None:
    """Take away the permissions for experiments that are gone for good."""
    import sqlalchemy
    from mlflow.server.auth.db.models import SqlRolePermission
    from sqlalchemy.pool import NullPool

    table = SqlRolePermission.__table__
    engine = sqlalchemy.create_engine(settings.backend(env).accounts_uri(env), poolclass=NullPool)
    gone = table.c.resource_pattern.in_([str(id) for id in experiments])
    with engine.begin() as connection:
        connection.execute(sqlalchemy.delete(table).where(table.c.resource_type == "experiment", gone))
