"""Which rows of the database go, and which stay although somebody deleted them.

`look` asks the database; `settle` decides, from what it is given alone.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stackops.cleaning import places

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table

GONE_VERSION = "Deleted_Internal"  # MLflow keeps the row of a deleted model version, and blanks what it names
SOME = 400  # ids in one statement
# For one statement, never for a connection: what changes rows cannot be streamed.
STREAMED = {"yield_per": 1000}


@dataclass(frozen=True)
class Cuts:
    """Before which time (milliseconds since 1970) something must have been deleted to go, and a trace begun
    (None: no trace goes). `undated`: what was deleted at an unknown time goes as well."""

    deleted: int
    traces: int | None = None
    undated: bool = False


@dataclass
class Facts:
    """What was deleted long enough ago, and what names it.

    `runs` and `models`: id -> (experiment, location); among the models are also those of deleted experiments,
    and only `deleted_models` were deleted themselves. `busy`: experiments with runs that are alive, or were
    deleted later, or with traces that began later. `reserved`: experiments that always stay. `versions`: ids
    that live model versions name. `traces`: (run, experiment of a trace that names it). `parents`: (run,
    child that names it). `guests`: (run or model, the run, model, trace or experiment that has files in its
    folder).
    `undated`: how many runs and experiments stay because nobody noted when they were deleted. `unusual`:
    locations where MLflow itself would not have put what is there.
    """

    runs: dict[str, tuple[int, str]] = field(default_factory=dict)
    models: dict[str, tuple[int, str]] = field(default_factory=dict)
    deleted_models: set[str] = field(default_factory=set)
    experiments: set[int] = field(default_factory=set)
    busy: set[int] = field(default_factory=set)
    reserved: set[int] = field(default_factory=set)
    versions: set[str] = field(default_factory=set)
    traces: set[tuple[str, int]] = field(default_factory=set)
    parents: set[tuple[str, str]] = field(default_factory=set)
    guests: set[tuple[str, str | int]] = field(default_factory=set)
    undated: Mapping[str, int] = field(default_factory=dict)
    unusual: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Going:
    """What goes, and why the rest of what was deleted stays: (what, reason) -> number."""

    runs: set[str]
    models: set[str]
    experiments: set[int]
    stays: Mapping[tuple[str, str], int]


def settle(facts: Facts) -> Going:
    """Return what goes. Each round takes out what something names that stays, until nothing changes."""
    experiments = facts.experiments - facts.busy - facts.reserved
    runs, models, why = set(facts.runs), set(facts.models), {}

    def keep(what: str, ids: Iterable[object], reason: str, among: set) -> None:
        for id in ids:
            if id in among:
                among.discard(id)
                why[(what, id)] = reason

    for reason, ids in (
        ("has runs or traces that stay", facts.busy),
        ("its number would be given again", facts.reserved),
    ):
        for id in ids & facts.experiments:
            why[("experiments", id)] = reason
    while True:
        before = len(runs), len(models), len(experiments)
        keep("runs", facts.versions, "a model version names it", runs)
        keep("models", facts.versions, "a model version names it", models)
        undeleted = models - facts.deleted_models
        keep("models", [m for m in undeleted if facts.models[m][0] not in experiments], "", models)
        keep("runs", [r for r, where in facts.traces if where not in experiments], "a trace names it", runs)
        keep("runs", [r for r, child in facts.parents if child not in runs], "a run below it stays", runs)
        hosts = [id for id, guest in facts.guests if guest not in runs | models | experiments]
        keep("runs", hosts, "files of something else are in its folder", runs)
        keep("models", hosts, "files of something else are in its folder", models)
        inhabited = {where for id, (where, _) in facts.runs.items() if id not in runs}
        inhabited |= {where for id, (where, _) in facts.models.items() if id not in models}
        keep("experiments", inhabited, "has runs or models that stay", experiments)
        if before == (len(runs), len(models), len(experiments)):
            break
    stays = Counter((what, reason) for (what, _), reason in why.items() if reason)
    for what, number in facts.undated.items():
        if number:
            stays[(what, "deleted nobody knows when; only OLDER_THAN=0d takes those")] = number
    return Going(runs, models, experiments, stays)


def metadata():
    """Return MLflow's tables."""
    import mlflow.store.model_registry.dbmodels.models
    import mlflow.store.tracking.dbmodels.models  # noqa: F401
    from mlflow.store.db.base_sql_model import Base

    return Base.metadata


TIMES = {
    "runs": "deleted_time",
    "experiments": "last_update_time",
    "logged_models": "last_updated_timestamp_ms",
}


def _old(table: "Table", cuts: Cuts):
    """Return the condition for a deleted row that may go. MLflow before 2.0 noted no time."""
    time = table.c[TIMES[table.name]]
    old = time <= cuts.deleted
    return (table.c.lifecycle_stage == "deleted") & (old | time.is_(None) if cuts.undated else old)


def look(connection: "Connection", cuts: Cuts, reuses_numbers: bool) -> Facts:
    """Return the facts. Reads only; takes some 300 bytes for each deleted run and each unusual location."""
    import sqlalchemy as sa

    tables, facts = metadata().tables, Facts()
    runs, models, experiments = tables["runs"], tables["logged_models"], tables["experiments"]
    tags = tables["tags"]
    noted, traces = tables["trace_request_metadata"], tables["trace_info"]
    rows = functools.partial(connection.execute, execution_options=STREAMED)

    facts.experiments = {
        row[0] for row in rows(sa.select(experiments.c.experiment_id).where(_old(experiments, cuts)))
    }
    facts.reserved = {0}  # the one that clients use who name none
    if reuses_numbers:
        facts.reserved.add(connection.scalar(sa.select(sa.func.max(experiments.c.experiment_id))))
    for some in in_parts(facts.experiments):
        query = (
            sa.select(runs.c.experiment_id)
            .where(
                runs.c.experiment_id.in_(some), sa.func.coalesce(_old(runs, cuts), sa.false()).is_(sa.false())
            )
            .distinct()
        )
        facts.busy |= {row[0] for row in rows(query)}
        # Spans may still come in for an experiment that is deleted.
        query = sa.select(traces.c.experiment_id).where(traces.c.experiment_id.in_(some))
        facts.busy |= {row[0] for row in rows(query.where(traces.c.timestamp_ms > cuts.deleted).distinct())}
    if not cuts.undated:
        for what, table in (("runs", runs), ("experiments", experiments)):
            query = sa.select(sa.func.count()).select_from(table)
            query = query.where(table.c.lifecycle_stage == "deleted", table.c[TIMES[what]].is_(None))
            facts.undated |= {what: connection.scalar(query)}
    for id, where, location in rows(
        sa.select(runs.c.run_uuid, runs.c.experiment_id, runs.c.artifact_uri).where(_old(runs, cuts))
    ):
        facts.runs[id] = where, location or ""
    wanted = sa.select(models.c.model_id, models.c.experiment_id, models.c.artifact_location)
    for id, where, location in rows(wanted.where(_old(models, cuts))):
        facts.models[id] = where, location or ""
        facts.deleted_models.add(id)
    for some in in_parts(facts.experiments):
        for id, where, location in rows(wanted.where(models.c.experiment_id.in_(some))):
            facts.models[id] = where, location or ""
    facts.versions = named_by_versions(connection, facts.runs.keys() | facts.models.keys())
    elsewhere = [*unusual(connection)]
    facts.unusual = [location for _, location in elsewhere]
    elsewhere += rows(sa.select(experiments.c.experiment_id, experiments.c.artifact_location))
    for owner, location in elsewhere:
        hosts = [id for id in places.segments(location or "") if id in facts.runs or id in facts.models]
        facts.guests |= {(id, owner) for id in hosts if owner not in (id, None)}
    query = sa.select(noted.c.value, traces.c.experiment_id).distinct()
    query = query.join(traces, traces.c.request_id == noted.c.request_id).join(
        runs, runs.c.run_uuid == noted.c.value
    )
    query = query.where(noted.c.key == "mlflow.sourceRun", runs.c.lifecycle_stage == "deleted")
    if cuts.traces is not None:
        query = query.where(traces.c.timestamp_ms > cuts.traces)
    facts.traces = {tuple(row) for row in rows(query) if row[0] in facts.runs}
    query = sa.select(tags.c.value, tags.c.run_uuid).join(runs, runs.c.run_uuid == tags.c.value)
    query = query.where(tags.c.key == "mlflow.parentRunId", runs.c.lifecycle_stage == "deleted")
    facts.parents = {tuple(row) for row in rows(query) if row[0] in facts.runs}
    return facts


def named_by_versions(connection: "Connection", ids: Set[str]) -> set[str]:
    """Return which of `ids` a live model version names, as its run, its source or its place."""
    import sqlalchemy as sa

    versions = metadata().tables["model_versions"]
    query = sa.select(versions.c.run_id, versions.c.source, versions.c.storage_location)
    query = query.where(sa.func.coalesce(versions.c.current_stage, "") != GONE_VERSION)
    named: set[str] = set()
    for row in connection.execute(query, execution_options=STREAMED):
        named |= ids & {part for text in row if text for part in places.segments(text)}
    return named


def in_parts(ids: Iterable, size: int = SOME) -> Iterator[list]:
    """Yield the ids in lists of `size`."""
    ids = sorted(ids)
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def look_experiments(connection: "Connection", cuts: Cuts, ids: Iterable[int]) -> set[int]:
    """Return which of the experiments may (still) go."""
    import sqlalchemy as sa

    table = metadata().tables["experiments"]
    query = sa.select(table.c.experiment_id).where(table.c.experiment_id.in_(list(ids)), _old(table, cuts))
    return {*connection.scalars(query)}


def delete(connection: "Connection", table: str, ids: list, cuts: Cuts, whole: Iterable[int] = ()) -> list:
    """Remove the rows of `ids` that may still go, with what hangs on them, and return their ids.

    Since the look somebody may have restored or registered one: the first statement locks what may still go.
    `whole` are experiments that go as a whole: their models go although nobody deleted them.
    """
    import sqlalchemy as sa

    all_tables = metadata().tables
    own = all_tables[table]
    (key,) = own.primary_key.columns
    if table != "experiments":
        ids = sorted({*ids} - named_by_versions(connection, {*ids}))
    may = key.in_(ids) & _old(own, cuts)
    if table == "logged_models" and (experiments := list(whole)):
        outer = all_tables["experiments"]
        doomed = sa.select(outer.c.experiment_id).where(
            outer.c.experiment_id.in_(experiments), _old(outer, cuts)
        )
        may |= key.in_(ids) & own.c.experiment_id.in_(doomed)
    if table == "experiments":
        for inhabitants in ("runs", "logged_models", "trace_info"):
            one = all_tables[inhabitants]
            may &= ~sa.exists().where(one.c.experiment_id == key)
    connection.execute(sa.update(own).where(may).values(lifecycle_stage=own.c.lifecycle_stage))
    found = list(connection.scalars(sa.select(key).where(may)))
    if not found:
        return []
    for child in reversed(metadata().sorted_tables):
        for column in child.columns:
            keys = [k for k in column.foreign_keys if k.column is key and k.ondelete is None]
            # The summaries of traces have no foreign key.
            loose = (
                key.name == "experiment_id" == column.name and not column.foreign_keys and child is not own
            )
            if keys or loose:
                connection.execute(sa.delete(child).where(column.in_(found)))
    if table in ("runs", "logged_models"):
        links, notes = all_tables["inputs"], all_tables["input_tags"]
        ends = links.c.source_id.in_(found) | links.c.destination_id.in_(found)
        connection.execute(
            sa.delete(notes).where(notes.c.input_uuid.in_(sa.select(links.c.input_uuid).where(ends)))
        )
        connection.execute(sa.delete(links).where(ends))
    connection.execute(sa.delete(own).where(key.in_(found)))
    return found


def existing(connection: "Connection", ids: Iterable[str]) -> set[str]:
    """Return which ids are those of a run, a logged model or a trace."""
    import sqlalchemy as sa

    tables = metadata().tables
    found: set[str] = set()
    for some in in_parts({*ids}):
        for table in ("runs", "logged_models", "trace_info"):
            (key,) = tables[table].primary_key.columns
            found |= {*connection.scalars(sa.select(key).where(key.in_(some)))}
    return found


def old_traces(connection: "Connection", cut: int, ids: Iterable[str] = ()) -> set[str]:
    """Return which of the traces `ids` began before `cut`."""
    import sqlalchemy as sa

    table = metadata().tables["trace_info"]
    found: set[str] = set()
    for some in in_parts({*ids}):
        query = sa.select(table.c.request_id).where(table.c.request_id.in_(some), table.c.timestamp_ms <= cut)
        found |= {*connection.scalars(query)}
    return found


def traces(connection: "Connection", experiment: int | None, cut: int | None) -> tuple[int, list[tuple]]:
    """Return how many traces of an experiment (None: of all) began before `cut` (None: whenever), and some of
    them: (experiment, id, location)."""
    import sqlalchemy as sa

    tables = metadata().tables
    table, tags = tables["trace_info"], tables["trace_tags"]
    conditions = []
    if experiment is not None:
        conditions.append(table.c.experiment_id == experiment)
    if cut is not None:
        conditions.append(table.c.timestamp_ms <= cut)
    number = connection.scalar(sa.select(sa.func.count()).select_from(table).where(*conditions))
    where = tags.c.value.label("where")
    query = sa.select(table.c.experiment_id, table.c.request_id, where).outerjoin(
        tags, (tags.c.request_id == table.c.request_id) & (tags.c.key == "mlflow.artifactLocation")
    )
    query = query.where(*conditions).order_by(table.c.timestamp_ms, table.c.request_id).limit(SOME)
    return number, [tuple(row) for row in connection.execute(query)]


def unusual(connection: "Connection") -> Iterator[tuple[str | None, str]]:
    """Yield (whose, location) for every location that is not where MLflow itself puts things: below the
    experiment's own place. Whose: the id of a run, model or trace, or None."""
    import sqlalchemy as sa

    tables = metadata().tables
    rows = functools.partial(connection.execute, execution_options=STREAMED)
    experiments = tables["experiments"]
    place = experiments.c.artifact_location
    for table, column, key, folder in (
        ("runs", "artifact_uri", "run_uuid", ""),
        ("logged_models", "artifact_location", "model_id", "models/"),
    ):
        own = tables[table]
        usual = place + f"/{folder}" + own.c[key] + "/artifacts"
        query = sa.select(own.c[key], own.c[column]).join(
            experiments, experiments.c.experiment_id == own.c.experiment_id
        )
        query = query.where(own.c[column].is_not(None), sa.func.coalesce(own.c[column] != usual, sa.true()))
        yield from (tuple(row) for row in rows(query))
    traces, tags = tables["trace_info"], tables["trace_tags"]
    usual = place + "/traces/" + traces.c.request_id + "/artifacts"
    query = sa.select(tags.c.request_id, tags.c.value).join(traces, traces.c.request_id == tags.c.request_id)
    query = query.join(experiments, experiments.c.experiment_id == traces.c.experiment_id)
    query = query.where(
        tags.c.key.in_(("mlflow.artifactLocation", "mlflow.trace.archiveLocation")),
        sa.func.coalesce(tags.c.value != usual, sa.true()),
    )
    yield from (tuple(row) for row in rows(query) if row[1])
    versions = tables["model_versions"]
    query = sa.select(versions.c.source, versions.c.storage_location)
    query = query.where(sa.func.coalesce(versions.c.current_stage, "") != GONE_VERSION)
    yield from ((None, text) for row in rows(query) for text in row if text)
