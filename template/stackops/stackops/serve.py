"""Becomes the MLflow server, with the settings of this stack.

Secrets reach it through its environment or private files, never by command line.
"""

import argparse
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from stackops import settings

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


def run(args: argparse.Namespace) -> None:
    """Set the environment and hand over; does not return."""
    env = settings.adopt()
    if count := clear_spool(env, time.time()):
        print(f"removed {count} left-over temporary folders", flush=True)
    command = settings.server_command(env)
    os.execve(sys.executable, command, env)
