"""Finds what PostgreSQL would refuse or change in the prepared copy of a SQLite file.

SQLite checks neither lengths nor types nor the encoding of text, and foreign keys only when it is asked to.
"""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from stackops import artifact_uris
from stackops.errors import one_line
from stackops.migration.catalogue import Column, ForeignKey, Table
from stackops.migration.files import quoted
from stackops.migration.report import Hazard
from stackops.migration.source import SQLite

INT4 = 2**31 - 1

FIXES = {
    "nul": "takes the zero bytes out of text",
    "utf8": "puts U+FFFD in place of bytes that are no UTF-8",
    "json": "writes null for NaN and Infinity, and quotes what is no JSON",
    "orphans": "leaves out rows whose parent row is missing",
    "shorten": "cuts text to the length of its column",
    "renumber": "gives experiments with long ids the next short ones",
    "rows": "leaves out rows with a value that no column of that type can hold",
    "rollups": "leaves out the daily sums of traces, which MLflow can make again from the traces",
}
"""The repairs that FIX= may name; they are made on the copy."""


@dataclass(frozen=True)
class Rule:
    """A condition, in SQLite's SQL, on one column that must not hold. `{0}` is the column."""

    code: str
    kinds: tuple[str, ...]
    condition: str
    why: str
    fix: str


TEXT = ("text", "json", "date")
RULES = (
    Rule("bytes-in-text", TEXT, "typeof({0}) = 'blob'", "bytes where text belongs", "rows"),
    Rule(
        "not-a-number", ("int4", "int8", "bool"),
        "typeof({0}) IN ('text', 'blob', 'real') AND CAST({0} AS INTEGER) <> {0} AND "
        "CAST(CAST({0} AS INTEGER) AS TEXT) <> CAST({0} AS TEXT)",
        "no whole number", "rows",
    ),
    Rule("not-a-number", ("float8",), "typeof({0}) IN ('text', 'blob')", "no number", "rows"),
    Rule(
        "too-big", ("int4",), "CAST({0} AS INTEGER) NOT BETWEEN -2147483648 AND 2147483647",
        "more than PostgreSQL's integer holds", "rows",
    ),
    Rule("not-a-boolean", ("bool",), "CAST({0} AS INTEGER) NOT IN (0, 1)", "neither 0 nor 1", "rows"),
    Rule("not-a-date", ("date",), "date(julianday({0})) IS NOT CAST({0} AS TEXT)", "no date", "rows"),
)  # fmt: skip


def find(source: SQLite, tables: dict[str, Table]) -> list[Hazard]:
    """Return everything that stands in the way of moving the rows of `source` into `tables`."""
    found: list[Hazard] = []
    for table in tables.values():
        missing = [column.name for column in table.columns if column.name not in source.tables[table.name]]
        if missing:
            found += [
                Hazard(
                    "missing-column",
                    table.name,
                    name,
                    source.total(table.name),
                    "",
                    "the source has no such column",
                    "",
                )
                for name in missing
            ]
            continue
        found += _typed(source, table)
        found += _texts(source, table)
    for table in tables.values():
        for key in table.foreign_keys:
            found += _orphans(source, table, key)
    return found


def conditions(table: Table) -> Iterator[tuple[Column, str, str, str, str]]:
    """Yield (column, code, condition, why, fix) for all that SQL can check of a table."""
    places = {(place.table, place.column) for place in artifact_uris.PLACES}
    for column in table.columns:
        name = quoted(column.name)
        if column.required:
            yield column, "null", f"{name} IS NULL", "no value, and PostgreSQL wants one", "rows"
        if column.length:
            uri = (table.name, column.name) in places
            why, fix = f"longer than {column.length} characters", "ARTIFACTS=old=new" if uri else "shorten"
            yield column, "too-long", f"length(CAST({name} AS TEXT)) > {column.length}", why, fix
        for rule in RULES:
            if column.kind in rule.kinds:
                fix = "renumber" if rule.code == "too-big" and column.name == "experiment_id" else rule.fix
                yield (
                    column,
                    rule.code,
                    f"{name} IS NOT NULL AND {rule.condition.format(name)}",
                    rule.why,
                    fix,
                )


def _typed(source: SQLite, table: Table) -> list[Hazard]:
    """Check types, lengths and missing values: all in one pass of SQLite's own."""
    checks = list(conditions(table))
    if not checks:
        return []
    sums = ", ".join(f"sum({condition})" for _, _, condition, _, _ in checks)
    row = source.connection.execute(f"SELECT {sums} FROM {quoted(table.name)}").fetchone()
    return [
        Hazard(
            code,
            table.name,
            column.name,
            count,
            example(source, table, column.name, condition),
            why,
            in_words(fix),
        )
        for (column, code, condition, why, fix), count in zip(checks, row, strict=True)
        if count
    ]


def in_words(fix: str) -> str:
    """Return what to add to the command for a repair."""
    return f"FIX={fix}" if fix in FIXES else fix


def example(source: SQLite, table: Table, column: str, condition: str, parameters: tuple = ()) -> str:
    """Return one of the rows: the columns of its key, and the value in question."""
    key = [name for name in table.key if name != column]
    shown = ", ".join(f"substr(CAST({quoted(name)} AS BLOB), 1, 120)" for name in [*key, column])
    row = source.connection.execute(
        f"SELECT {shown} FROM {quoted(table.name)} WHERE {condition} LIMIT 1", parameters
    ).fetchone()
    if row is None:
        return ""
    texts = [
        "NULL"
        if value is None
        else one_line(value.decode("utf-8", "backslashreplace"), 80).replace("\0", "\\0")
        for value in row
    ]
    where = ", ".join(f"{name} {text}" for name, text in zip(key, texts, strict=False))
    return f"{texts[-1]} ({where})" if where else texts[-1]


def bad_text(value: bytes) -> str | None:
    """Return which hazard the text is: `nul`, `utf8` or None."""
    if b"\0" in value:
        return "nul"
    try:
        value.decode()
    except UnicodeDecodeError:
        return "utf8"
    return None


def bad_json(value: bytes) -> str | None:
    """Return `json` if PostgreSQL would not take the text for JSON, which Python's NaN and Infinity are
    not."""

    def refuse(name: str):
        raise ValueError(name)

    try:
        json.loads(value, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None if bad_text(value) else "json"
    return None


TEXT_HAZARDS = {
    "nul": "a zero byte, which PostgreSQL cannot store",
    "utf8": "bytes that are no UTF-8",
    "json": "no JSON to PostgreSQL",
}


def _texts(source: SQLite, table: Table) -> list[Hazard]:
    """Check what is inside of text. Columns of a foreign key equal a column that is checked, or are
    orphans."""
    borrowed = {name for key in table.foreign_keys for name in key.columns}
    wanted = [
        (c.name, c.kind) for c in table.columns if c.kind in ("text", "json") and c.name not in borrowed
    ]
    if not wanted:
        return []
    counts: dict[tuple[str, str], int] = {}
    for batch in source.batches(table.name, wanted):
        for (name, kind), column in zip(wanted, batch, strict=True):
            texts = [value for value in column if value is not None] if None in column else column
            together = b"\n".join(texts)
            if bad_text(together):
                for code in filter(None, map(bad_text, texts)):
                    counts[name, code] = counts.get((name, code), 0) + 1
            if kind == "json":
                for code in filter(None, map(bad_json, texts)):
                    counts[name, code] = counts.get((name, code), 0) + 1
    found = []
    if counts:
        source.connection.create_function("bad_text", 1, lambda v: v is not None and bad_text(v))
        source.connection.create_function("bad_json", 1, lambda v: v is not None and bad_json(v))
    for (name, code), count in sorted(counts.items()):
        check = "bad_json" if code == "json" else "bad_text"
        shown = example(source, table, name, f"{check}(CAST({quoted(name)} AS BLOB)) = '{code}'")
        found.append(Hazard(code, table.name, name, count, shown, TEXT_HAZARDS[code], in_words(code)))
    return found


def orphan_condition(table: Table, key: ForeignKey) -> str:
    """Return the condition, in SQLite's SQL, for rows whose parent is missing; NULL has no parent to miss."""
    child = f"{quoted(table.name)}."
    same = " AND ".join(
        f"parent.{quoted(theirs)} = {child}{quoted(ours)}"
        for ours, theirs in zip(key.columns, key.parent_columns, strict=True)
    )
    there = " AND ".join(f"{child}{quoted(name)} IS NOT NULL" for name in key.columns)
    return f"{there} AND NOT EXISTS (SELECT 1 FROM {quoted(key.parent)} AS parent WHERE {same})"


def _orphans(source: SQLite, table: Table, key: ForeignKey) -> list[Hazard]:
    condition = orphan_condition(table, key)
    try:
        (count,) = source.connection.execute(
            f"SELECT count(*) FROM {quoted(table.name)} WHERE {condition}"
        ).fetchone()
    except sqlite3.OperationalError:
        return []  # a missing column, which is a hazard of its own
    if not count:
        return []
    shown = example(source, table, key.columns[0], condition)
    why = f"no such row in {key.parent}"
    return [Hazard("orphans", table.name, key.columns[0], count, shown, why, "FIX=orphans")]
