"""Where the database says that artifacts are, and how to change it when they are somewhere else.

A mapping is an ordered list of pairs (old prefix, new prefix). A prefix means a folder and everything in it:
whole path segments, with or without a slash at its end. The longest prefix that fits wins, among equals the
first, and what came out is not looked at again.

`PLACES` are all columns of MLflow 3.17's tables that hold such locations. Others only look like it:
`datasets.dataset_source` names the user's own data, `models:/…` and `runs:/…` in `model_versions.source` are
links inside MLflow, and tags, spans and files named MLmodel repeat a path that nobody follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stackops.errors import StackError, one_line

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.sql.elements import ColumnElement

Mapping = Sequence[tuple[str, str]]
SERVED = "mlflow-artifacts:"


@dataclass(frozen=True)
class Place:
    """A column with locations: what its rows are called, its length if it is limited, and, in the table of
    trace tags, which tag it is. `by_server`: only the server follows it, so it is never mlflow-artifacts:."""

    noun: str
    table: str
    column: str
    length: int | None = None
    tag: str | None = None
    by_server: bool = False

    @property
    def name(self) -> str:
        """`table.column`, and the tag."""
        return f"{self.table}.{self.column}" + (f" ({self.tag})" if self.tag else "")


PLACES = (
    Place("experiment", "experiments", "artifact_location", 256),
    Place("run", "runs", "artifact_uri", 200),
    Place("model", "logged_models", "artifact_location", 1000),
    Place("model version", "model_versions", "source", 500),
    Place("model version", "model_versions", "storage_location", 500),
    Place("trace", "trace_tags", "value", 8000, "mlflow.artifactLocation"),
    Place("trace", "trace_tags", "value", 8000, "mlflow.trace.archiveLocation", by_server=True),
    Place("workspace", "workspaces", "default_artifact_root"),
    Place("workspace", "workspaces", "trace_archival_location", by_server=True),
)


@dataclass(frozen=True)
class Change:
    """What a mapping does to one place: how many rows, one of them before and after, how many results are
    longer than the column, and one of those (before)."""

    place: Place
    rows: int
    before: str
    after: str
    too_long: int = 0
    long_example: str | None = None


def _prefix(text: str) -> str:
    """Return a prefix in the one form that the rules use: no slash at its end, the server's as SERVED/…"""
    if text.startswith(SERVED + "//") and (len(text) == len(SERVED) + 2 or text[len(SERVED) + 2] == "/"):
        text = SERVED + text[len(SERVED) + 2 :]
    scheme, colon, rest = text.rpartition("://")
    return scheme + colon + rest.rstrip("/")


def _rules(mapping: Mapping) -> list[tuple[str, str]]:
    """Return (old, new) in the order in which they are tried. Raises StackError for an empty prefix."""
    rules = []
    for old, new in mapping:
        old, new = _prefix(old), _prefix(new)
        if not old or not new:
            raise StackError("an artifact location to replace is empty or /; name a folder or a store")
        rules.append((old, new))
        if old.startswith(SERVED) and not old.startswith(SERVED + "//"):
            # Both mean the same: mlflow-artifacts:/x and mlflow-artifacts:///x.
            rules.append((f"{SERVED}//{old.removeprefix(SERVED)}", new))
    return sorted(rules, key=lambda rule: -len(rule[0]))


def _root(new: str) -> bool:
    """Whether `new` needs a slash even if nothing follows (mlflow-artifacts:/, file:///)."""
    return new.endswith((":", "/"))


def rewrite(uri: str, mapping: Mapping) -> str | None:
    """Return the new location, or None if it stays as it is."""
    for old, new in _rules(mapping):
        rest = uri[len(old) :]
        # mlflow-artifacts://host/x is another server's.
        if not f"{uri}/".startswith(f"{old}/") or (old == SERVED and rest.startswith("//")):
            continue
        after = new + (rest or ("/" if _root(new) else ""))
        return after if after != uri else None
    return None


def _for(place: Place, mapping: Mapping) -> Mapping:
    return [(old, new) for old, new in mapping if not (place.by_server and new.startswith(SERVED))]


def _sql(value: "ColumnElement", mapping: Mapping) -> "ColumnElement":
    """Return `rewrite` as an SQL expression over a column: NULL where no rule fits."""
    import sqlalchemy as sa

    text = sa.String()
    branches = []
    for old, new in _rules(mapping):
        rest = sa.func.substr(value, len(old) + 1, type_=text)
        fits = sa.func.substr(value.concat("/"), 1, len(old) + 1, type_=text) == f"{old}/"
        if old == SERVED:
            fits &= sa.func.substr(rest, 1, 2, type_=text) != "//"
        if _root(new):
            rest = sa.case((rest == "", "/"), else_=rest)
        branches.append((fits, sa.literal(new, text).concat(rest)))
    return sa.case(*branches, else_=sa.null())


def _plans(connection: "Connection", mapping: Mapping):
    """Yield (place, table, column, new value, condition) for the places that this database has."""
    import sqlalchemy as sa

    inspector = sa.inspect(connection)
    columns = {
        table: {column["name"] for column in inspector.get_columns(table)}
        for table in {place.table for place in PLACES}
        if inspector.has_table(table)
    }
    for place in PLACES:
        own = _for(place, mapping)
        if own and place.column in columns.get(place.table, ()):
            table = sa.table(place.table, sa.column(place.column, sa.String()), sa.column("key", sa.String()))
            column = table.c[place.column]
            new = _sql(column, own)
            changes = new != column
            yield place, table, column, new, changes & (table.c.key == place.tag) if place.tag else changes


def count(connection: "Connection", mapping: Mapping) -> list[Change]:
    """Return what `mapping` would change, place by place; places without a change are left out.

    Reads only. An older schema may lack some of the places.
    """
    import sqlalchemy as sa

    found = []
    for place, table, column, new, changes in _plans(connection, mapping):
        longer = sa.func.length(new) > place.length if place.length else sa.false()
        asked = sa.select(
            sa.func.count(),
            sa.func.min(column),
            sa.func.count(sa.case((longer, 1))),
            sa.func.min(sa.case((longer, column))),
        )
        rows, before, too_long, long_example = connection.execute(
            asked.select_from(table).where(changes)
        ).one()
        if rows:
            after = rewrite(before, _for(place, mapping)) or before
            found.append(Change(place, rows, before, after, too_long, long_example))
    return found


def refuse_too_long(changes: Sequence[Change]) -> None:
    """Raise StackError if a new location would be longer than its column."""
    for change in changes:
        if change.too_long:
            raise StackError(
                f"{change.too_long} of the new locations in {change.place.name} would be longer than its "
                f"{change.place.length} characters (one is now {one_line(change.long_example, 160)}); choose "
                "a shorter new location, nothing was changed"
            )


def apply(connection: "Connection", mapping: Mapping) -> list[Change]:
    """Change all places in the caller's transaction: one UPDATE a column. Returns what was changed.

    Raises StackError, before anything is changed, if a result would be longer than its column.
    """
    import sqlalchemy as sa

    changes = count(connection, mapping)
    refuse_too_long(changes)
    changed = {change.place for change in changes}
    for place, table, column, new, condition in _plans(connection, mapping):
        if place in changed:
            connection.execute(sa.update(table).where(condition).values({column: new}))
    return changes


def in_words(changes: Sequence[Change]) -> str:
    """Return the number of things that changed: `3 experiments, 12 runs and 1 model`."""
    numbers: dict[str, int] = {}
    for change in changes:  # a model version has two locations, and is one
        numbers[change.place.noun] = max(change.rows, numbers.get(change.place.noun, 0))
    words = [f"{number} {noun}{'' if number == 1 else 's'}" for noun, number in numbers.items()]
    return " and ".join(([", ".join(words[:-1])] if words[1:] else []) + words[-1:])
