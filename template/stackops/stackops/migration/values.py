"""One column of one batch of rows, in the two forms that a move needs.

`copied` is the text that COPY reads. `hashed` is the text that the checksum is made of. They are made apart
from each other on purpose: a fault in one of them is found by comparing the checksums.

Values come from SQLite as None, int, float and bytes (text too: UTF-8, not decoded). Work is done by column
and not by row, because that keeps the loops in C.
"""

import struct
from collections.abc import Sequence
from hashlib import md5

from stackops.migration.files import quoted

NULL = b"\\N"
ESCAPES = ((b"\\", b"\\\\"), (b"\t", b"\\t"), (b"\n", b"\\n"), (b"\r", b"\\r"))

SQLITE = {
    "int4": "CAST({0} AS INTEGER)",
    "int8": "CAST({0} AS INTEGER)",
    "bool": "CAST({0} AS INTEGER)",
    "float8": "CAST({0} AS REAL)",
    "bytes": "CAST({0} AS BLOB)",
    "text": "CAST({0} AS TEXT)",
    "json": "{0}",
    "date": "CAST({0} AS TEXT)",
}
"""How a column of each kind is read from SQLite, whose columns hold values of any type; `hazards` has made
sure that no cast loses anything. SQLite takes JSON that is one number for a number, and would write it with
15 digits: see `json_text`."""

POSTGRES = {
    "int4": "{0} || ','",
    "int8": "{0} || ','",
    "bool": "{0}::int || ','",
    "float8": "encode(float8send({0}), 'hex')",
    "bytes": "octet_length({0}) || ':' || encode({0}, 'hex')",
    "text": "octet_length({0}) || ':' || {0}",
    "json": "octet_length({0}::text) || ':' || {0}::text",
    "date": "to_char({0}, 'YYYY-MM-DD')",
}
"""`hashed` as PostgreSQL writes it."""


def json_text(values: Sequence) -> Sequence[bytes]:
    """Return JSON as text: numbers with all their digits."""
    return [v if v is None or isinstance(v, bytes) else repr(v).encode() for v in values]


def copied(kind: str, values: Sequence) -> Sequence[bytes]:
    """Return the values as COPY's text format writes them."""
    gaps = None in values
    if kind in ("text", "json"):
        found = _escaped([v or b"" for v in values] if gaps else values)
    elif kind == "float8":
        found = [b"%r" % v for v in values]
    elif kind == "bool":
        found = [b"t" if v else b"f" for v in values]
    elif kind == "bytes":
        found = [b"\\\\x%b" % (v or b"").hex().encode() for v in values]
    elif kind == "date":
        found = values
    else:
        found = [b"%d" % (v or 0) for v in values] if gaps else list(map(b"%d".__mod__, values))
    return [NULL if v is None else text for v, text in zip(values, found, strict=True)] if gaps else found


def _escaped(values: Sequence[bytes]) -> Sequence[bytes]:
    """Escape all values at once: none of them holds a zero byte, which PostgreSQL could not store."""
    together = b"\0".join(values)
    for plain, escaped in ESCAPES:
        if plain in together:
            together = together.replace(plain, escaped)
    return together.split(b"\0")


def hashed(kind: str, values: Sequence) -> Sequence[bytes]:
    """Return the values as the checksum sees them: text with its length, floats by their bits, NULL as N."""
    if kind in ("text", "json"):
        return [b"N" if v is None else b"%d:%b" % (len(v), v) for v in values]
    if kind == "float8":
        bits = struct.pack(f">{len(values)}d", *[v or 0.0 for v in values]).hex().encode()
        found = [bits[i : i + 16] for i in range(0, len(bits), 16)]
        if None in values:
            return [b"N" if v is None else text for v, text in zip(values, found, strict=True)]
        return found
    if kind == "bytes":
        return [b"N" if v is None else b"%d:%b" % (len(v), v.hex().encode()) for v in values]
    if kind == "date":
        return [b"N" if v is None else v for v in values]
    if None in values:
        return [b"N" if v is None else b"%d," % v for v in values]
    return list(map(b"%d,".__mod__, values))


def rows_copied(kinds: Sequence[str], columns: Sequence[Sequence]) -> bytes:
    """Return the lines of a batch, given by its columns."""
    fields = [copied(kind, values) for kind, values in zip(kinds, columns, strict=True)]
    return b"\n".join(map(b"\t".join, zip(*fields, strict=True))) + b"\n"


def checksum(kinds: Sequence[str], columns: Sequence[Sequence]) -> int:
    """Return the sum of the rows' hashes: the same in whatever order the rows come."""
    texts = [hashed(kind, values) for kind, values in zip(kinds, columns, strict=True)]
    digests = b"".join(
        [md5(row, usedforsecurity=False).digest() for row in map(b"".join, zip(*texts, strict=True))]
    )
    return sum(struct.unpack(">" + "q8x" * (len(digests) // 16), digests))


def checksum_sql(table: str, columns: Sequence[tuple[str, str]]) -> str:
    """Return the query that gives count and checksum of a table in PostgreSQL; columns are (name, kind)."""
    texts = [f"coalesce({POSTGRES[kind].format(quoted(name))}, 'N')" for name, kind in columns]
    row = f"('x' || substr(md5({' || '.join(texts)}), 1, 16))::bit(64)::bigint"
    return f"SELECT count(*), coalesce(sum({row}), 0)::text FROM {table}"
