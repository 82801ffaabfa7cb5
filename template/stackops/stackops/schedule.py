"""Makes backups by the clock: whenever BACKUP_SCHEDULE, five fields of cron in UTC, says so.

With GC_SCHEDULE it also removes for good what users have deleted, while the server runs. Each one runs in a
process of its own, one after the other. How it ended is in its journal, for `make status`; what it said is in
this service's log. If the machine was off at a time that was due, it is made up for at the start.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from stackops import settings
from stackops.errors import StackError
from stackops.saving import journal

HELP = "make backups, and clean up, by the clock (the service backup-schedule)"
SCHEDULE, FOLDER, SERVER = "30 3 * * *", "/backups", "mlflow:5000"
BACKUP = "backup"
BEAT = Path("/tmp/stackops-schedule")
LOOK = 10  # seconds between two looks at the clock
LATE = 90  # seconds without one until nobody believes in this process any more
PATIENCE = 15  # seconds for a backup to clear away what it has done, when the stack is stopped


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument("--check", action="store_true", help="is it at work (the health check)")


def say(text: str) -> None:
    """Print one line at once."""
    print(text, flush=True)


def parsed(expression: str, name: str = "BACKUP_SCHEDULE") -> Callable[[float], float]:
    """Return what gives the next moment after a time, both in seconds since 1970. Raises StackError."""
    from croniter import CroniterError, croniter

    wrong = (
        f"{name} is {expression!r}; it must be five fields as cron has them, such as {SCHEDULE!r}: "
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


def clean_up(env: Mapping[str, str]) -> list[str]:
    """Return the command that cleans up. Raises StackError for a time that is none."""
    from stackops.gc import seconds

    words = [sys.executable, "-m", "stackops", "gc", "--apply", "--server", SERVER]
    for name, option in (("GC_OLDER_THAN", "--older-than"), ("GC_TRACES_OLDER_THAN", "--traces-older-than")):
        if value := env.get(name):
            seconds(value, name)
            words += [option, value]
    return words


def missed(following: Callable[[float], float], last: Mapping | None, now: float) -> bool:
    """Return whether a moment has passed since the last one. Where there was none yet, none was missed."""
    return last is not None and following(datetime.fromisoformat(last["began"]).timestamp()) <= now


class Clock:
    """When the next one is due."""

    def __init__(self, following: Callable[[float], float], now: float, at_once: bool = False):
        self.following, self.due = following, now if at_once else following(now)

    def strikes(self, now: float) -> bool:
        """Return whether it is due, at most once for each moment. A clock that was set back is followed."""
        if now >= self.due:
            self.due = self.following(now)
            return True
        self.due = min(self.due, self.following(now))
        return False


@dataclass
class Job:
    """What is done by the clock."""

    name: str
    clock: Clock
    words: list[str]


def jobs(env: Mapping[str, str], now: float) -> list[Job]:
    """Return what the settings ask for. Raises StackError if one of them is wrong."""
    asked = [(BACKUP, "BACKUP_SCHEDULE", env.get("BACKUP_SCHEDULE") or SCHEDULE, command, journal.NAME)]
    if cleaning := env.get("GC_SCHEDULE"):
        asked.append(("clean-up", "GC_SCHEDULE", cleaning, clean_up, journal.CLEANUP))
    found = []
    for name, setting, expression, words, last in asked:
        following = parsed(expression, setting)
        clock = Clock(following, now, missed(following, journal.read(last), now))
        found.append(Job(name, clock, words(env)))
    return found


class Turns:
    """Which job runs now: one at a time, in the order in which they were due, the backup first."""

    def __init__(self, found: list[Job]):
        self.jobs, self.waiting = found, []

    def next(self, now: float, busy: bool) -> Job | None:
        """Return the one to start, if there is one and nothing else is at work."""
        for job in self.jobs:
            if job.clock.strikes(now) and job not in self.waiting:
                self.waiting.append(job)
        return self.waiting.pop(0) if self.waiting and not busy else None

    def due(self) -> float:
        """Return when something is due."""
        return min(job.clock.due for job in self.jobs)


def run(args: argparse.Namespace) -> None:
    """Wait and work until SIGTERM. Raises StackError if settings are wrong or the health check fails."""
    if args.check:
        if not BEAT.exists() or time.time() - BEAT.stat().st_mtime > LATE:
            raise StackError("the schedule of backups is not at work")
        return
    found = jobs(settings.present(os.environ), time.time())
    turns = Turns(found)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    working: subprocess.Popen | None = None
    try:
        tell(found)
        while True:
            BEAT.touch()
            if working and working.poll() is not None:
                working = None
                tell(found)
            if job := turns.next(time.time(), working is not None):
                working = subprocess.Popen(job.words)
                if job.name == BACKUP:
                    journal.plan(job.clock.due)
            time.sleep(1 if working else max(0.5, min(LOOK, turns.due() - time.time())))
    finally:
        if working and working.poll() is None:
            working.send_signal(signal.SIGINT)  # it leaves nothing half-done
            working.wait(PATIENCE)


def tell(found: list[Job]) -> None:
    """Say when the next ones are due."""
    for job in found:
        if job.name == BACKUP:
            journal.plan(job.clock.due)
        say(f"next {job.name}: {datetime.fromtimestamp(job.clock.due, UTC):%Y-%m-%d %H:%M} UTC")
