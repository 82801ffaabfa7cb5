"""Makes backups by the clock: whenever BACKUP_SCHEDULE, five fields of cron in UTC, says so.

Each one runs in a process of its own. How it ended is in the journal of backups, for `make status`; what it
said is in this service's log. If the machine was off at a time that was due, it is made up for at the start.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from stackops import settings
from stackops.errors import StackError
from stackops.saving import journal

HELP = "make backups by the clock (the service backup-schedule)"
SCHEDULE, FOLDER = "30 3 * * *", "/backups"
BEAT = Path("/tmp/stackops-schedule")
LOOK, LATE = (
    10,
    90,
)  # seconds between two looks at the clock, and until nobody believes in this process any more
PATIENCE = 15  # seconds for a backup to clear away what it has done, when the stack is stopped


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument("--check", action="store_true", help="is it at work (the health check)")


def say(text: str) -> None:
    """Print one line at once."""
    print(text, flush=True)


def parsed(expression: str) -> Callable[[float], float]:
    """Return what gives the next moment after a time, both in seconds since 1970. Raises StackError."""
    from croniter import CroniterError, croniter

    wrong = (
        f"BACKUP_SCHEDULE is {expression!r}; it must be five fields as cron has them, such as {SCHEDULE!r}: "
        "minute, hour, day of the month, month, day of the week"
    )
    if len(expression.split()) != 5:
        raise StackError(wrong)

    def following(moment: float) -> float:
        return croniter(expression, datetime.fromtimestamp(moment, UTC)).get_next(float)

    try:
        following(time.time())
    except (CroniterError, ValueError, KeyError):
        raise StackError(wrong) from None
    return following


def command(env: Mapping[str, str]) -> list[str]:
    """Return the command that makes a backup. Raises StackError if BACKUP_TO is no place for a service."""
    there = env.get("BACKUP_TO", "")
    if there and "://" not in there:
        raise StackError(
            f"BACKUP_TO is {there}; backups by the clock go to a store, or to a folder "
            "that BACKUP_FOLDER names"
        )
    called = there or env.get("BACKUP_FOLDER") or "./backups"
    return [sys.executable, "-m", "stackops", "backup", "--place", there or FOLDER, "--called", called]


def missed(following: Callable[[float], float], last: Mapping | None, now: float) -> bool:
    """Return whether a moment has passed since the last backup. Where there was none yet, none was missed."""
    return last is not None and following(datetime.fromisoformat(last["began"]).timestamp()) <= now


class Clock:
    """When the next backup is due."""

    def __init__(self, following: Callable[[float], float], now: float, at_once: bool = False):
        self.following, self.due = following, now if at_once else following(now)

    def strikes(self, now: float) -> bool:
        """Return whether it is due, at most once for each moment. A clock that was set back is followed."""
        if now >= self.due:
            self.due = self.following(now)
            return True
        self.due = min(self.due, self.following(now))
        return False


def run(args: argparse.Namespace) -> None:
    """Wait and work until SIGTERM. Raises StackError if settings are wrong or the health check fails."""
    if args.check:
        if not BEAT.exists() or time.time() - BEAT.stat().st_mtime > LATE:
            raise StackError("the schedule of backups is not at work")
        return
    env = settings.present(os.environ)
    following, words = parsed(env.get("BACKUP_SCHEDULE") or SCHEDULE), command(env)
    clock = Clock(following, time.time(), missed(following, journal.read(), time.time()))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    working: subprocess.Popen | None = None
    try:
        tell(clock)
        while True:
            BEAT.touch()
            if working and working.poll() is not None:
                working = None
                tell(clock)
            if not working and clock.strikes(time.time()):
                working = subprocess.Popen(words)
                journal.plan(clock.due)
            time.sleep(1 if working else max(0.5, min(LOOK, clock.due - time.time())))
    finally:
        if working and working.poll() is None:
            working.send_signal(signal.SIGINT)  # it leaves nothing half-done
            working.wait(PATIENCE)


def tell(clock: Clock) -> None:
    """Say when the next backup is due."""
    journal.plan(clock.due)
    say(f"next backup: {datetime.fromtimestamp(clock.due, UTC):%Y-%m-%d %H:%M} UTC")
