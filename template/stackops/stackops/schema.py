"""Brings the database's tables to the version of the installed MLflow, and refuses to guess.

MLflow's server migrates an older database silently when tables are missing and dies with a misleading message
when the database is newer (mlflow/store/db/utils.py). Here the one-shot job does it, in the open, before the
server starts, and `stackops serve` refuses tables of another version.
"""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stackops.errors import StackError, one_line


@dataclass(frozen=True)
class State:
    """What the database holds: its revision (None: no schema of ours), the newest one that this MLflow knows,
    whether it knows the database's revision, and all tables."""

    revision: str | None
    newest: str
    known: bool
    tables: frozenset[str]


def decide(state: State, what: str = "MLflow") -> str:
    """Return `create`, `upgrade` or `keep`. Raises StackError if the database must not be touched."""
    if state.revision == state.newest:
        return "keep"
    if state.revision is None:
        strangers = sorted(t for t in state.tables if not t.startswith("alembic_"))
        if strangers and "experiments" not in state.tables:
            raise StackError(
                f"the database has no {what} tables but others ({', '.join(strangers[:3])}); give MLflow a "
                "database of its own, or empty this one"
            )
        return "upgrade" if strangers else "create"
    if not state.known:
        raise StackError(
            f"the database's {what} schema ({state.revision}) comes from a newer MLflow than this image has; "
            "go back to that version, or restore a backup made before the upgrade"
        )
    return "upgrade"


def require(state: State, what: str = "MLflow") -> None:
    """Raise StackError unless the tables are those of this MLflow; the server must not change them."""
    action = decide(state, what)
    if action == "keep":
        return
    found = "has no tables yet" if action == "create" else f"is at {state.revision or 'before 1.0'}"
    raise StackError(
        f"the database's {what} schema {found} and this MLflow needs {state.newest}; back the database up, "
        "then run make up: its migrate job brings the tables up to date before the server starts"
    )


def caught_up(uri: str, seconds: float) -> None:
    """Return when the copy that is read from has the tables of this MLflow: after an upgrade it is behind for
    a moment. Raises StackError if it does not answer, or is still behind after `seconds`."""
    from sqlalchemy.exc import SQLAlchemyError

    until, why = time.monotonic() + seconds, ""
    while True:
        try:
            state = tracking(uri)
            if state.revision == state.newest:
                return
            why = f"its tables are at {state.revision or 'nothing'}, and this MLflow needs {state.newest}"
        except SQLAlchemyError as error:
            why = one_line(getattr(error, "orig", None) or error)
        if time.monotonic() >= until:
            raise StackError(
                f"the read replica cannot be used: {why}; wait until it has caught up, or take "
                "MLFLOW_READ_REPLICA_BACKEND_STORE_URI out of .env"
            )
        time.sleep(1)


def migrations(*path: str) -> Path:
    """Return a folder with migration scripts inside the installed MLflow."""
    spec = importlib.util.find_spec("mlflow")
    if not spec or not spec.submodule_search_locations:
        raise StackError("MLflow is not installed here; build the image again")
    return Path(spec.submodule_search_locations[0]).joinpath(*path)


def look(uri: str, scripts: Path, version_table: str) -> State:
    """Return the state of the database at `uri`, compared with the migration scripts in `scripts`."""
    import sqlalchemy
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from sqlalchemy.pool import NullPool

    directory = ScriptDirectory(str(scripts))
    revisions = {script.revision for script in directory.walk_revisions()}
    engine = sqlalchemy.create_engine(uri, poolclass=NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": version_table})
        revision = context.get_current_revision()
        tables = frozenset(sqlalchemy.inspect(connection).get_table_names())
    newest = directory.get_current_head()
    return State(revision, newest, revision is None or revision in revisions, tables)


def run_upgrade(uri: str) -> None:
    """Run `mlflow db upgrade`; the URI holds no password. Raises StackError with the cause of a failure."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mlflow", "db", "upgrade", uri],
        env=os.environ,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        cause = next(
            (line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no message"
        )
        raise StackError(
            f"mlflow db upgrade failed: {one_line(cause)}; the server is not started, "
            "restore a backup if the tables are half-way"
        )


def tracking(uri: str) -> State:
    """Return the state of the tracking tables in the database at `uri`."""
    return look(uri, migrations("store", "db_migrations"), "alembic_version")


def bring_up_to_date(uri: str, say: Callable[[str], None]) -> None:
    """Create or upgrade the tracking tables in the database at `uri`; the caller holds the lock."""
    state = tracking(uri)
    action = decide(state)
    if action == "keep":
        say(f"schema: up to date ({state.newest})")
        return
    if action == "create":
        say("schema: creating the tables")
    else:
        say(f"schema: upgrading from {state.revision or 'before 1.0'} to {state.newest}")
    run_upgrade(uri)
    say(f"schema: now {state.newest}")
