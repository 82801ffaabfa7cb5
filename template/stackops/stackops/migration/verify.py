"""Are both sides the same: every row, and everything that the tables are made of."""

from collections.abc import Sequence

from stackops.errors import StackError
from stackops.migration import catalogue, values
from stackops.migration.files import quoted
from stackops.migration.source import Sums
from stackops.migration.target import Target


def shape(target: Target) -> list[str]:
    """Return everything that the target's schema is made of."""
    with target.cursor() as cursor:
        return catalogue.everything(cursor)


def same_shape(target: Target, before: Sequence[str]) -> None:
    """Raise StackError unless the schema is what it was `before`, and every sequence is ahead of its
    column."""
    after = shape(target)
    if after != list(before):
        lost, new = sorted(set(before) - set(after)), sorted(set(after) - set(before))
        example = (lost or new)[0]
        raise StackError(
            f"the schema came out different: {len(lost)} parts lost and {len(new)} new, for example "
            f"{example!r}; "
            "nothing was changed, please report this"
        )
    with target.cursor() as cursor:
        cursor.execute(catalogue.SEQUENCES)
        for table, column, sequence in cursor.fetchall():
            cursor.execute(
                f"SELECT (SELECT max({quoted(column)}) FROM {quoted(table)}) >= last_value + is_called::int "
                f"FROM {quoted(sequence)}"
            )
            if cursor.fetchone()[0]:
                raise StackError(
                    f"the sequence of {table}.{column} is behind its rows; nothing was changed, please "
                    "report this"
                )


def sums(target: Target, table: str) -> Sums:
    """Return count and checksum of a table, computed by the target's server."""
    with target.cursor() as cursor:
        cursor.execute(values.checksum_sql(quoted(table), target.tables[table].kinds))
        count, total = cursor.fetchone()
    return Sums(count, int(total))


def same_rows(target: Target, source, names: Sequence[str]) -> None:
    """Raise StackError unless every table has the same rows on both sides."""
    different = []
    for name in names:
        there, here = source.total(name), sums(target, name)
        if there != here.rows:
            different.append(f"{name} has {here.rows} rows instead of {there}")
        elif there and source.sums(name, target.tables[name].kinds) != here:
            different.append(f"{name} has other values than the source")
    if different:
        more = f" and {len(different) - 1} more" if different[1:] else ""
        raise StackError(f"source and target differ: {different[0]}{more}; nothing was changed")
