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


def differences(sqlite: Path, dsn: str, tables: set[str] | None = None) -> list[str]:
    """Return what differs, one line a table; `tables` limits it, and the revision is compared as a table."""
    found = []
    with closing(sqlite3.connect(sqlite)) as left, closing(psycopg2.connect(dsn)) as right, right.cursor() as cursor:
        cursor.execute(
            "SELECT table_name, column_name, data_type FROM information_schema.columns "
            "WHERE table_schema = 'public' ORDER BY 1, ordinal_position"
        )
        columns: dict[str, list[tuple[str, str]]] = {}
        for table, name, kind in cursor.fetchall():
            columns.setdefault(table, []).append((name, kind))
        for table in sorted(tables or columns):
            names = [name for name, _ in columns[table]]
            kinds = [kind for _, kind in columns[table]]
            wanted = ", ".join(f'"{name}"::text' if kind == "json" else f'"{name}"' for name, kind in columns[table])
            cursor.execute(f'SELECT {wanted} FROM "{table}"')
            there = Counter(tuple(map(plain, kinds, row)) for row in cursor.fetchall())
            wanted = ", ".join(f'"{name}"' for name in names)
            rows = left.execute(f'SELECT {wanted} FROM "{table}"').fetchall()
            here = Counter(tuple(map(plain, kinds, row)) for row in rows)
            if here != there:
                found.append(
                    f"{table}: only in SQLite {list(here - there)[:2]}, only in PostgreSQL {list(there - here)[:2]}"
                )
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
