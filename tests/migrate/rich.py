"""Makes an MLflow store in a SQLite file that fills every table with values that like to get lost.

    python rich.py /path/to/rich.db

First what the stock client logs, then rows through MLflow's own ORM tables, in the order of their foreign keys.
"""

import datetime
import math
import os
import sys
from typing import Any

from sqlalchemy import JSON, Table, create_engine, event, text
from sqlalchemy.engine import Connection

ROWS = 24
TEXTS = (
    "", r"\N", r"\.", "a\tb\nc\r\nd\\", "👩‍👩‍👧 é ‏עברית ",
    """'single' "double" `back`""", "NULL", " blanks ", "\x01\x1f\x7f", "100%s %(x)s {y} $1", "ﬀ" * 40, "x,y;z|",
)  # fmt: skip
FLOATS = (
    0.0, -0.0, 5e-324, 1e-310, 1.7976931348623157e308, -1.7976931348623157e308, math.inf, -math.inf, 2.0**53 + 2,
    0.1, 1 / 3, -2.5e-7,
)  # fmt: skip
DOCUMENTS: tuple[Any, ...] = (
    {"a": [1, None, "x\n\\", 1e300], "é": {"👩": True}}, [], "text \\N", 0, None, {"deep": [[[[{}]]]]}, 2**70, "\u2028",
)  # fmt: skip
BYTES = (bytes(range(256)), b"", rb"\x00", b"\0\n\t\\N")
DAYS = (datetime.date(1970, 1, 1), datetime.date(2026, 2, 28), datetime.date(9999, 12, 31), datetime.date(1, 1, 1))
ALLOWED = {
    "lifecycle_stage": ("active", "deleted"),
    "assessments.assessment_type": ("feedback", "expectation"),
    "webhooks.secret": ("whsec \\N",),
    "runs.status": ("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"),
    "runs.source_type": ("NOTEBOOK", "JOB", "LOCAL", "UNKNOWN", "PROJECT"),
}


def tables() -> list[Table]:
    """Return MLflow's tables, parents first."""
    import mlflow.store.model_registry.dbmodels.models
    import mlflow.store.tracking.dbmodels.models
    import mlflow.store.workspace.dbmodels.models  # noqa: F401
    from mlflow.store.db.base_sql_model import Base

    return list(Base.metadata.sorted_tables)


def value(column: Any, row: int) -> Any:
    """Return a value for a column that is no foreign key: another one in every row, NULL in some where it may be."""
    name, kind = f"{column.table.name}.{column.name}", column.type.python_type
    if allowed := ALLOWED.get(name) or ALLOWED.get(column.name):
        return allowed[row % len(allowed)]
    if column.nullable and row % 7 == 3:
        return None
    if isinstance(column.type, JSON):
        document = DOCUMENTS[row % len(DOCUMENTS)]
        return JSON.NULL if document is None else document
    if kind is bool:
        return row % 2 == 0
    if kind is int:
        small = column.type.__class__.__name__ == "Integer"
        limit = 2 ** (31 if small else 63)
        if column.primary_key or small:
            return row + 1000
        return (limit - 1, -limit, 0, -1, 2**53 + 1)[row] if row < 5 else row
    if kind is float:
        return FLOATS[row % len(FLOATS)]
    if kind is bytes:
        return BYTES[row % len(BYTES)]
    if kind is datetime.date:
        return DAYS[row % len(DAYS)] if not column.primary_key else DAYS[0] + datetime.timedelta(days=row)
    length = column.type.length or 9000
    unique = f"{row:02}"
    filler = "y" * length if row == 5 else TEXTS[row % len(TEXTS)]
    return (unique + filler)[:length]


def fill(connection: Connection, table: Table, made: dict[str, list[dict]]) -> None:
    """Insert ROWS rows; foreign keys point to the rows of the parents that were made before."""
    rows = []
    for number in range(ROWS):
        row = {c.name: value(c, number) for c in table.columns if not c.computed}
        for key in table.foreign_key_constraints:
            parents = made[key.referred_table.name]
            parent = parents[number % len(parents)]
            for element in key.elements:
                row[element.parent.name] = parent[element.column.name]
        rows.append(row)
    connection.execute(table.insert(), rows)
    made[table.name] = rows


def use_the_client(uri: str) -> None:
    """Log what a person logs: runs with history, models, traces, data sets, a registry; some of it deleted."""
    import mlflow
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    mlflow.set_tracking_uri(uri)
    client = MlflowClient()
    experiment = client.create_experiment("by the client \t é", artifact_location="/laptop/mlruns/1")
    mlflow.set_experiment(experiment_id=experiment)
    for number in range(6):
        run = client.create_run(experiment, run_name=f"run {number}")
        values = [0.5, math.nan, math.inf, -math.inf, -0.0, 5e-324]
        metrics = [Metric("loss", v, 1700000000000 + i, i - 2) for i, v in enumerate(values)]
        metrics += [Metric("accuracy/é", i / 7, 1700000000000 + i, i) for i in range(40)]
        client.log_batch(run.info.run_id, metrics, [Param("p", r"\N")], [RunTag("t", ""), RunTag("long", "z" * 8000)])
        client.set_terminated(run.info.run_id)
        if number == 5:
            client.delete_run(run.info.run_id)
    client.delete_experiment(client.create_experiment("deleted"))
    client.create_registered_model("a model", tags={"k": "v\n"})
    client.create_model_version("a model", "file:///laptop/mlruns/1/x/artifacts/model", run.info.run_id)
    client.set_registered_model_alias("a model", "best", "1")

    @mlflow.trace
    def traced(question: str) -> str:
        return question[::-1]

    for number in range(3):
        traced(f"question {number} \\ é")
    mlflow.flush_trace_async_logging()
    with mlflow.start_run():
        import pandas

        mlflow.log_input(mlflow.data.from_pandas(pandas.DataFrame({"a": [1.5]}), name="frame"), context="training")


def make(path: str) -> None:
    """Make the store at `path`."""
    os.environ.setdefault("MLFLOW_TRACE_ENABLE_OTLP_DUAL_EXPORT", "false")
    uri = f"sqlite:///{path}"
    use_the_client(uri)
    engine = create_engine(uri)
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys=ON"))
    with engine.begin() as connection:
        made: dict[str, list[dict]] = {}
        for table in tables():
            fill(connection, table, made)
        connection.execute(text("INSERT INTO tags (key, value, run_uuid) SELECT 'nul-free', '', run_uuid FROM runs"))
    engine.dispose()


if __name__ == "__main__":
    make(sys.argv[1])
