"""Moves the rows of an older MLflow's PostgreSQL database, or an older backup, and brings them up to date.

The source is never upgraded: its server goes on with it. Its rows come into tables of its own revision, in a
schema of their own inside the target's database, and are compared there. MLflow's own command then upgrades
them, and they take the place of the old tables.
"""

from collections.abc import Callable, Mapping, Sequence

from stackops.errors import StackError
from stackops.migration import load, staging, verify
from stackops.migration.target import Target, settle

Say = Callable[[str], None]


def is_older(source, target: Target) -> bool:
    """Whether the source's tracking tables are older than the target's; `look` has refused newer ones."""
    revision = source.parts.get("tracking")
    return revision is not None and revision != target.parts["tracking"]


def bring(target: Target, source, env: Mapping[str, str], say: Say) -> None:
    """Fill the schema with the source's rows, and upgrade it; commit. Raises StackError."""
    staging.make(target, env, source.parts["tracking"])
    with load.explained(target):
        stage = staging.entered(target)
        if missing := sorted(set(stage.tables) - set(source.tables)):
            raise StackError(
                f"{source.called} has no table {missing[0]}, which belongs to its schema "
                f"{source.parts['tracking']}; look for the right database"
            )
        names = sorted(stage.tables)
        load.replace_rows(stage, source, names, say)
        verify.same_rows(stage, source, names)
        target.connection.commit()
    say(f"verified: {len(names)} tables, count and checksum of every one equal on both sides")
    say(f"schema: the rows go from {source.parts['tracking']} to {target.parts['tracking']}")
    staging.upgrade(env)
    with load.explained(target), target.cursor() as cursor:
        settle(cursor)


def finish(target: Target, source, users: Sequence[str], say: Say) -> None:
    """Put the upgraded tables in the place of the old ones, load MLflow's `users` as they are, and commit.

    The caller holds the locks. Raises StackError; then the old tables are there.
    """
    with load.explained(target):
        before = verify.shape(target)
        if users:
            load.replace_rows(target, source, users, say)
            verify.same_rows(target, source, users)
            say(f"verified: MLflow's users, {len(users)} tables, equal on both sides")
        with target.cursor() as cursor:
            cursor.execute(f"SELECT tablename FROM pg_tables WHERE schemaname = '{staging.SCHEMA}'")
            names = [name for (name,) in cursor.fetchall()]
        staging.ready(target, names)
        staging.take_over(target, before, say)
        target.connection.commit()
