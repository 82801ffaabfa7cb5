"""Compares a SQLite file and a PostgreSQL database row by row, with the two drivers alone.

Shares no code with the tool: it asks PostgreSQL for each column's type, reads both sides whole and sorts them.
"""

import datetime
import functools
import json
import sqlite3
import struct
import subprocess
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2

# What MLflow's own upgrades move elsewhere: the trace's name is a column of trace_info from 3.17 on.
STAYS = {"trace_tags": " WHERE key <> 'mlflow.traceName'"}


def plain(kind: str, value: Any) -> Any:
    """Return a value in a form in which equal means equal: floats by their bits, JSON by its text."""
    if value is None:
        return None
    if kind == "double precision":
        return struct.pack(">d", float(value))
    if kind == "boolean":
        assert value in (0, 1, True, False), value
        return bool(value)
    if kind == "date":
        return value if isinstance(value, str) else value.isoformat()
    if kind == "bytea":
        return bytes(value)
    if kind == "json" and not isinstance(value, str):
        return json.dumps(value)  # SQLite keeps a JSON number as a number
    assert not isinstance(value, (float, datetime.date)), (kind, value)
    return value


def differences(sqlite: Path, dsn: str, tables: set[str] | None = None, older: bool = False) -> list[str]:
    """Return what differs, one line a table; `tables` limits it, and the revision is compared as a table.

    With `older`, the columns are compared that the SQLite file has.
    """
    found = []
    with closing(sqlite3.connect(sqlite)) as left, closing(psycopg2.connect(dsn)) as right, right.cursor() as cursor:
        cursor.execute(
            "SELECT table_name, column_name, data_type FROM information_schema.columns "
            "WHERE table_schema = 'public' ORDER BY 1, ordinal_position"
        )
        columns: dict[str, list[tuple[str, str]]] = {}
        for table, name, kind in cursor.fetchall():
            columns.setdefault(table, []).append((name, kind))
        if older:
            owned = {t: {c[1] for c in left.execute(f'PRAGMA table_info("{t}")')} for t in columns}
            columns = {t: kept for t, own in columns.items() if (kept := [c for c in own if c[0] in owned[t]])}
        for table in sorted(tables or columns):
            names = [name for name, _ in columns[table]]
            kinds = [kind for _, kind in columns[table]]
            wanted = ", ".join(f'"{name}"::text' if kind == "json" else f'"{name}"' for name, kind in columns[table])
            only = STAYS.get(table, "") if older else ""
            cursor.execute(f'SELECT {wanted} FROM "{table}"{only}')
            there = Counter(tuple(map(plain, kinds, row)) for row in cursor.fetchall())
            wanted = ", ".join(f'"{name}"' for name in names)
            rows = left.execute(f'SELECT {wanted} FROM "{table}"{only}').fetchall()
            here = Counter(tuple(map(plain, kinds, row)) for row in rows)
            if here != there:
                found.append(
                    f"{table}: only in SQLite {list(here - there)[:2]}, only in PostgreSQL {list(there - here)[:2]}"
                )
    return found


def lost(old: str, new: str) -> list[str]:
    """Return what of the database `old` is not in `new`: for each table, the columns that both have, as text."""
    columns: list[dict[str, list[str]]] = []
    found = []
    with closing(psycopg2.connect(old)) as left, closing(psycopg2.connect(new)) as right:
        for connection in (left, right):
            columns.append({})
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public' "
                    "AND is_generated = 'NEVER' ORDER BY 1, ordinal_position"
                )
                for table, name in cursor.fetchall():
                    columns[-1].setdefault(table, []).append(name)
        for table, names in columns[0].items():
            common = ", ".join(f'"{name}"::text' for name in names if name in columns[1].get(table, []))
            rows = []
            for connection in (left, right):
                with connection.cursor() as cursor:
                    cursor.execute(f'SELECT {common} FROM "{table}"{STAYS.get(table, "")}')
                    rows.append(Counter(cursor.fetchall()))
            if rows[0] != rows[1]:
                found.append(f"{table}: only {list(rows[0] - rows[1])[:2]}, instead {list(rows[1] - rows[0])[:2]}")
    return found


@functools.cache
def fresh(container: str) -> str:
    """Return `schema` of the database that nobody has moved anything into."""
    return schema(container, "fresh")


def schema(container: str, database: str) -> str:
    """Return what pg_dump says the database is made of, without its random tokens and sequences' positions."""
    done = subprocess.run(
        ["docker", "exec", container, "pg_dump", "--schema-only", "--username", "postgres", database],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return "\n".join(x for x in done.stdout.splitlines() if not x.startswith(("\\restrict", "\\unrestrict", "--")))


def content(dsn: str) -> dict[str, tuple[int, str | None]]:
    """Return count and a hash of the rows of every table."""
    with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
        found = {}
        for (table,) in cursor.fetchall():
            cursor.execute(f"""SELECT count(*), md5(string_agg(t::text, '|' ORDER BY t::text)) FROM "{table}" t""")
            found[table] = cursor.fetchone()
    return found
