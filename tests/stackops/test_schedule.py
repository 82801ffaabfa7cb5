"""Backups by the clock: when one is due, whatever the clock does. The expressions themselves are croniter's work."""

import json
from datetime import UTC, datetime

import pytest
from stackops import schedule
from stackops.diagnosis import live
from stackops.diagnosis.facts import Facts
from stackops.errors import StackError
from stackops.schedule import Clock, missed

HOUR = 3600
NIGHT = datetime(2026, 11, 27, tzinfo=UTC).timestamp()


def hourly(moment: float) -> float:
    """At every full hour."""
    return (moment // HOUR + 1) * HOUR


def test_each_moment_once():
    clock = Clock(hourly, NIGHT + 10)
    strikes = [second for second in range(10, 3 * HOUR, 7) if clock.strikes(NIGHT + second)]
    assert len(strikes) == 2 and all(0 <= second % HOUR < 7 for second in strikes)


def test_after_a_long_sleep_there_is_one():
    clock = Clock(hourly, NIGHT)
    assert clock.strikes(NIGHT + 100 * HOUR + 5)
    assert not clock.strikes(NIGHT + 100 * HOUR + 6)


def test_a_clock_that_is_set_back():
    """The next one is due by the new time, not only when the old one comes again."""
    clock = Clock(hourly, NIGHT + 48 * HOUR)
    assert not clock.strikes(NIGHT + 5)
    assert clock.due == NIGHT + HOUR and clock.strikes(NIGHT + HOUR)


def test_what_was_missed():
    last = {"began": datetime.fromtimestamp(NIGHT + 10, UTC).isoformat()}
    assert not missed(hourly, None, NIGHT)
    assert not missed(hourly, last, NIGHT + HOUR - 1)
    assert missed(hourly, last, NIGHT + HOUR)
    assert Clock(hourly, NIGHT + 5, at_once=True).strikes(NIGHT + 5)


def test_one_after_the_other(monkeypatch):
    """The backup first, each moment once, and nothing is forgotten while something is at work."""
    monkeypatch.setattr(schedule.journal, "read", lambda name: None)
    env = {"BACKUP_SCHEDULE": "0 3 * * *", "GC_SCHEDULE": "0 */3 * * *", "GC_OLDER_THAN": "7d"}
    turns = schedule.Turns(schedule.jobs(env, NIGHT))
    assert turns.due() == NIGHT + 3 * HOUR and turns.next(NIGHT + 3 * HOUR - 1, False) is None
    started = []
    for now, busy in (
        (3, False),
        (3.1, True),
        (3.2, False),
        (5.9, False),
        (6.5, True),
        (6.6, True),
        (6.7, False),
        (7, False),
    ):
        if job := turns.next(NIGHT + now * HOUR, busy):
            started.append((now, job.name))
    assert started == [(3, "backup"), (3.2, "clean-up"), (6.7, "clean-up")]


def test_what_is_asked_for(monkeypatch):
    """Nothing is removed that nobody asked for; a wrong setting is told at once; what was missed is made up for."""
    read = {}
    monkeypatch.setattr(schedule.journal, "read", lambda name: read.get(name))
    assert [job.name for job in schedule.jobs({}, NIGHT)] == ["backup"]
    _, cleaning = schedule.jobs({"GC_SCHEDULE": "0 5 * * 0", "GC_TRACES_OLDER_THAN": "90d"}, NIGHT)
    assert cleaning.words[2:] == ["stackops", "gc", "--apply", "--server", "mlflow:5000", "--traces-older-than", "90d"]
    assert cleaning.clock.due > NIGHT
    read["last-clean-up.json"] = {"began": datetime.fromtimestamp(NIGHT - 8 * 24 * HOUR, UTC).isoformat()}
    _, cleaning = schedule.jobs({"GC_SCHEDULE": "0 5 * * 0"}, NIGHT)
    assert cleaning.clock.due == NIGHT
    with pytest.raises(StackError, match="GC_SCHEDULE is 'weekly'; it must be five fields"):
        schedule.jobs({"GC_SCHEDULE": "weekly"}, NIGHT)
    with pytest.raises(StackError, match="GC_OLDER_THAN is 'soon'"):
        schedule.jobs({"GC_SCHEDULE": "0 5 * * 0", "GC_OLDER_THAN": "soon"}, NIGHT)


def test_where_to():
    words = schedule.command({"BACKUP_TO": "s3://b/p"})
    assert words[-4:] == ["--place", "s3://b/p", "--called", "s3://b/p"]
    assert schedule.command({"BACKUP_FOLDER": "/mnt/nas"})[-4:] == ["--place", "/backups", "--called", "/mnt/nas"]
    with pytest.raises(StackError, match="BACKUP_TO is /mnt/nas; .* a folder that BACKUP_FOLDER names"):
        schedule.command({"BACKUP_TO": "/mnt/nas"})


@pytest.mark.parametrize(
    ("last", "first", "said"),
    [
        (None, 0, []),
        (None, 9, ["no backup was made in 9 days"]),
        ({"ok": True, "days": 1}, 99, []),
        ({"ok": True, "days": 9}, 99, ["the last backup is 9 days old"]),
        (
            {"ok": False, "days": 0, "error": "the disk is full"},
            0,
            ["the last backup failed (2026-11-27T00:00): the disk is full"],
        ),  # noqa: E501
    ],
)
def test_the_doctor_looks(tmp_path, last, first, said):
    if last:
        last["ended"] = datetime.fromtimestamp(NIGHT - last["days"] * 86400, UTC).isoformat()
    known = {"time": NIGHT, "first": NIGHT - first * 86400, "backup": last}
    facts = Facts(tmp_path, {"live": json.dumps(known)}, NIGHT)
    assert [one.text for one in live.backups(facts)] == said
