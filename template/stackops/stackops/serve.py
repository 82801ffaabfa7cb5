"""Becomes the MLflow server, with the settings of this stack.

Secrets reach it through its environment or private files, never by command line.
"""

import argparse
import errno
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from stackops import settings
from stackops.errors import StackError

HELP = "run the MLflow server (replaces this process)"
DAY = 24 * 3600
SPOOL = re.compile(r"tmp[a-z0-9_]{8}")


def arguments(parser: argparse.ArgumentParser) -> None:
    """This command has no options: the environment has them all."""


def clear_spool(env: Mapping[str, str], now: float) -> int:
    """Delete what killed servers left in TMPDIR: temporary folders of ours that are older than a day.

    Artifacts pass through there, so a crash can leave gigabytes. Touches nothing if TMPDIR is not set,
    nothing of another user, and only names that Python's tempfile gives. Returns how many were deleted.
    """
    count = 0
    if not (folder := env.get("TMPDIR")):
        return count
    for path in Path(folder).glob("tmp*"):
        try:
            status = path.lstat()
            ours = SPOOL.fullmatch(path.name) and status.st_uid == os.getuid()
            if ours and path.is_dir() and not path.is_symlink() and now - status.st_mtime > DAY:
                shutil.rmtree(path)
                count += 1
        except OSError:
            continue
    return count


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
    if count := clear_spool(env, time.time()):
        print(f"removed {count} left-over temporary folders", flush=True)
    command = settings.server_command()
    os.execve(sys.executable, command, env)
