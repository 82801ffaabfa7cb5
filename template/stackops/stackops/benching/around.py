"""Beside the server, with its database and its store: the look before measuring, and the removal afterwards.

What was measured with is an experiment whose name begins with PREFIX and which has the tag TAG. It goes for
good, with its runs, values and files; nothing else is touched.
"""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from stackops import settings
from stackops.cleaning import places, rows
from stackops.cleaning.removal import EXPERIMENT, RUN, Pending, Remover
from stackops.errors import StackError
from stackops.saving import lock
from stackops.words import human

PREFIX, TAG = "make bench ", "stackops.bench"
ROOM = 2 << 30
"""Bytes that must be free: eight times of what is uploaded."""
PENDING = "stackops-bench.pending"
LATER = "what is left goes with the next 'make bench'"
PATIENCE = 600.0
"""Seconds to wait for a backup, which must find every file that its copy of the database names."""


def look(env: Mapping[str, str]) -> dict[str, object]:
    """Return what is known of the stack, see advice.Facts. Raises StackError where measuring does harm."""
    spool = Path(tempfile.gettempdir())
    for folder in {spool, Path(env.get("DATA_DIR") or spool)}:
        roomy(shutil.disk_usage(folder), str(folder))
    with lock.alone("make bench"):  # nothing is saved, loaded or moved now
        pass
    backend = settings.backend(env)
    return {
        "workers": int(env["MLFLOW_WORKERS"]),
        "one_writer": backend.max_workers(env, settings.engines(env)) == 1,
        "sync": sync_time(spool),
        "round": round_time(backend.engine(env)),
        "database_here": "DB_SSLMODE" not in env,
        "through": env.get("ARTIFACT_ACCESS") == "proxied" and "://" in settings.artifact_uri(env),
    }


def roomy(disk, where: str) -> None:
    """Raise StackError if too little of the disk is free."""
    if disk.free < ROOM:
        raise StackError(
            f"only {human(disk.free)} are free where {where} is, and a full disk stops the stack: make room "
            f"until there are {human(ROOM)}"
        )


def sync_time(folder: Path, times: int = 30, seconds: float = 3.0) -> float:
    """Return how long the disk takes until it has 8 KiB, as a database writes them (median, seconds)."""
    found, until = [], time.monotonic() + seconds
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        while len(found) < times and time.monotonic() < until:
            file.write(os.urandom(8192))
            start = time.monotonic()
            os.fsync(file.fileno())
            found.append(time.monotonic() - start)
    return statistics.median(found)


def round_time(engine) -> float:
    """Return how long a question takes that the database answers without work: the median, in seconds."""
    import sqlalchemy as sa

    found = []
    with engine.connect() as connection:
        for _ in range(20):
            start = time.monotonic()
            connection.scalar(sa.select(1))
            found.append(time.monotonic() - start)
    return statistics.median(found)


@contextmanager
def alone(say: Callable[[str], None], patience: float = PATIENCE, pause: float = 5.0) -> Iterator[None]:
    """Hold the stack's lock, once its holder gives it back. Raises StackError if that takes too long."""
    until, told = time.monotonic() + patience, False
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(lock.alone("make bench"))
                break
            except StackError as error:
                if time.monotonic() > until:
                    raise StackError(f"{error}; {LATER}") from None
                if not told:
                    say(f"bench: {error}")
                    told = True
                time.sleep(pause)
        yield


def remove(env: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Remove every experiment of a measurement for good. Raises StackError.

    Files of runs go after their rows (see cleaning/removal.py); interrupted, it is finished by the next one.
    """
    backend = settings.backend(env)
    remover = Remover(
        backend.engine(env),
        settings.store(env),
        env,
        settings.artifact_uri(env),
        Pending(Path(tempfile.gettempdir(), PENDING)),
    )
    with alone(say):
        try:
            _remove(remover)
        except StackError as error:
            raise StackError(f"not everything was removed: {error}; {LATER}") from None


def _remove(remover: Remover) -> None:
    if remover.pending.read():
        remover.finish()
    with remover.engine.connect() as connection:
        found = ours(connection)
    if found and (users := settings.accounts(remover.env)):
        users.forget_experiments(remover.env, found)
    for _ in range(5):  # a request of a client that was killed may end only now
        with remover.engine.begin() as connection:
            cuts, runs = doom(connection, found)
        remover.table(RUN, runs, cuts, (), lambda *_: None)
        remover.table(EXPERIMENT, dict.fromkeys(found, ""), cuts, (), lambda *_: None)
        with remover.engine.connect() as connection:
            stays = ours(connection)
        if not stays:
            return check(remover)
        time.sleep(1)
    raise StackError(f"something still writes to the experiment {min(stays)}, or it holds models or traces")


def ours(connection) -> set[int]:
    """Return the numbers of the experiments of measurements."""
    import sqlalchemy as sa

    tables = rows.metadata().tables
    table, tags = tables["experiments"], tables["experiment_tags"]
    query = sa.select(table.c.experiment_id).join(tags, tags.c.experiment_id == table.c.experiment_id)
    query = query.where(tags.c.key == TAG, table.c.name.startswith(PREFIX, autoescape=True))
    return {*connection.scalars(query)}


def doom(connection, experiments: set[int]) -> tuple[rows.Cuts, dict[str, str]]:
    """Mark the experiments and their runs as deleted; return since when, and id -> location of the runs."""
    import sqlalchemy as sa

    tables = rows.metadata().tables
    runs, table = tables["runs"], tables["experiments"]
    now = int(time.time() * 1000)
    gone: dict[str, str] = {}
    for some in rows.in_parts(experiments):
        theirs = runs.c.experiment_id.in_(some)
        connection.execute(sa.update(runs).where(theirs).values(lifecycle_stage="deleted", deleted_time=now))
        connection.execute(
            sa.update(table)
            .where(table.c.experiment_id.in_(some))
            .values(lifecycle_stage="deleted", last_update_time=now)
        )
        found = connection.execute(sa.select(runs.c.run_uuid, runs.c.artifact_uri).where(theirs))
        gone |= {id: location or "" for id, location in found}
    return rows.Cuts(now), gone


def check(remover: Remover) -> None:
    """Look whether the files are gone. Raises StackError if they are not, or lie elsewhere."""
    for folder in remover.done.folders:
        if next(iter(remover.store.items(remover.env, folder)), None):
            raise StackError(
                f"{folder} is still in the store after it was removed: 'make gc ORPHANS=1' finds it"
            )
    if elsewhere := [one for one in remover.done.elsewhere if not places.inside(one, remover.root)]:
        raise StackError(f"{elsewhere[0]} is not in this stack's store, and what is there was not removed")
