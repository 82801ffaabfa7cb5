"""One test for each thing that PostgreSQL would refuse or change: it is found, named and mendable, or refused."""

import json
from contextlib import closing

import moving
import oracle
import psycopg2
import pytest

RUN = (
    "INSERT INTO runs (run_uuid, experiment_id, lifecycle_stage, artifact_uri) "
    "VALUES ('r', 0, 'active', 'mlflow-artifacts:/0/r')"
)
LONG = "/laptop/" + "long/" * 45
FOREIGN_KEYS_OFF = "PRAGMA foreign_keys=OFF"
PARAM = "INSERT INTO params (key, value, run_uuid) VALUES ('{}', {}, 'r')"
RECORD = (
    "INSERT INTO evaluation_dataset_records (dataset_record_id, dataset_id, inputs, input_hash) "
    "VALUES ('{}', 'd', '{}', '{}')"
)
DATASET = "INSERT INTO evaluation_datasets (dataset_id, name, workspace) VALUES ('d', 'd', 'default')"
ROLLUP = (
    "INSERT INTO sql_assessment_daily_rollups (experiment_id, rollup_day, metric_name, grouping_set, sample_count) "
    "VALUES ({}, {}, 'm', 'g', {})"
)

HAZARDS = {
    "orphans": (
        [
            RUN, PARAM.format("a", "'x'"), "INSERT INTO tags VALUES ('t', 'v', 'gone')",
            "INSERT INTO metrics VALUES ('m', 1, 1, 'gone', 0, 0)",
        ],
        {("orphans", "tags", "run_uuid", 1), ("orphans", "metrics", "run_uuid", 1)}, ["--fix", "orphans"],
    ),
    "orphans-of-orphans": (
        [
            "INSERT INTO runs (run_uuid, experiment_id, lifecycle_stage) VALUES ('r', 77, 'active')",
            "INSERT INTO tags VALUES ('t', 'v', 'r')",
        ],
        {("orphans", "runs", "experiment_id", 1)}, ["--fix", "orphans"],
    ),
    "run-location-too-long": (
        [RUN, f"UPDATE runs SET artifact_uri = '{LONG}0/r/artifacts'"],
        {("too-long", "runs", "artifact_uri", 1)}, ["--artifacts", f"{LONG}=mlflow-artifacts:"],
    ),
    "experiment-location-too-long": (
        [f"UPDATE experiments SET artifact_location = '{LONG}{'x' * 40}'"],
        {("too-long", "experiments", "artifact_location", 1)}, ["--artifacts", f"{LONG}=s3://bucket"],
    ),
    "text-too-long": (
        [
            RUN, "UPDATE runs SET name = printf('%.*c', 251, 'n')"], {("too-long", "runs", "name", 1)}, ["--fix",
            "shorten",
        ],
    ),
    "nul": ([RUN, PARAM.format("a", "'x' || char(0) || 'y'")], {("nul", "params", "value", 1)}, ["--fix", "nul"]),
    "nul-in-json": (
        [
            DATASET, RECORD.format("1", '{"a": 1}', "h"),
            "UPDATE evaluation_dataset_records SET inputs = inputs || char(0)",
        ],
        {("nul", "evaluation_dataset_records", "inputs", 1)}, ["--fix", "nul"],
    ),
    "invalid-utf8": (
        [RUN, PARAM.format("a", "CAST(x'61ff62' AS TEXT)"), PARAM.format("b", "CAST(x'c3' AS TEXT)")],
        {("utf8", "params", "value", 2)}, ["--fix", "utf8"],
    ),
    "bytes-in-text": (
        [RUN, PARAM.format("a", "x'6162'")], {("bytes-in-text", "params", "value", 1)}, ["--fix", "rows"],
    ),
    "json-nan": (
        [DATASET, RECORD.format("1", '{"a": NaN, "b": [-Infinity]}', "h"), RECORD.format("2", "{}", "i")],
        {("json", "evaluation_dataset_records", "inputs", 1)}, ["--fix", "json"],
    ),
    "no-json": (
        [
            DATASET, RECORD.format("1", "{nonsense", "h")], {("json", "evaluation_dataset_records",
            "inputs", 1)}, ["--fix", "json",
        ],
    ),
    "experiment-id-too-big": (
        ["INSERT INTO experiments (experiment_id, name, workspace) VALUES (123456789012345678, 'big', 'default')",
         "INSERT INTO runs (run_uuid, experiment_id, lifecycle_stage) VALUES ('r', 123456789012345678, 'active')"],
        {("too-big", "experiments", "experiment_id", 1), ("too-big", "runs", "experiment_id", 1)},
        ["--fix", "renumber"],
    ),
    "integer-too-big": (
        ["INSERT INTO scorers (experiment_id, scorer_name, scorer_id) VALUES (0, 's', 's')",
         "INSERT INTO scorer_versions (scorer_id, scorer_version, serialized_scorer) VALUES ('s', 2147483648, 'x')"],
        {("too-big", "scorer_versions", "scorer_version", 1)}, ["--fix", "rows"],
    ),
    "not-a-number": (
        [
            RUN, "UPDATE runs SET start_time = 'yesterday'"], {("not-a-number", "runs", "start_time", 1)}, ["--fix",
            "rows",
        ],
    ),
    "text-in-a-float": (
        [RUN, "INSERT INTO metrics VALUES ('m', 'much', 1, 'r', 0, 0)"],
        {("not-a-number", "metrics", "value", 1)}, ["--fix", "rows"],
    ),
    "not-a-boolean": (
        [RUN, "PRAGMA ignore_check_constraints=ON", "INSERT INTO metrics VALUES ('m', 1, 1, 'r', 0, 2)"],
        {("not-a-boolean", "metrics", "is_nan", 1)}, ["--fix", "rows"],
    ),
    "not-a-date": (
        [ROLLUP.format(0, "'2026-02-30'", 1)],
        {("not-a-date", "sql_assessment_daily_rollups", "rollup_day", 1)}, ["--fix", "rows"],
    ),
    "null": (
        [RUN, "PRAGMA writable_schema=ON",
         "UPDATE sqlite_master SET sql = replace(sql, 'value VARCHAR(8000) NOT NULL', 'value VARCHAR(8000)') "
         "WHERE name = 'params'",
         "PRAGMA writable_schema=RESET", PARAM.format("a", "NULL")],
        {("null", "params", "value", 1)}, ["--fix", "rows"],
    ),
}  # fmt: skip


def parsed(said: str) -> set[tuple]:
    """Return the hazards of a --json report."""
    report = json.loads(said[: said.rindex("}") + 1])
    assert all(h["example"] and h["why"] for h in report["found"]), report["found"]
    assert all(h["fix"].startswith(("FIX=", "ARTIFACTS=")) for h in report["found"]), report["found"]
    return {(h["code"], h["table"], h["column"], h["count"]) for h in report["found"]}


@pytest.mark.parametrize("name", HAZARDS)
def test_hazard(mover, empty_store, tmp_path, name):
    statements, expected, remedy = HAZARDS[name]
    store = moving.copy(empty_store, tmp_path, FOREIGN_KEYS_OFF, *statements)
    before, original = oracle.content(mover.dsn), store.read_bytes()
    said = mover.run(store, "--json", fails=True)
    assert parsed(said) == expected
    assert oracle.content(mover.dsn) == before
    mover.run(store, *remedy)
    assert store.read_bytes() == original
    assert oracle.schema(mover.server.container, mover.database) == oracle.fresh(mover.server.container)


@pytest.fixture
def rows(mover):
    """Ask the target."""

    def ask(statement: str) -> list[tuple]:
        with closing(psycopg2.connect(mover.dsn)) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall()

    return ask


def test_repairs_change_only_what_they_name(mover, empty_store, tmp_path, rows):
    store = moving.copy(
        empty_store, tmp_path, RUN, "INSERT INTO tags VALUES ('t', 'v', 'gone')", DATASET,
        PARAM.format("nul", "'x' || char(0) || 'y'"), PARAM.format("utf8", "CAST(x'61ff62' AS TEXT)"),
        PARAM.format("good", r"'\N'"), RECORD.format("1", '{"a": NaN}', "h"), RECORD.format("2", "{nonsense", "i"),
        RECORD.format("3", '{"a":  1}', "j"),
    )  # fmt: skip
    said = mover.run(store, "--fix", "nul,utf8,json,orphans")
    assert "tags: 1 rows left out" in said
    assert rows("SELECT key, value FROM params ORDER BY 1") == [("good", r"\N"), ("nul", "xy"), ("utf8", "a\ufffdb")]
    assert rows("SELECT inputs::text FROM evaluation_dataset_records ORDER BY dataset_record_id") == [
        ('{"a": null}',), ('"{nonsense"',), ('{"a":  1}',),
    ]  # fmt: skip
    assert rows("SELECT count(*) FROM tags") == [(0,)]


def test_renumbering_reaches_every_column_that_holds_an_experiment(mover, empty_store, tmp_path, rows):
    big = 123456789012345678
    store = moving.copy(
        empty_store, tmp_path,
        "INSERT INTO experiments (experiment_id, name, workspace, creation_time) "
        f"VALUES ({big}, 'old', 'default', 1), ({big + 1}, 'new', 'default', 2), (7, 'small', 'default', 3)",
        f"INSERT INTO runs (run_uuid, experiment_id, lifecycle_stage) VALUES ('r', {big + 1}, 'active')",
        f"INSERT INTO experiment_tags VALUES ('k', 'v', {big})",
        f"INSERT INTO entity_associations VALUES ('a', 'experiment', '{big}', 'evaluation_dataset', '{big}', 1)",
        "INSERT INTO registered_models (name, workspace) VALUES ('prompt', 'default')",
        "INSERT INTO registered_model_tags (name, workspace, key, value) "
        f"VALUES ('prompt', 'default', '_mlflow_experiment_ids', ',{big},7,')",
    )  # fmt: skip
    said = mover.run(store, "--fix", "renumber")
    assert f"{big} -> 8" in said and f"{big + 1} -> 9" in said
    assert rows("SELECT experiment_id, name FROM experiments ORDER BY 1") == [
        (0, "Default"),
        (7, "small"),
        (8, "old"),
        (9, "new"),
    ]
    assert rows("SELECT experiment_id FROM runs") == [(9,)]
    assert rows("SELECT experiment_id FROM experiment_tags") == [(8,)]
    assert rows("SELECT source_id, destination_id FROM entity_associations") == [("8", str(big))]
    assert rows("SELECT value FROM registered_model_tags") == [(",8,7,",)]


def test_numbers_in_another_dress_are_right(mover, empty_store, tmp_path, rows):
    store = moving.copy(
        empty_store, tmp_path, RUN, "UPDATE runs SET start_time = '1700000000000', end_time = 5.0",
        "INSERT INTO metrics VALUES ('m', 3, 1, 'r', 0, 0)", "INSERT INTO metrics VALUES ('inf', -9e999, 1, 'r', 0, 0)",
    )  # fmt: skip
    mover.run(store)
    assert rows("SELECT start_time, end_time FROM runs") == [(1700000000000, 5)]
    assert rows("SELECT value FROM metrics ORDER BY 1") == [(float("-inf"),), (3.0,)]


def test_tables_of_the_owner_stay_behind(mover, empty_store, tmp_path):
    store = moving.copy(empty_store, tmp_path, "CREATE TABLE notes (text TEXT)", "INSERT INTO notes VALUES ('x')")
    assert "notes is no table of MLflow's and stays behind (1 rows)" in mover.run(store)


def test_a_missing_table_or_column_is_refused(mover, empty_store, tmp_path):
    store = moving.copy(empty_store, tmp_path, "DROP TABLE tags", "ALTER TABLE params RENAME COLUMN value TO values_")
    said = mover.run(store, fails=True)
    assert "tags" in said and "params.value" in said and "no such" in said


def test_a_newer_store_is_refused(mover, empty_store, tmp_path):
    store = moving.copy(empty_store, tmp_path, "UPDATE alembic_version SET version_num = 'ffffffffffff'")
    assert "newer MLflow" in mover.run(store, fails=True)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "there is no"),
        (b"", "is empty"),
        (b"hello world, this is no database", "no SQLite file"),
        ("folder", "neither"),
    ],
    ids=["missing", "empty", "text", "folder"],
)
def test_a_source_that_is_none(mover, tmp_path, content, reason):
    path = tmp_path / "mlflow.db"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    assert reason in mover.run(path, fails=True)
    assert path.exists() == (content is not None)


def test_a_sqlite_file_of_another_program(mover, tmp_path):
    import sqlite3

    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE x (y)")
    assert "no MLflow database" in mover.run(tmp_path / "other.db", fails=True)


@pytest.mark.parametrize(("words", "reason"), [(["--fix", "magic"], "no repair"), (["--artifacts", "x"], "OLD=NEW")])
def test_words_that_mean_nothing(mover, empty_store, words, reason):
    assert reason in mover.run(empty_store, *words, fails=True)


def test_secrets_need_the_old_keys(mover, rich_store):
    said = mover.run(rich_store, "--check")
    assert "secrets/crypto_kek_passphrase" in said and "secrets/webhook_encryption_key" in said


WORKSPACE = (
    "INSERT INTO workspaces (name) VALUES ('team'), ('empty')",
    "INSERT INTO experiments (name, workspace) VALUES ('theirs', 'team')",
)
SUMS = (ROLLUP.format(0, "'2026-02-28'", 1),)


@pytest.mark.parametrize(
    ("statements", "switch", "column", "fix"),
    [
        (WORKSPACE, "MLFLOW_ENABLE_WORKSPACES", "workspace", ""),
        (SUMS, "MLFLOW_SQL_TRACE_ROLLUPS_ENABLED", "", "rollups"),
    ],
    ids=["workspaces", "rollups"],
)
def test_rows_over_which_the_server_would_not_start(
    mover, another, empty_store, tmp_path, statements, switch, column, fix
):
    """Nothing is moved until the server of this stack has the old one's switch, or the rows may stay behind."""
    store, table = moving.copy(empty_store, tmp_path, *statements), statements[-1].split()[2]
    off, before = {name: "" for name in moving.SWITCHED_ON}, oracle.content(mover.dsn)
    said = mover.run(store, "--json", fails=True, **off)
    (found,) = json.loads(said[: said.rindex("}") + 1])["found"]
    remedy = f"FIX={fix}" if fix else f"{switch}=true, in compose.override.yaml"
    assert (found["code"], found["table"], found["column"], found["count"]) == ("switch", table, column, 1)
    assert found["fix"] == remedy and oracle.content(mover.dsn) == before
    mover.run(store, **{**off, switch: "True"})
    assert oracle.differences(store, mover.dsn) == []

    # From that database to the next one: it is moved as it is, so there is only the switch.
    uri, password = f"postgresql+psycopg2://mlflow@127.0.0.1:{mover.server.port}/{mover.database}", moving.PASSWORD
    told = another().run(uri, "--check", "--password-stdin", fails=True, stdin=password, **off)
    assert f"{switch}=true, in compose.override.yaml" in told
    if fix:
        there = another()
        there.run(store, "--fix", fix, **off)
        assert oracle.content(there.dsn)[table][0] == 0


def test_an_empty_workspace_is_in_nobodys_way(mover, empty_store, tmp_path):
    store = moving.copy(empty_store, tmp_path, WORKSPACE[0])
    mover.run(store, **{name: "" for name in moving.SWITCHED_ON})
