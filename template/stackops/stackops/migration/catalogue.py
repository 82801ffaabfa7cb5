"""What the tables of a PostgreSQL database are made of, and how to take big ones apart for a load."""

from dataclasses import dataclass, field

from stackops.errors import StackError
from stackops.migration.files import quoted

KINDS = {
    "integer": "int4",
    "bigint": "int8",
    "double precision": "float8",
    "boolean": "bool",
    "character varying": "text",
    "text": "text",
    "json": "json",
    "date": "date",
    "bytea": "bytes",
}

COLUMNS = """
SELECT c.relname, a.attname, t.typname, format_type(a.atttypid, NULL),
       CASE WHEN a.atttypmod > 4 AND t.typname = 'varchar' THEN a.atttypmod - 4 END, a.attnotnull
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid JOIN pg_type t ON t.oid = a.atttypid
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
    AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
ORDER BY c.relname, a.attnum
"""

CONSTRAINTS = """
SELECT r.relname, c.conname, c.contype, pg_get_constraintdef(c.oid),
       (SELECT array_agg(attname::text ORDER BY n) FROM unnest(c.conkey) WITH ORDINALITY AS k(num, n)
        JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.num),
       f.relname,
       (SELECT array_agg(attname::text ORDER BY n) FROM unnest(c.confkey) WITH ORDINALITY AS k(num, n)
        JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.num)
FROM pg_constraint c JOIN pg_class r ON r.oid = c.conrelid LEFT JOIN pg_class f ON f.oid = c.confrelid
WHERE r.relnamespace = current_schema()::regnamespace AND c.contype IN ('p', 'u', 'f')
ORDER BY c.contype = 'f', r.relname, c.conname
"""

INDEXES = """
SELECT r.relname, i.relname, pg_get_indexdef(i.oid)
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class r ON r.oid = x.indrelid
WHERE r.relnamespace = current_schema()::regnamespace
    AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.oid AND c.contype IN ('p', 'u', 'x'))
ORDER BY r.relname, i.relname
"""

EVERYTHING = """
WITH relation AS (
    SELECT oid, relname, relkind, relowner FROM pg_class WHERE relnamespace = current_schema()::regnamespace
)
SELECT concat_ws(' ', relkind, relname, 'owner', relowner::regrole)
FROM relation WHERE relkind NOT IN ('i', 'I')
UNION ALL
SELECT concat_ws(' ', 'column', r.relname, a.attname, format_type(a.atttypid, a.atttypmod),
                 'required', a.attnotnull, 'identity', a.attidentity, 'generated', a.attgenerated,
                 pg_get_expr(d.adbin, d.adrelid))
FROM relation r JOIN pg_attribute a ON a.attrelid = r.oid
LEFT JOIN pg_attrdef d ON d.adrelid = r.oid AND d.adnum = a.attnum
WHERE r.relkind IN ('r', 'p', 'v', 'm') AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT concat_ws(' ', 'constraint', r.relname, c.conname, pg_get_constraintdef(c.oid),
                 'valid', c.convalidated)
FROM relation r JOIN pg_constraint c ON c.conrelid = r.oid
UNION ALL
SELECT concat_ws(' ', pg_get_indexdef(x.indexrelid), 'valid', x.indisvalid, 'replica', x.indisreplident)
FROM relation r JOIN pg_index x ON x.indrelid = r.oid
UNION ALL
SELECT concat_ws(' ', pg_get_triggerdef(t.oid), 'enabled', t.tgenabled)
FROM relation r JOIN pg_trigger t ON t.tgrelid = r.oid WHERE NOT t.tgisinternal
UNION ALL
SELECT concat_ws(' ', 'sequence', s.relname, 'of', r.relname, a.attname, q.seqtypid::regtype,
                 q.seqincrement, q.seqmin, q.seqmax, q.seqcycle)
FROM relation s JOIN pg_sequence q ON q.seqrelid = s.oid
LEFT JOIN pg_depend d ON d.objid = s.oid AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0
LEFT JOIN relation r ON r.oid = d.refobjid
LEFT JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum = d.refobjsubid
"""

SEQUENCES = """
SELECT r.relname, a.attname, s.relname
FROM pg_class s
JOIN pg_depend d ON d.objid = s.oid AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
JOIN pg_class r ON r.oid = d.refobjid
JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum = d.refobjsubid
WHERE s.relkind = 'S' AND s.relnamespace = current_schema()::regnamespace
ORDER BY r.relname
"""

GRANTS = """
WITH granted AS (
    SELECT c.relkind, c.relname, c.relowner, NULL::name AS attname, g.*
    FROM pg_class c CROSS JOIN aclexplode(c.relacl) g
    WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p', 'S')
    UNION ALL
    SELECT c.relkind, c.relname, c.relowner, a.attname, g.*
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid CROSS JOIN aclexplode(a.attacl) g
    WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
)
SELECT DISTINCT CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, relname, attname, privilege_type,
       CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END, is_grantable
FROM granted WHERE grantee <> relowner ORDER BY 1, 2, 3, 4, 5, 6
"""


@dataclass(frozen=True)
class Column:
    """A column that can be written: its kind (see `values`), its length if it is limited."""

    name: str
    kind: str
    length: int | None
    required: bool


@dataclass(frozen=True)
class ForeignKey:
    """A foreign key as SQL, and the columns that it compares."""

    name: str
    definition: str
    columns: tuple[str, ...]
    parent: str
    parent_columns: tuple[str, ...]


@dataclass
class Table:
    """A table of the target."""

    name: str
    columns: list[Column] = field(default_factory=list)
    key: tuple[str, ...] = ()
    foreign_keys: list[ForeignKey] = field(default_factory=list)
    constraints: list[tuple[str, str]] = field(default_factory=list)  # primary key and unique: name, SQL
    indexes: list[tuple[str, str]] = field(default_factory=list)  # those of no constraint: name, SQL

    @property
    def kinds(self) -> list[tuple[str, str]]:
        """(name, kind) of each column."""
        return [(column.name, column.kind) for column in self.columns]


def tables(cursor) -> dict[str, Table]:
    """Return the tables of the current schema. Raises StackError for a type that no MLflow table has."""
    found: dict[str, Table] = {}
    cursor.execute(COLUMNS)
    for table, name, _, type_name, length, required in cursor.fetchall():
        if type_name not in KINDS:
            raise StackError(
                f"the target's column {table}.{name} has the type {type_name}, which this release of the "
                "stack "
                "cannot move; look for a newer release of the template"
            )
        column = Column(name, KINDS[type_name], length, required)
        found.setdefault(table, Table(table)).columns.append(column)
    cursor.execute(CONSTRAINTS)
    for table, name, kind, definition, columns, parent, parent_columns in cursor.fetchall():
        if kind == "f":
            key = ForeignKey(name, definition, tuple(columns), parent, tuple(parent_columns))
            found[table].foreign_keys.append(key)
        else:
            found[table].constraints.append((name, definition))
            if kind == "p":
                found[table].key = tuple(columns)
    cursor.execute(INDEXES)
    for table, name, definition in cursor.fetchall():
        found[table].indexes.append((name, definition))
    return found


def everything(cursor) -> list[str]:
    """Return one line for each part of the current schema: tables, columns, constraints, indexes, triggers, …

    The schema's own name is left out, so that equal schemas give equal lists.
    """
    cursor.execute("SELECT quote_ident(current_schema())")
    (schema,) = cursor.fetchone()
    cursor.execute(EVERYTHING)
    return sorted(line.replace(f"{schema}.", "") for (line,) in cursor.fetchall())


def grants(cursor) -> list[str]:
    """Return the statements that give others what they may do with the tables and sequences."""
    cursor.execute(GRANTS)
    return [
        f"GRANT {privilege}{f' ({quoted(column)})' if column else ''} ON {kind} {quoted(name)} TO {role}"
        + (" WITH GRANT OPTION" if grantable else "")
        for kind, name, column, privilege, role, grantable in cursor.fetchall()
    ]


def take_apart(table: Table, foreign_keys_only: bool) -> tuple[list[str], list[str]]:
    """Return the statements that take a table's foreign keys, or its other constraints and indexes, away, and
    those that bring them back.

    The caller takes away all foreign keys before any primary key, and brings them back last.
    """
    alter = f"ALTER TABLE {quoted(table.name)}"
    if foreign_keys_only:
        away = [f"{alter} DROP CONSTRAINT {quoted(key.name)}" for key in table.foreign_keys]
        return away, [
            f"{alter} ADD CONSTRAINT {quoted(key.name)} {key.definition}" for key in table.foreign_keys
        ]
    away = [f"{alter} DROP CONSTRAINT {quoted(name)}" for name, _ in table.constraints]
    away += [f"DROP INDEX {quoted(name)}" for name, _ in table.indexes]
    back = [f"{alter} ADD CONSTRAINT {quoted(name)} {definition}" for name, definition in table.constraints]
    return away, back + [definition for _, definition in table.indexes]


def restart_sequences(cursor) -> int:
    """Let every serial and identity column go on after its highest value; return how many there are.

    ALTER SEQUENCE belongs to the transaction; setval would not.
    """
    cursor.execute(SEQUENCES)
    found = cursor.fetchall()
    for table, column, sequence in found:
        cursor.execute(f"SELECT coalesce(max({quoted(column)}), 0) + 1 FROM {quoted(table)}")
        (following,) = cursor.fetchone()
        cursor.execute(f"ALTER SEQUENCE {quoted(sequence)} RESTART WITH {max(following, 1)}")
    return len(found)
