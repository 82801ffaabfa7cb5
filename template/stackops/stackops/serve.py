"""Becomes the MLflow server, with the settings of this stack.

Secrets reach it through its environment or private files, never by command line.
"""

import argparse
import errno
import fcntl
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from stackops import preload, schema, settings
from stackops.errors import StackError

HELP = "run the MLflow server (replaces this process)"
PATIENCE = 60
"""Seconds to wait for the database: after a restart of the machine everything starts at once."""
SPOOL = "server-"
"""How the folders in TMPDIR begin."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """This command has no options: the environment has them all."""


def own_spool(folder: str) -> tuple[str, int]:
    """Make a folder for this server's temporary files, and delete those of servers that are gone.

    Artifacts pass through there, so a crash can leave gigabytes. A server holds a lock on its folder for as
    long as it lives: what can be locked belongs to nobody. Returns the new folder and how many were deleted.
    """
    count = 0
    alone = os.open(folder, os.O_RDONLY)  # no folder is judged between its making and its lock
    try:
        fcntl.flock(alone, fcntl.LOCK_EX)
        for path in Path(folder).glob(f"{SPOOL}*"):
            if (held := lock(path)) is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(held)
                count += 1
        own = tempfile.mkdtemp(prefix=f"{SPOOL}{socket.gethostname()}-", dir=folder)
        os.set_inheritable(lock(own), True)  # never closed: the server that replaces this process has it
    finally:
        os.close(alone)
    return own, count


def lock(folder: str | Path) -> int | None:
    """Lock a folder and return the descriptor that holds the lock, or None if it is another's."""
    try:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return None
    return held


def check_schema(env: Mapping[str, str]) -> None:
    """Raise StackError unless the database answers and its tables are those of this MLflow."""
    backend, accounts = settings.backend(env), settings.accounts(env)
    backend.wait(env, PATIENCE)
    schema.require(schema.tracking(backend.uri(env)))
    if replica := env.get("MLFLOW_READ_REPLICA_BACKEND_STORE_URI"):
        schema.caught_up(replica, PATIENCE)
    if accounts:
        schema.require(accounts.tables(env), "users'")


def check_port(host: str, port: str) -> None:
    """Raise StackError if another program listens on `port`: MLflow itself would end with a traceback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise StackError(f"port {port} is in use; choose another with HTTP_PORT in .env") from None


def run(args: argparse.Namespace) -> None:
    """Set the environment and hand over; does not return."""
    env = settings.adopt()
    check_port(env["MLFLOW_HOST"], env["MLFLOW_PORT"])
    check_schema(env)
    if folder := env.get("TMPDIR"):
        env["TMPDIR"], count = own_spool(folder)
        if count:
            print(f"removed the temporary files of {count} servers that are gone", flush=True)
    os.environ.update(env)
    if env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"].lower() in ("true", "1"):  # as MLflow reads it
        # MLflow then looks after other processes beside the server, and needs its own.
        os.execve(sys.executable, settings.server_command(), env)
    preload.run()
