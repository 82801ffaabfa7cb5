"""Stores that MLflow 2.22 and 3.7 themselves have made and filled, moved by both engines and compared row by row."""

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import moving
import oracle
import psycopg2
import pytest

sys.path.insert(0, str(moving.ROOT / "tests" / "e2e"))
from test_old_clients import CLIENTS, installed  # noqa: E402

USED = Path(__file__).parent / "used.py"
# What a version fills, of the tables that it has.
TABLES = {
    "mlflow-2.22": 18,
    "mlflow-3.7": 28,
}


@dataclass
class Store:
    """A SQLite file that a version made."""

    version: str
    path: Path


def use(name: str, uri: str, folder: Path, **env: str) -> None:
    """Let a version fill the store at `uri`."""
    done = moving.run(installed(name), str(USED), uri, f"{folder}/mlruns/1", cwd=folder, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1].startswith(name.removeprefix("mlflow-"))


@pytest.fixture(scope="module", params=CLIENTS)
def used(request, tmp_path_factory) -> Store:
    """The store of each version."""
    folder = tmp_path_factory.mktemp(request.param)
    use(request.param, f"sqlite:///{folder}/mlflow.db", folder)
    return Store(request.param, folder / "mlflow.db")


@pytest.mark.parametrize("engine", ["copy", "pgloader"])
def test_every_row(mover, used, engine):
    before = used.path.read_bytes()
    said = mover.load(used.path, engine=engine)
    assert "64 tables, count and checksum of every one equal" in said
    assert used.path.read_bytes() == before
    with closing(sqlite3.connect(used.path)) as connection:
        names = [n for (n,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        full = {n for n in names if connection.execute(f'SELECT 1 FROM "{n}" LIMIT 1').fetchone()} - {"alembic_version"}
    assert len(full) == TABLES[used.version], sorted(full)
    assert oracle.differences(used.path, mover.dsn, full, older=True) == []
    assert mover.server.sql("SELECT trace_name, count(*) FROM trace_info GROUP BY 1", mover.database) == [("asked", 5)]
    assert oracle.schema(mover.server.container, mover.database) == oracle.fresh(mover.server.container)


@pytest.fixture(scope="module")
def team(server, tmp_path_factory) -> Iterator[str]:
    """The name of a PostgreSQL database that MLflow 3.7 made and filled."""
    name = server.database("template0")
    uri = f"postgresql+psycopg2://mlflow@127.0.0.1:{server.port}/{name}"
    use("mlflow-3.7", uri, tmp_path_factory.mktemp("team"), PGPASSWORD=moving.PASSWORD)
    yield name
    server.sql(f"DROP DATABASE {name} WITH (FORCE)")


def move(mover, name: str, *words: str, **more) -> str:
    """Move a database of the same server."""
    uri = f"postgresql+psycopg2://mlflow@127.0.0.1:{mover.server.port}/{name}"
    return mover.run(uri, *words, "--password-stdin", stdin=moving.PASSWORD + "\n", **more)


def waiting(mover) -> list[tuple]:
    """Return the schemas in which rows wait."""
    return mover.server.sql("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'mlflow%'", mover.database)


def test_an_older_postgres_is_brought_up_to_date_on_the_way(mover, team):
    old = mover.server.dsn(team)
    before, shape = oracle.content(old), oracle.schema(mover.server.container, team)
    empty = oracle.content(mover.dsn)
    said = move(mover, team, "--check")
    assert "the schema bf29a5ff90ea is older: a copy of the rows goes to" in said
    assert oracle.content(mover.dsn) == empty and waiting(mover) == []

    said = move(mover, team)
    assert "count and checksum of every one equal on both sides" in said and "the rows go from bf29a5ff90ea" in said
    assert [line for line in oracle.lost(old, mover.dsn) if not line.startswith("alembic_version")] == []
    assert mover.server.sql("SELECT trace_name, count(*) FROM trace_info GROUP BY 1", mover.database) == [("asked", 5)]
    assert oracle.content(old) == before and oracle.schema(mover.server.container, team) == shape
    assert oracle.schema(mover.server.container, mover.database) == oracle.fresh(mover.server.container)
    assert waiting(mover) == []
    assert "REPLACE=1" in move(mover, team, fails=True)
    mover.server.sql("GRANT SELECT ON runs TO PUBLIC", mover.database)
    assert "REPLACE=1 brings it back" in move(mover, team, "--replace")
    assert mover.server.sql(
        "SELECT relacl::text LIKE '%,=r/%' FROM pg_class WHERE relname = 'runs'", mover.database
    ) == [(True,)]
    with closing(psycopg2.connect(mover.dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO experiments (name, workspace) VALUES ('new', 'default') RETURNING experiment_id")
        assert cursor.fetchone()[0] > 1


def test_an_older_backup_too(mover, team):
    from stackops.migration import catalogue, files, source

    with closing(psycopg2.connect(mover.server.dsn(team))) as connection, connection.cursor() as cursor:
        tables = {n: t for n, t in catalogue.tables(cursor).items() if n not in files.VERSION_TABLES}
        source.write_backup(connection, tables, {"tracking": "bf29a5ff90ea"}, mover.folder / "backup")
    assert "the rows go from bf29a5ff90ea" in mover.run(mover.folder / "backup")
    lost = oracle.lost(mover.server.dsn(team), mover.dsn)
    assert [line for line in lost if not line.startswith("alembic_version")] == []


def test_an_older_postgres_that_is_not_whole(mover, team):
    broken = mover.server.database(team)
    try:
        mover.server.sql("DROP TABLE tags", broken)
        before = oracle.content(mover.dsn)
        said = move(mover, broken, fails=True)
        assert "has no table tags, which belongs to its schema bf29a5ff90ea" in said
        assert oracle.content(mover.dsn) == before and waiting(mover) == []
    finally:
        mover.server.sql(f"DROP DATABASE {broken} WITH (FORCE)")


def test_a_newer_postgres_is_refused(mover, another):
    newer = another()
    newer.server.sql("UPDATE alembic_version SET version_num = 'ffffffffffff'", newer.database)
    assert "comes from a newer MLflow" in move(mover, newer.database, fails=True)
