"""One server, one empty and one rich store for all tests of `stackops migrate`."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import moving
import needs
import pytest
from moving import Mover, Server

sys.path.insert(0, str(moving.PROJECT))


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A PostgreSQL server with the database `fresh`, which has MLflow's tables."""
    needs.engine()
    made = moving.start_server()
    try:
        moving.make_schema(made, "fresh")
        yield made
    finally:
        moving.run("docker", "rm", "--force", "--volumes", made.container, check=True)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's tables and nothing in them but what every new store has."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    script = "import mlflow, sys; mlflow.MlflowClient(sys.argv[1]).search_experiments()"
    done = moving.run(sys.executable, "-c", script, f"sqlite:///{path}", cwd=path.parent)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="session")
def rich_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with hostile values in every table."""
    path = tmp_path_factory.mktemp("rich") / "mlflow.db"
    done = moving.run(sys.executable, str(Path(__file__).parent / "rich.py"), str(path), cwd=path.parent)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture
def mover(server: Server, tmp_path: Path) -> Iterator[Mover]:
    """The command, with a fresh database as its target."""
    name = server.database()
    yield Mover(server, name, tmp_path)
    server.sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def another(server: Server, tmp_path: Path) -> Iterator[Callable[[], Mover]]:
    """Makes more of them."""
    made = []

    def make(template: str = "fresh", options: str = "") -> Mover:
        folder = tmp_path / f"more{len(made)}"
        folder.mkdir()
        made.append(Mover(server, server.database(template, options), folder))
        return made[-1]

    yield make
    for one in made:
        server.sql(f"DROP DATABASE {one.database} WITH (FORCE)")
