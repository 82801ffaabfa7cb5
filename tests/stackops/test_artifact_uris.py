"""Where the database keeps artifact locations, and how they are rewritten."""

import contextlib
import importlib
import types

import pytest
import sqlalchemy as sa
from stackops import artifact_uris, prepare
from stackops.artifact_uris import PLACES, apply, count, in_words, rewrite
from stackops.errors import StackError

TO_SERVER = [("s3://bucket", "mlflow-artifacts:/")]

CASES = [
    # whole path segments
    ("s3://bucket/2/run/artifacts", TO_SERVER, "mlflow-artifacts:/2/run/artifacts"),
    ("s3://bucket", TO_SERVER, "mlflow-artifacts:/"),
    ("s3://bucket/", TO_SERVER, "mlflow-artifacts:/"),
    ("s3://bucket-2/2", TO_SERVER, None),
    ("s3://BUCKET/2", TO_SERVER, None),
    ("s3://bucket/a_b%25/é 🦜//x", TO_SERVER, "mlflow-artifacts:/a_b%25/é 🦜//x"),
    ("prefix/s3://bucket/2", TO_SERVER, None),
    ("models:/m-1", TO_SERVER, None),
    ("runs:/1/model", TO_SERVER, None),
    ("", TO_SERVER, None),
    # a slash at the end of a prefix changes nothing
    ("s3://bucket/2/x", [("s3://bucket/2/", "gs://b/p/")], "gs://b/p/x"),
    ("s3://bucket/2", [("s3://bucket/2/", "gs://b/p/")], "gs://b/p"),
    ("s3://bucket/22", [("s3://bucket/2/", "gs://b/p/")], None),
    # the server's own scheme, in all its forms
    ("mlflow-artifacts:/2/x", [("mlflow-artifacts:/", "s3://b")], "s3://b/2/x"),
    ("mlflow-artifacts:///2/x", [("mlflow-artifacts:/", "s3://b")], "s3://b/2/x"),
    ("mlflow-artifacts:/2/x", [("mlflow-artifacts:///", "s3://b/p")], "s3://b/p/2/x"),
    ("mlflow-artifacts:/", [("mlflow-artifacts:/", "s3://b")], "s3://b/"),
    ("mlflow-artifacts:", [("mlflow-artifacts:/", "s3://b")], "s3://b"),
    ("mlflow-artifacts://host/2", [("mlflow-artifacts:/", "s3://b")], None),
    ("mlflow-artifacts://host:80/2", [("mlflow-artifacts://host:80", "s3://b")], "s3://b/2"),
    ("mlflow-artifacts:/2/x", [("mlflow-artifacts:///2", "s3://b")], "s3://b/x"),
    ("mlflow-artifacts:///2/x", [("mlflow-artifacts:/2", "s3://b")], "s3://b/x"),
    ("mlflow-artifacts:/22", [("mlflow-artifacts:/2", "s3://b")], None),
    # folders, as MLflow writes them without a server
    ("/srv/me/mlruns/0/r/artifacts", [("/srv/me/mlruns", "mlflow-artifacts:")], "mlflow-artifacts:/0/r/artifacts"),
    ("file:///srv/me/mlruns/0", [("file:///srv/me/mlruns", "mlflow-artifacts:/")], "mlflow-artifacts:/0"),
    ("./mlruns/0", [("./mlruns", "mlflow-artifacts:/")], "mlflow-artifacts:/0"),
    ("s3://b/0", [("s3://b", "file:///srv/a/")], "file:///srv/a/0"),
    ("s3://b/0", [("s3://b", "file:///")], "file:///0"),
    ("s3://b", [("s3://b", "file:///")], "file:///"),
    # the longest prefix wins, whatever the order; equal ones: the first; results are not looked at again
    ("s3://b/2/x", [("s3://b", "gs://b"), ("s3://b/2", "gs://two")], "gs://two/x"),
    ("s3://b/2/x", [("s3://b/2", "gs://two"), ("s3://b", "gs://b")], "gs://two/x"),
    ("s3://b/2/x", [("s3://b/2", "gs://one"), ("s3://b/2/", "gs://two")], "gs://one/x"),
    ("s3://a/x", [("s3://a", "s3://b"), ("s3://b", "s3://a")], "s3://b/x"),
    # what stays the same is no change, and shields from a shorter prefix
    ("s3://b/2/x", [("s3://b", "gs://b"), ("s3://b/2", "s3://b/2")], None),
    (
        "wasbs://c@acct.blob.core.windows.net/1",
        [("wasbs://c@acct.blob.core.windows.net", "s3://b/it's 'quoted' %(x)s :y")],
        "s3://b/it's 'quoted' %(x)s :y/1",
    ),
]


@pytest.mark.parametrize(("uri", "mapping", "expected"), CASES)
def test_rewrite(uri, mapping, expected):
    assert rewrite(uri, mapping) == expected


@pytest.mark.parametrize("pair", [("", "s3://b"), ("/", "s3://b"), ("s3://b", ""), ("s3://b", "/")])
def test_a_prefix_names_something(pair):
    with pytest.raises(StackError, match="empty or /"):
        rewrite("s3://b/1", [pair])


@pytest.fixture(scope="module")
def models():
    """MLflow's own tables, as its ORM describes them."""
    base = importlib.import_module("mlflow.store.db.base_sql_model").Base
    for part in ("tracking", "model_registry", "workspace"):
        importlib.import_module(f"mlflow.store.{part}.dbmodels.models")
    return base.metadata


LOOK_LIKE_IT = {
    # names of kinds, identifiers, the user's own words
    *("runs.source_name", "runs.source_version", "datasets.dataset_source", "mcp_server_versions.source"),
    "evaluation_dataset_records.source",
    # addresses of other services
    *("mcp_access_endpoints.url", "webhooks.url"),
}


def test_places_are_mlflows_columns(models):
    """A new column of a later MLflow that sounds like a location has to be looked at."""
    for place in PLACES:
        assert getattr(models.tables[place.table].c[place.column].type, "length", None) == place.length, place
    words = ("uri", "location", "root", "path", "url", "source", "artifact")
    kinds = ("_type", "_id", "root_causes")
    named = {
        f"{table.name}.{column.name}"
        for table in models.tables.values()
        for column in table.columns
        if any(word in column.name for word in words) and not any(kind in column.name for kind in kinds)
    }
    assert named - LOOK_LIKE_IT == {f"{p.table}.{p.column}" for p in PLACES if not p.tag}
    tags = importlib.import_module("mlflow.utils.mlflow_tags")
    assert {tags.MLFLOW_ARTIFACT_LOCATION, tags.MLFLOW_TRACE_ARCHIVE_LOCATION} == {p.tag for p in PLACES if p.tag}


@pytest.fixture
def engine(models):
    """A database with MLflow's tables in memory."""
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        for name in dict.fromkeys(place.table for place in PLACES):
            connection.execute(sa.schema.CreateTable(models.tables[name]))
    return engine


def fill(connection, uris, places=PLACES):
    """Put each URI once into each place; a row's key is the URI's number."""
    for place in {place.table: place for place in places}.values():
        own = [p for p in places if p.table == place.table]
        for number, uri in enumerate(uris):
            if place.tag:
                for p in own:
                    connection.execute(
                        sa.text("INSERT INTO trace_tags (request_id, key, value) VALUES (:id, :key, :uri)"),
                        {"id": f"{number:04}", "key": p.tag, "uri": uri},
                    )
                continue
            keys = {
                "experiments": {"experiment_id": number, "name": f"n{number}", "workspace": "default"},
                "runs": {"run_uuid": f"{number:04}"},
                "logged_models": {
                    "model_id": f"{number:04}",
                    "experiment_id": 1,
                    "name": "m",
                    "creation_timestamp_ms": 1,
                    "last_updated_timestamp_ms": 1,
                    "status": 1,
                    "lifecycle_stage": "active",
                },
                "model_versions": {"name": "m", "version": number, "workspace": "default"},
                "workspaces": {"name": f"{number:04}"},
            }[place.table]
            row = keys | {p.column: uri for p in own}
            names, values = ", ".join(row), ", ".join(f":{name}" for name in row)
            connection.execute(sa.text(f"INSERT INTO {place.table} ({names}) VALUES ({values})"), row)


def values(connection, place):
    """Return the place's values in the order in which `fill` wrote them."""
    where = f" WHERE key = '{place.tag}'" if place.tag else ""
    return list(
        connection.execute(sa.text(f"SELECT {place.column} FROM {place.table}{where} ORDER BY rowid")).scalars()
    )


@pytest.mark.parametrize("mapping", {str(mapping): mapping for _, mapping, _ in CASES}.values(), ids=str)
def test_the_database_rewrites_as_the_function_does(engine, mapping):
    uris = list(dict.fromkeys(uri for uri, _, _ in CASES))
    with engine.begin() as connection:
        fill(connection, uris)
        expected = {
            place: [(rewrite(uri, artifact_uris._for(place, mapping)) or uri) for uri in uris] for place in PLACES
        }
        counted = count(connection, mapping)
        assert apply(connection, mapping) == counted
        assert {place: values(connection, place) for place in PLACES} == expected
    changed = {place: sum(a != b for a, b in zip(uris, after, strict=True)) for place, after in expected.items()}
    assert {change.place: change.rows for change in counted} == {p: n for p, n in changed.items() if n}
    assert all(rewrite(change.before, mapping) == change.after for change in counted)
    assert not any(change.too_long for change in counted)


def test_archives_stay_with_the_store(engine):
    """MLflow reads them on the server and refuses mlflow-artifacts: there."""
    with engine.begin() as connection:
        fill(connection, ["s3://bucket/1"])
        apply(connection, TO_SERVER)
        after = {place.name: values(connection, place) for place in PLACES}
        assert {name for name, uris in after.items() if uris == ["s3://bucket/1"]} == {
            "trace_tags.value (mlflow.trace.archiveLocation)",
            "workspaces.trace_archival_location",
        }
        apply(connection, [("s3://bucket", "gs://b")])
        assert values(connection, PLACES[-1]) == ["gs://b/1"]


def test_other_tags_are_the_users(engine):
    with engine.begin() as connection:
        connection.execute(
            sa.text("INSERT INTO trace_tags (request_id, key, value) VALUES ('t', 'k', 's3://bucket/1')")
        )
        assert apply(connection, TO_SERVER) == []


def test_a_location_that_does_not_fit_stops_all(engine):
    """MLflow on SQLite stores any length, PostgreSQL does not."""
    fits, long = "s3://b/" + "x" * 188, "s3://b/" + "x" * 189
    mapping = [("s3://b", "s3://bucket")]
    runs = next(place for place in PLACES if place.table == "runs")
    with engine.begin() as connection:
        fill(connection, [fits, long])
        (change,) = [change for change in count(connection, mapping) if change.place == runs]
        assert (change.rows, change.too_long, change.long_example) == (2, 1, long)
        with pytest.raises(
            StackError, match=r"1 of the new locations in runs\.artifact_uri .* 200 characters .*nothing was"
        ):
            apply(connection, mapping)
        assert values(connection, runs) == [fits, long] == values(connection, PLACES[0])
        # One that was too long before and is not touched is not ours to refuse.
        assert apply(connection, [("s3://other", "s3://bucket")]) == []


def test_an_older_schema_lacks_places():
    with sa.create_engine("sqlite://").begin() as connection:
        connection.execute(sa.text("CREATE TABLE runs (run_uuid TEXT, artifact_uri TEXT)"))
        connection.execute(sa.text("CREATE TABLE model_versions (name TEXT, source TEXT)"))
        connection.execute(sa.text("INSERT INTO runs VALUES ('1', 's3://bucket/1'), ('2', NULL)"))
        connection.execute(sa.text("INSERT INTO model_versions VALUES ('m', 's3://bucket/m')"))
        assert [(c.place.name, c.rows) for c in apply(connection, TO_SERVER)] == [
            ("runs.artifact_uri", 1),
            ("model_versions.source", 1),
        ]
        assert apply(connection, TO_SERVER) == []


def test_the_callers_transaction(engine):
    with engine.connect() as connection:
        fill(connection, ["s3://bucket/1"])
        connection.commit()
        apply(connection, TO_SERVER)
        connection.rollback()
        assert values(connection, PLACES[0]) == ["s3://bucket/1"]


def test_in_words(engine):
    with engine.begin() as connection:
        fill(connection, ["s3://bucket/1", "s3://bucket/2"], [p for p in PLACES if p.noun != "workspace"])
        assert (
            in_words(count(connection, TO_SERVER)) == "2 experiments, 2 runs, 2 models, 2 model versions and 2 traces"
        )
        assert in_words(count(connection, TO_SERVER)[:1]) == "2 experiments"
        connection.execute(sa.text("DELETE FROM runs WHERE run_uuid = '0001'"))
        assert in_words(count(connection, TO_SERVER)[:2]) == "2 experiments and 1 run"


@pytest.mark.parametrize(("access", "served"), [("proxied", True), ("presigned", True), ("direct", False)])
def test_prepare_lets_the_server_serve_again(stack, tmp_path, monkeypatch, models, access, served):
    engine = sa.create_engine(f"sqlite:///{tmp_path}/mlflow.db")
    with engine.begin() as connection:
        models.tables["runs"].create(connection)
        fill(connection, ["s3://bucket/1", "mlflow-artifacts:/1"], [p for p in PLACES if p.table == "runs"])
    part = types.SimpleNamespace(
        wait=lambda env, seconds: None,
        uri=lambda env: str(engine.url),
        exclusive=lambda env: contextlib.nullcontext(),
        probe=lambda env, name: None,
    )
    monkeypatch.setattr(prepare.settings, "backend", lambda env: part)
    monkeypatch.setattr(prepare.settings, "store", lambda env: part)
    monkeypatch.setattr(prepare.schema, "bring_up_to_date", lambda uri, say: None)
    env = stack(ARTIFACT_URI="s3://bucket/", ARTIFACT_ACCESS=access)
    lines = []
    for _ in range(2):  # the second time there is nothing to do, and nothing is said
        prepare.prepare(env, 1, lines.append)
    told = [line for line in lines if line.startswith("artifacts: ")]
    expected = "artifacts: served by the server again: 1 run of the time of direct access"
    assert told == ([expected] if served else [])
    with engine.connect() as connection:
        runs = list(connection.execute(sa.text("SELECT artifact_uri FROM runs ORDER BY run_uuid")).scalars())
    assert runs == ["mlflow-artifacts:/1" if served else "s3://bucket/1", "mlflow-artifacts:/1"]
