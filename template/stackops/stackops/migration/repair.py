"""Mends on the prepared copy what PostgreSQL would refuse: long experiment ids, and what FIX names."""

import sqlite3
from collections.abc import Callable, Mapping, Sequence

from stackops.errors import StackError, one_line
from stackops.migration import hazards, switches
from stackops.migration.catalogue import Table
from stackops.migration.files import quoted
from stackops.migration.source import SQLite

Say = Callable[[str], None]

PROMPT_EXPERIMENTS = "_mlflow_experiment_ids"  # the tag of a prompt with the experiments that use it: ,1,2,


def renumber(connection: sqlite3.Connection) -> dict[int, int]:
    """Give experiments whose id PostgreSQL cannot hold the next free ones, by age. Return old id -> new
    id."""
    too_big = connection.execute(
        "SELECT experiment_id FROM experiments WHERE experiment_id > ? ORDER BY creation_time, experiment_id",
        (hazards.INT4,),
    ).fetchall()
    (highest,) = connection.execute(
        "SELECT coalesce(max(experiment_id), 0) FROM experiments WHERE experiment_id <= ?", (hazards.INT4,)
    ).fetchone()
    numbers = {old: highest + 1 + position for position, (old,) in enumerate(too_big)}
    if not numbers:
        return {}
    connection.execute("BEGIN")
    connection.execute("CREATE TEMP TABLE renumbered (old INTEGER PRIMARY KEY, new INTEGER NOT NULL)")
    connection.executemany("INSERT INTO renumbered VALUES (?, ?)", numbers.items())
    places = [
        (table, "experiment_id", "")
        for (table,) in connection.execute(
            "SELECT m.name FROM sqlite_master m JOIN pragma_table_info(m.name) c "
            "WHERE m.type = 'table' AND c.name = 'experiment_id'"
        ).fetchall()
    ]
    places += [
        ("entity_associations", f"{end}_id", f" AND {end}_type = 'experiment'")
        for end in ("source", "destination")
    ]
    for table, column, only in places:
        connection.execute(
            f"UPDATE {quoted(table)} SET {column} = (SELECT new FROM renumbered WHERE old = CAST({column} "
            "AS INTEGER)) "
            f"WHERE CAST({column} AS INTEGER) IN (SELECT old FROM renumbered){only}"
        )
    for name, value in connection.execute(
        "SELECT name, value FROM registered_model_tags WHERE key = ?", (PROMPT_EXPERIMENTS,)
    ).fetchall():
        ids = [str(numbers.get(int(word), word)) if word.isdecimal() else word for word in value.split(",")]
        connection.execute(
            "UPDATE registered_model_tags SET value = ? WHERE name = ? AND key = ?",
            (",".join(ids), name, PROMPT_EXPERIMENTS),
        )
    connection.execute("DROP TABLE renumbered")
    connection.execute("COMMIT")
    return numbers


def drop_rollups(source: SQLite, say: Say) -> None:
    """Delete the daily sums of traces, and what waits for them to be made again."""
    for name in (*switches.ROLLUPS, switches.ROLLUP_QUEUE):
        if name in source.tables and (count := source.total(name)):
            source.connection.execute(f"DELETE FROM {quoted(name)}")
            say(f"repaired: {name}: {count} rows left out ({hazards.FIXES['rollups']})")


def repair(
    source: SQLite,
    tables: Mapping[str, Table],
    found: Sequence[hazards.Hazard],
    fixes: Sequence[str],
    say: Say,
) -> None:
    """Repair on the copy what `fixes` names. Raises StackError if two rows would become one."""
    connection = source.connection
    connection.create_function("mended", 2, _mended)
    connection.execute("BEGIN")
    try:
        for hazard in found:
            fix = hazard.fix.removeprefix("FIX=")
            if fix not in fixes or fix in ("orphans", "renumber"):
                continue
            table, column = quoted(hazard.table), quoted(hazard.column)
            if fix == "shorten":
                length = next(c.length for c in tables[hazard.table].columns if c.name == hazard.column)
                done = connection.execute(
                    f"UPDATE {table} SET {column} = substr({column}, 1, {length}) WHERE length({column}) > "
                    f"{length}"
                )
            elif fix == "rows":
                condition = next(
                    condition
                    for c, code, condition, _, _ in hazards.conditions(tables[hazard.table])
                    if c.name == hazard.column and code == hazard.code
                )
                done = connection.execute(f"DELETE FROM {table} WHERE {condition}")
            else:
                done = connection.execute(
                    f"UPDATE {table} SET {column} = CAST(mended('{fix}', CAST({column} AS BLOB)) AS TEXT) "
                    f"WHERE mended('{fix}', CAST({column} AS BLOB)) IS NOT CAST({column} AS BLOB)"
                )
            say(f"repaired: {hazard.table}.{hazard.column}: {done.rowcount} rows ({hazards.FIXES[fix]})")
        if "orphans" in fixes:
            _drop_orphans(connection, tables, say)
        connection.execute("COMMIT")
    except sqlite3.IntegrityError as error:
        raise StackError(
            f"a repair would make two rows equal ({one_line(error)}); mend them in the source"
        ) from None


def _mended(fix: str, value: bytes | None) -> bytes | None:
    if value is None:
        return None
    if fix == "nul":
        return value.replace(b"\0", b"")
    if fix == "utf8":
        return value.decode("utf-8", "replace").encode()
    return _valid_json(value) if hazards.bad_json(value) else value


def _valid_json(value: bytes) -> bytes:
    """Return JSON without NaN and Infinity; text that is no JSON at all becomes a JSON string."""
    import json

    text = value.decode("utf-8", "replace")
    try:
        return json.dumps(json.loads(text, parse_constant=lambda name: None)).encode()
    except (ValueError, RecursionError):
        return json.dumps(text).encode()


def _drop_orphans(connection: sqlite3.Connection, tables: Mapping[str, Table], say: Say) -> None:
    """Delete rows without a parent, and then those that have lost theirs, until none is left."""
    gone: dict[str, int] = {}
    while True:
        before = sum(gone.values())
        for table in tables.values():
            for key in table.foreign_keys:
                done = connection.execute(
                    f"DELETE FROM {quoted(table.name)} WHERE {hazards.orphan_condition(table, key)}"
                )
                gone[table.name] = gone.get(table.name, 0) + done.rowcount
        if sum(gone.values()) == before:
            break
    for name, count in gone.items():
        if count:
            say(f"repaired: {name}: {count} rows left out ({hazards.FIXES['orphans']})")
