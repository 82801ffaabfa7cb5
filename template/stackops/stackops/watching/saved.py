"""The last backup: when, whether it succeeded, what is in it."""

from collections.abc import Mapping
from datetime import datetime

from stackops.saving import journal
from stackops.watching import Figures, gauge


def figures(env: Mapping[str, str]) -> Figures:
    """Yield the figures of the last backup, if there was one, and when the next is due, if one is."""
    if last := journal.read():
        ended = datetime.fromisoformat(last["ended"]).timestamp()
        began = datetime.fromisoformat(last["began"]).timestamp()
        yield gauge("stack_backup_ok", "Whether the last backup succeeded.", int(last["ok"]))
        yield gauge("stack_backup_ended_seconds", "When the last backup ended.", ended)
        yield gauge("stack_backup_duration_seconds", "How long the last backup took.", ended - began)
        if last["ok"]:
            yield gauge("stack_backup_bytes", "Size of the database in the last backup.", last["bytes"])
            yield gauge("stack_backup_rows", "Rows in the last backup.", last["rows"])
            yield gauge("stack_backup_objects", "Artifacts in the last backup.", last["objects"])
    if (due := journal.due()) is not None:
        yield gauge("stack_backup_due_seconds", "When the next backup is due.", due)
