"""`stackops gc`: what goes, what stays, and that an interruption at any moment loses nothing."""

import argparse
import os
import shutil
import socket
import sqlite3
import time
from contextlib import closing
from types import SimpleNamespace

import pytest
from stackops import gc
from stackops.backends import sqlite
from stackops.cleaning import places, rows
from stackops.cleaning.removal import Pending
from stackops.cleaning.rows import Cuts, Facts, settle
from stackops.errors import StackError
from stackops.saving import lock
from stackops.stores import local

NOW = time.time()
DAY = 86400
OLD, NEW = int((NOW - 60 * DAY) * 1000), int((NOW - DAY) * 1000)
A, B, C = ("a" * 32, "b" * 32, "c" * 32)


@pytest.mark.parametrize(
    ("text", "expected"), [("30d", 30 * DAY), ("12h", 43200), ("2w", 14 * DAY), ("90m", 5400), ("0d", 0)]
)
def test_times(text, expected):
    assert gc.seconds(text, "OLDER_THAN") == expected


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1.5d", "30 d", "30days", "1d2h", "9999999d"])
def test_a_time_that_is_none(text):
    with pytest.raises(StackError, match="OLDER_THAN is .* such as 30d"):
        gc.seconds(text, "OLDER_THAN")


@pytest.mark.parametrize(
    ("uri", "root", "expected"),
    [
        ("mlflow-artifacts:/1/x/artifacts", "s3://b", "1/x/artifacts"),
        ("mlflow-artifacts:///1/x", "/data/artifacts", "1/x"),
        ("mlflow-artifacts://host/1/x", "s3://b", None),
        ("s3://b/1/x", "s3://b", "1/x"),
        ("s3://b/p/1/x", "s3://b/p", "1/x"),
        ("s3://b/px/1", "s3://b/p", None),
        ("s3://bb/1", "s3://b", None),
        ("/data/artifacts/1/x", "/data/artifacts", "1/x"),
        ("file:///data/artifacts/1/x", "/data/artifacts", "1/x"),
        ("file:///home/me/mlruns/1/x", "/data/artifacts", None),
        # never the root, never out of it
        ("mlflow-artifacts:/", "s3://b", None),
        ("s3://b", "s3://b", None),
        ("s3://b/1/../2", "s3://b", None),
        ("mlflow-artifacts:/1//x", "s3://b", None),
        ("mlflow-artifacts:/1/x?y", "s3://b", None),
        ("", "s3://b", None),
    ],
)
def test_inside(uri, root, expected):
    assert places.inside(uri, root) == expected


def test_a_folder_belongs_to_its_id_alone():
    assert places.folder(f"s3://b/1/{A}/artifacts", A, "s3://b") == f"1/{A}/artifacts/"
    assert places.folder("s3://b/1/models", A, "s3://b") is None
    assert places.folder(f"s3://b/1/x{A}/artifacts", A, "s3://b") is None


def facts(**more):
    """Return the facts of three deleted runs in the deleted experiment 1 and a model of each sort."""
    found = Facts(
        runs={A: (1, ""), B: (1, ""), C: (2, "")},
        models={"m-deleted": (2, ""), "m-inside": (1, "")},
        deleted_models={"m-deleted"},
        experiments={1},
    )
    for name, value in more.items():
        setattr(found, name, value)
    return found


@pytest.mark.parametrize(
    ("more", "runs", "models", "experiments"),
    [
        ({}, {A, B, C}, {"m-deleted", "m-inside"}, {1}),
        ({"versions": {A}}, {B, C}, {"m-deleted"}, set()),
        ({"versions": {"m-inside"}}, {A, B, C}, {"m-deleted"}, set()),
        ({"versions": {"m-deleted"}}, {A, B, C}, {"m-inside"}, {1}),
        ({"busy": {1}}, {A, B, C}, {"m-deleted"}, set()),
        ({"reserved": {1}}, {A, B, C}, {"m-deleted"}, set()),
        # a trace of the experiment that goes names nothing that stays, one of another does
        ({"traces": {(A, 1)}}, {A, B, C}, {"m-deleted", "m-inside"}, {1}),
        ({"traces": {(A, 2)}}, {B, C}, {"m-deleted"}, set()),
        # as soon as the experiment stays, its traces stay, and name runs
        ({"traces": {(A, 1)}, "versions": {B}}, {C}, {"m-deleted"}, set()),
        # a folder in which something else has files
        ({"guests": {(A, "alive")}}, {B, C}, {"m-deleted"}, set()),
        ({"guests": {(A, 2), ("m-deleted", "alive")}}, {B, C}, set(), set()),
        ({"guests": {(A, B), (B, "m-deleted"), ("m-inside", 1)}}, {A, B, C}, {"m-deleted", "m-inside"}, {1}),
        # a child that stays keeps its parents
        ({"parents": {(A, B), (B, C)}}, {A, B, C}, {"m-deleted", "m-inside"}, {1}),
        ({"parents": {(A, B), (B, "alive")}}, {C}, {"m-deleted"}, set()),
    ],
)
def test_settle(more, runs, models, experiments):
    going = settle(facts(**more))
    assert (going.runs, going.models, going.experiments) == (runs, models, experiments)
    assert sum(n for (what, _), n in going.stays.items() if what == "runs") == 3 - len(runs)


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A database with MLflow's tables."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = tmp_path_factory.mktemp("empty")
    SqlAlchemyStore(f"sqlite:///{folder}/mlflow.db", "mlflow-artifacts:/")
    return folder / "mlflow.db"


class World:
    """A stack's database and store, filled by MLflow's own store."""

    def __init__(self, folder, empty):
        from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        self.data, self.root = folder / "data", folder / "data" / "artifacts"
        self.root.mkdir(parents=True)
        shutil.copy(empty, self.data / "mlflow.db")
        uri = f"sqlite:///{self.data}/mlflow.db"
        self.store, self.registry = SqlAlchemyStore(uri, "mlflow-artifacts:/"), Registry(uri)
        self.env = {"STACK_BACKEND": "sqlite", "STACK_STORE": "local", "DATA_DIR": str(self.data)}
        self.env |= {"ARTIFACT_URI": str(self.root), "STACK_AUTH": "none"}
        self.pending, self.said = Pending(folder / gc.PENDING), []

    def sql(self, text, *values):
        with closing(sqlite3.connect(self.data / "mlflow.db")) as connection, connection:
            return connection.execute(text, values).fetchall()

    def file(self, location, name="file.txt", old=True):
        """Put a file to where a location means."""
        path = self.root / places.inside(location, str(self.root)) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(location)
        if old:
            os.utime(path, (OLD / 1000, OLD / 1000))
        return path

    def experiment(self, name, **more):
        return self.store.create_experiment(name, **more)

    def run(self, experiment, deleted=None, parent=None):
        from mlflow.entities import Metric, Param, RunTag

        tags = [RunTag("mlflow.parentRunId", parent)] if parent else []
        run = self.store.create_run(experiment, "u", 1, tags, "r").info
        self.store.log_batch(run.run_id, [Metric("m", 1.0, 1, 1)], [Param("p", "1")], [])
        self.file(run.artifact_uri)
        if deleted:
            self.store.delete_run(run.run_id)
            self.sql("UPDATE runs SET deleted_time = ? WHERE run_uuid = ?", deleted, run.run_id)
        return run

    def model(self, experiment, deleted=None, run=None):
        model = self.store.create_logged_model(experiment, "m", run, [], [], None)
        self.file(model.artifact_location, "MLmodel")
        if deleted:
            self.delete_model(model, deleted)
        return model

    def delete_model(self, model, when=OLD):
        self.store.delete_logged_model(model.model_id)
        self.sql("UPDATE logged_models SET last_updated_timestamp_ms = ? WHERE model_id = ?", when, model.model_id)

    def trace(self, experiment, began=NEW, run=None):
        from mlflow.entities import TraceInfo, TraceLocation, TraceState

        noted = {"mlflow.sourceRun": run} if run else {}
        info = self.store.start_trace(
            TraceInfo(
                trace_id=f"tr-{os.urandom(16).hex()}",
                trace_location=TraceLocation.from_experiment_id(experiment),
                request_time=began,
                execution_duration=1,
                state=TraceState.OK,
                trace_metadata=noted,
                tags={},
            )
        )
        self.file(info.tags["mlflow.artifactLocation"], "attachment")
        return info

    def delete_experiment(self, experiment, when=OLD):
        self.store.delete_experiment(experiment)
        self.sql("UPDATE experiments SET last_update_time = ? WHERE experiment_id = ?", when, int(experiment))
        self.sql("UPDATE runs SET deleted_time = ? WHERE experiment_id = ?", when, int(experiment))

    def gc(self, apply=True, **more):
        more = {"older_than": "30d", "traces_older_than": "", "orphans": False, **more}
        wanted = gc.order(SimpleNamespace(**more), NOW)
        return gc.clean(self.env, wanted, apply, self.pending, self.said.append)

    def files(self):
        return {path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file()}

    def dump(self):
        with closing(sqlite3.connect(self.data / "mlflow.db")) as connection:
            return list(connection.iterdump())

    def rows(self):
        """Return every row that carries the id of a run, model, trace or experiment: (table, column, id)."""
        found = set()
        for (table,) in self.sql("SELECT name FROM sqlite_master WHERE type = 'table'"):
            for column in (row[1] for row in self.sql(f'PRAGMA table_info("{table}")')):
                if column in KEYS:
                    found |= {(table, column, v) for (v,) in self.sql(f'SELECT "{column}" FROM "{table}"') if v}
        return found


KEYS = {"run_uuid", "run_id", "model_id", "request_id", "trace_id", "experiment_id", "source_id", "destination_id"}
KEYS |= {"source_run_id", "input_uuid"}


@pytest.fixture
def world(tmp_path, empty):
    import mlflow

    made = World(tmp_path, empty)
    mlflow.set_tracking_uri(f"sqlite:///{made.data}/mlflow.db")
    yield made
    mlflow.set_tracking_uri(None)


def fill(world):
    """Make one of everything; return (what must go, what must stay), as ids."""
    live = world.experiment("live")
    other = world.experiment("own place", artifact_location="mlflow-artifacts:/shared/place")
    keep, go = [], []
    keep += [world.run(live).run_id, world.run(other).run_id, world.run(live, NEW).run_id]
    go += [world.run(live, OLD).run_id, world.run(other, OLD).run_id]
    # named by a live child, by a version's run, by a version's source, by a trace
    parent = world.run(live, OLD).run_id
    keep += [parent, world.run(live, parent=parent).run_id]
    go.append(world.run(live, OLD, parent=parent).run_id)
    by_run, by_source, by_trace = (world.run(live, OLD) for _ in range(3))
    keep += [by_run.run_id, by_source.run_id, by_trace.run_id]
    world.registry.create_registered_model("named")
    world.registry.create_model_version("named", "/elsewhere/model", by_run.run_id)
    world.registry.create_model_version("named", f"{by_source.artifact_uri}/model")
    keep.append(world.trace(live, run=by_trace.run_id).trace_id)
    # models
    keep += [world.model(live).model_id, world.model(live, NEW).model_id]
    registered, loser = world.model(live), world.model(live)
    world.registry.create_model_version("named", f"models:/{registered.model_id}", model_id=registered.model_id)
    keep.append(registered.model_id)
    go.append(loser.model_id)
    gone = world.registry.create_model_version("named", f"models:/{loser.model_id}")
    world.registry.delete_model_version("named", gone.version)
    for model in (registered, loser):
        world.delete_model(model)
    from mlflow.entities import LoggedModelOutput

    world.store.log_outputs(keep[0], [LoggedModelOutput(loser.model_id, 1)])
    # whole experiments: one goes with an undeleted model and its traces, one has a named model, one is young
    whole, held, young = (world.experiment(name) for name in ("whole", "held", "young"))
    inside = world.run(whole)
    go += [inside.run_id, world.model(whole).model_id]
    go.append(world.trace(whole, OLD, run=inside.run_id).trace_id)
    held_model = world.model(held)
    world.registry.create_model_version("named", f"models:/{held_model.model_id}")
    keep += [held_model.model_id, world.trace(held).trace_id]
    held_run = world.run(held)
    go.append(held_run.run_id)
    keep.append(world.run(young).run_id)
    last = world.experiment("the last number")
    for experiment in (whole, held, last):
        world.delete_experiment(experiment)
    world.delete_experiment(young, NEW)
    return go, keep, whole


def owned(files, ids):
    return {name for name in files if set(name.split("/")) & set(ids)}


def test_what_was_deleted_goes_and_all_else_stays(world):
    go, keep, whole = fill(world)
    orphan = world.file(f"mlflow-artifacts:/1/{C}/artifacts")
    fresh = world.file(f"mlflow-artifacts:/1/{B}/artifacts", old=False)
    rows_before, files_before, dump = world.rows(), world.files(), world.dump()
    assert owned(files_before, go) and owned(files_before, keep)

    world.gc(apply=False)
    assert (world.dump(), world.files()) == (dump, files_before)
    assert "nothing was removed" in world.said[-1]

    done = world.gc()
    assert world.files() == files_before - owned(files_before, go)
    lost = rows_before - world.rows()
    assert {row[2] for row in lost if len(str(row[2])) >= 32} >= {*go}
    assert not [row for row in world.rows() if row[2] in go]
    assert not [row for row in lost if row[2] in keep and row[0] != "inputs"], "what stays has lost rows"
    assert {row[2] for row in lost if row[0] == "experiments"} == {int(whole)}
    assert done.files == len(owned(files_before, go)) and done.elsewhere == []
    # nothing of it hangs in the air
    assert world.sql("PRAGMA foreign_key_check") == []
    assert orphan.exists() and fresh.exists()

    again = world.gc()
    assert (again.files, sum(again.rows.values())) == (0, 0)
    world.gc(orphans=True)
    assert not orphan.exists() and fresh.exists()
    assert world.files() == files_before - owned(files_before, [*go, C])
    assert not orphan.parent.exists(), "an empty folder stayed"


def test_the_table_counts_what_goes(world):
    go, _, _ = fill(world)
    world.file(f"mlflow-artifacts:/1/{C}/artifacts")
    world.gc(apply=False)
    table = next(text for text in world.said if "experiments" in text).splitlines()
    numbers = {line.split()[0]: line.split()[1:3] for line in table[1:] if not line.startswith(" ")}
    runs = [id for id in go if len(id) == 32]
    assert numbers["runs"] == [str(len(runs))] * 2
    assert numbers["models"] == ["2", "2"] and numbers["traces"][0] == "1"
    assert numbers["experiments"][0] == "1" and numbers["orphans"][0] == "1", numbers
    assert any("a model version names it" in line for line in table)


def test_traces_go_by_their_age_alone(world):
    live = world.experiment("live")
    run = world.run(live, OLD)
    old = [world.trace(live, OLD, run=run.run_id if n == 0 else None).trace_id for n in range(3)]
    new = world.trace(live, NEW).trace_id
    world.gc()
    assert {row[2] for row in world.rows() if row[0] == "trace_info"} >= {*old, new}
    assert owned(world.files(), [run.run_id]), "a trace named the run"
    done = world.gc(traces_older_than="30d")
    assert not owned(world.files(), [*old, run.run_id]) and owned(world.files(), [new])
    assert done.rows["trace_info"] == 3 and done.rows["runs"] == 1
    assert {row[2] for row in world.rows() if row[:2] == ("trace_info", "request_id")} == {new}


def test_files_elsewhere_are_left_and_told(world):
    live = world.experiment("laptop", artifact_location="file:///home/me/mlruns/1")
    run = world.store.create_run(live, "u", 1, [], "r").info
    world.store.delete_run(run.run_id)
    world.sql("UPDATE runs SET deleted_time = ?", OLD)
    done = world.gc()
    assert done.rows["runs"] == 1 and done.elsewhere == [run.artifact_uri]
    assert run.artifact_uri in world.said[-1]


def test_deleted_at_an_unknown_time(world):
    """Nobody can say that it was long ago."""
    live, dead = world.experiment("live"), world.experiment("dead")
    world.experiment("the last number")
    run = world.run(live, OLD).run_id
    inside = world.run(dead).run_id
    world.delete_experiment(dead)
    world.sql("UPDATE runs SET deleted_time = NULL")  # of an MLflow that did not note it
    world.gc()
    assert owned(world.files(), [run]) and owned(world.files(), [inside])
    assert any("2: deleted nobody knows when" in text for text in world.said)
    world.sql("UPDATE experiments SET last_update_time = NULL WHERE experiment_id = ?", int(dead))
    world.gc()
    assert any("1: deleted nobody knows when" in text for text in world.said)
    done = world.gc(older_than="0d")
    assert (done.rows["runs"], done.rows["experiments"]) == (2, 1) and not world.files()


def test_a_trace_that_came_after_the_deletion(world):
    """MLflow takes spans for a deleted experiment."""
    dead = world.experiment("dead")
    world.experiment("the last number")
    old, new = world.trace(dead, OLD).trace_id, world.trace(dead, NEW).trace_id
    run = world.run(dead).run_id
    world.delete_experiment(dead)
    done = world.gc()
    assert done.rows == {"runs": 1} and not owned(world.files(), [run])
    assert len(owned(world.files(), [old, new])) == 2


def test_files_of_others_in_the_folder_of_a_deleted_run(world):
    """A model, a run and an experiment whose places somebody put there; a stranger is left alone by the removal too."""
    live = world.experiment("live")
    host, plain = world.run(live, OLD), world.run(live, OLD)
    tenants = world.experiment("tenants", artifact_location=f"{plain.artifact_uri}/deeper")
    model = world.store.create_logged_model(live, "m", None, [], [], None)
    inner = f"{host.artifact_uri}/models/{model.model_id}/artifacts"
    world.sql("UPDATE logged_models SET artifact_location = ? WHERE model_id = ?", inner, model.model_id)
    world.file(inner, "MLmodel")
    world.run(tenants)
    files = world.files()
    done = world.gc()
    assert world.files() == files and not done.rows.get("runs")
    assert any("2: files of something else are in its folder" in text for text in world.said)
    # Nobody but the model's own row says now that the file is its: it stays when the run goes.
    world.sql("UPDATE logged_models SET artifact_location = '' WHERE model_id = ?", model.model_id)
    with pytest.raises(StackError, match="is still in the store"):
        world.gc()
    assert (
        owned(world.files(), [model.model_id])
        and not (world.root / places.inside(host.artifact_uri, "") / "file.txt").exists()
    )


def test_one_that_is_registered_meanwhile_stays(world, monkeypatch):
    live = world.experiment("live")
    runs = [world.run(live, OLD) for _ in range(2)]
    written = Pending.write

    def register(self, folders):
        written(self, folders)
        world.registry.create_registered_model("late")
        world.registry.create_model_version("late", f"{runs[0].artifact_uri}/model")

    monkeypatch.setattr(Pending, "write", register)
    done = world.gc()
    assert done.rows["runs"] == 1 and owned(world.files(), [runs[0].run_id]) == world.files()


class Interrupted(BaseException):
    """As a kill: nothing may catch it."""


@pytest.mark.parametrize("moment", range(12))
def test_an_interruption_at_any_moment(world, monkeypatch, moment):
    """Rows without files must not be, nor files without rows, once the next run has ended."""
    go, keep, _ = fill(world)
    files = world.files()
    calls = iter(range(1000))

    def maybe(function):
        def wrapped(*arguments, **more):
            if next(calls) == moment:
                raise Interrupted
            result = function(*arguments, **more)
            if next(calls) == moment:
                raise Interrupted
            return result

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(local, "remove", maybe(local.remove))
        patch.setattr(rows, "delete", maybe(rows.delete))
        patch.setattr(Pending, "write", maybe(Pending.write))
        with pytest.raises(Interrupted):
            world.gc()
    # meanwhile: what still has a row has its files
    alive = {row[2] for row in world.rows() if row[0] in ("runs", "logged_models")}
    assert owned(files, alive) <= world.files()
    world.gc()
    assert world.files() == files - owned(files, go)
    assert not [row for row in world.rows() if row[2] in go]
    assert not world.pending.path.exists()


def test_one_that_is_restored_meanwhile_stays(world, monkeypatch):
    live = world.experiment("live")
    runs = [world.run(live, OLD) for _ in range(2)]
    written = Pending.write

    def restore(self, folders):
        written(self, folders)
        world.sql("UPDATE runs SET lifecycle_stage = 'active' WHERE run_uuid = ?", runs[0].run_id)

    monkeypatch.setattr(Pending, "write", restore)
    done = world.gc()
    assert done.rows["runs"] == 1 and owned(world.files(), [runs[0].run_id]) == world.files()


def test_not_beside_a_backup(world, tmp_path, monkeypatch):
    """A backup lists the rows first and the files after them."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(gc.settings, "adopt", lambda: world.env)
    options = {"older_than": "30d", "traces_older_than": "", "orphans": False, "server": None, "last": False}
    with lock.alone("make backup"):
        with pytest.raises(StackError, match="make backup is at work"):
            gc.run(SimpleNamespace(apply=True, **options))
        gc.run(SimpleNamespace(apply=False, **options))
    gc.run(SimpleNamespace(apply=True, **options))


def test_how_the_last_one_ended(world, tmp_path, monkeypatch, capsys):
    """By hand or by the clock. While the server rests, something else may be changing the database."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(gc.settings, "adopt", lambda: world.env)
    run = world.run(world.experiment("live"), OLD)

    def ask(*words):
        parser = argparse.ArgumentParser()
        gc.arguments(parser)
        gc.run(parser.parse_args(words))
        return capsys.readouterr().out

    assert ask("--last") == "" and ask() and ask("--last") == ""  # a look is none
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        server.close()
        with pytest.raises(StackError, match="the server does not run, so nothing was removed"):
            ask("--apply", "--server", address)
    assert ask("--last").startswith("clean-up: FAILED just now: the server does not run")
    assert owned(world.files(), [run.run_id])
    with socket.create_server(("127.0.0.1", 0)) as server:
        ask("--apply", "--server", f"127.0.0.1:{server.getsockname()[1]}")
    assert ask("--last").startswith("clean-up: removed: 1 runs; ") and ask("--last").endswith(", just now\n")


def test_unusual_places_name_what_they_mean(world):
    """Folders that do not have the id of their row in their names, and what a model version names."""
    live = world.experiment("live")
    run, model = world.run(live), world.model(live)
    world.sql("UPDATE runs SET artifact_uri = 'mlflow-artifacts:/by/hand' WHERE run_uuid = ?", run.run_id)
    world.registry.create_registered_model("named")
    world.registry.create_model_version("named", "mlflow-artifacts:/copied/model")
    kept = [world.file(f"mlflow-artifacts:/{where}") for where in ("by/hand", "copied/model/x")]
    gone = [world.file(f"mlflow-artifacts:/{where}/{C}/artifacts") for where in ("by/handful", "copied")]
    world.gc(orphans=True)
    assert [path.exists() for path in kept + gone] == [True, True, False, False]
    assert owned(world.files(), [model.model_id])


def test_what_is_not_mlflows_is_nobodys_business(world):
    """Another program may keep files in the same bucket."""
    other = [world.file(f"mlflow-artifacts:/{where}") for where in ("reports/2020", "1/models")]
    done = world.gc(orphans=True)
    assert done.files == 0 and all(path.exists() for path in other)
    assert any("not MLflow" in text for text in world.said)


def test_many(world, monkeypatch):
    """More than one batch of everything."""
    monkeypatch.setattr(rows, "SOME", 2)
    monkeypatch.setattr(rows.in_parts, "__defaults__", (2,))
    live = world.experiment("live")
    runs = [world.run(live, OLD).run_id for _ in range(5)]
    for _ in range(5):
        world.trace(live, OLD)
    stays = world.run(live).run_id
    done = world.gc(traces_older_than="30d")
    assert (done.rows["runs"], done.rows["trace_info"], done.files) == (5, 5, 10)
    assert owned(world.files(), [stays]) == world.files() and not owned(world.files(), runs)


def test_cuts_are_inclusive(world):
    live = world.experiment("live")
    run = world.run(live, OLD)
    engine = sqlite.engine(world.env)
    with engine.connect() as connection:
        assert run.run_id in rows.look(connection, Cuts(OLD), True).runs
        assert run.run_id not in rows.look(connection, Cuts(OLD - 1), True).runs


def test_nothing_is_streamed_but_what_asks_for_it(world):
    """PostgreSQL streams by cursors, and no UPDATE goes through one."""
    run = world.run(world.experiment("live"), OLD).run_id
    with sqlite.engine(world.env).begin() as connection:
        rows.look(connection, Cuts(OLD), True)
        list(rows.unusual(connection))
        assert rows.delete(connection, "runs", [run], Cuts(OLD)) == [run]
        assert "yield_per" not in connection.get_execution_options()
