"""Makes a copy of the source, brings it to this MLflow version and rewrites artifact locations in it.

The source itself is only read.
"""

import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from stackops import artifact_uris
from stackops.errors import StackError, one_line
from stackops.migration.files import File, history, revisions, sqlite_file
from stackops.migration.report import LOCATIONS, Report, elsewhere, on_disk

Say = Callable[[str], None]


@contextmanager
def workplace(stage: str = "all") -> Iterator[Path]:
    """Give the folder for copies to one migration at a time; what a killed one left there goes first.

    The stage `prepare` leaves what it made there, and `finish` finds it.
    """
    folder = Path(tempfile.gettempdir()) / "stackops-migrate"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StackError(f"{folder} cannot be used: {error.strerror}; it must belong to this user") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise StackError("another migration is running here; wait until it has ended") from None
    keep = False
    try:
        if stage != "finish":
            clear(folder)
        yield folder
        keep = stage == "prepare"
    finally:
        if not keep:
            clear(folder)
        os.close(lock)


def clear(folder: Path) -> None:
    """Delete everything in the folder but the lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()


def make_copy(path: Path, called: str, work: Path, say: Say) -> tuple[Path, str]:
    """Make the copy of a SQLite file, a folder that has one, or an mlruns folder, at this MLflow's version.

    Returns the copy and what the source is. Raises StackError.
    """
    copy = work / "copy.db"
    if path.is_dir() and (path / "mlflow.db").is_file():
        path, called = path / "mlflow.db", f"{called.rstrip('/')}/mlflow.db"
    if path.is_dir():
        if not is_file_store(path):
            raise StackError(
                f"{called} is neither an mlruns folder nor a backup, and has no mlflow.db; look for the "
                "right path"
            )
        kind = "file store"
        copy_file_store(path, called, work, copy, say)
    else:
        kind = "SQLite"
        copy_sqlite(path, called, copy)
    upgrade(copy, called, say)
    return copy, kind


def copy_sqlite(path: Path, called: str, copy: Path) -> None:
    """Copy a SQLite file, and its write-ahead log if it has one, as one consistent state. Raises
    StackError."""
    before = _fingerprint(path)
    with sqlite_file(path, called) as connection, closing(sqlite3.connect(copy)) as target:
        if not revisions(connection):
            raise StackError(
                f"{called} is no MLflow database: it has no schema of MLflow's; look for the right file"
            )
        try:
            connection.backup(target, pages=4096)
            target.execute("PRAGMA journal_mode=DELETE")
        except sqlite3.Error as error:
            if "full" not in str(error) and "disk I/O" not in str(error):
                raise
            raise StackError(
                f"the copy of {called} cannot be written: {one_line(error)}; make room in {copy.parent}"
            ) from None
    if _fingerprint(path) != before:
        raise StackError(
            f"{called} was written to while it was being copied; stop its server, then try again"
        )


def _fingerprint(path: Path) -> list[tuple[int, int]]:
    return [
        (status.st_size, status.st_mtime_ns)
        for name in (path, Path(f"{path}-wal"))
        if name.exists() and (status := name.stat())
    ]


def is_file_store(folder: Path) -> bool:
    """Whether the folder is MLflow's file store (./mlruns), or has one in it."""
    root = folder / "mlruns" if (folder / "mlruns").is_dir() else folder
    return any((path / "meta.yaml").is_file() for path in root.iterdir() if path.is_dir())


def copy_file_store(folder: Path, called: str, work: Path, copy: Path, say: Say) -> None:
    """Turn MLflow's file store into a SQLite file with MLflow's own command. Raises StackError.

    It works on a copy without the artifacts, because ordinary folders make that command fail: a metric that a
    model was logged with is in its file twice, and the database takes it once.
    """
    root = folder / "mlruns" if (folder / "mlruns").is_dir() else folder
    mirror = work / "mlruns"
    try:
        shutil.copytree(root, mirror, ignore=_artifacts, copy_function=shutil.copyfile)
        repeated = 0
        for meta in mirror.rglob("meta.yaml"):
            for file in meta.with_name("metrics").rglob("*"):
                if file.is_file():
                    repeated += _without_repeats(file)
    except OSError as error:
        raise StackError(
            f"{called} cannot be copied: {one_line(error)}; look at its permissions and at {work}"
        ) from None
    if repeated:
        say(f"file store: {repeated} repeated metric lines taken once")
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "mlflow",
            "migrate-filestore",
            "--source",
            str(mirror),
            "--target",
            f"sqlite:///{copy}",
        ],
        env={**os.environ, "MLFLOW_ALLOW_FILE_STORE": "true"},
        text=True,
        capture_output=True,
    )
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()] or ["no message"]
        cause = next((line for line in reversed(lines) if "Error" in line or "Exception" in line), lines[-1])
        raise StackError(
            f"MLflow cannot read the file store {called}: {one_line(cause)}; mend the file that it names"
        )
    with closing(sqlite3.connect(copy)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    shutil.rmtree(mirror)
    say("file store: read by mlflow migrate-filestore")


def _artifacts(folder: str, names: list[str]) -> set[str]:
    """Return what not to copy: the artifacts of a run, model or trace, but not a key of that name."""
    return {"artifacts"} & set(names) if {"meta.yaml", "trace_info.yaml"} & set(names) else set()


def _without_repeats(file: Path) -> int:
    """Keep the first of equal lines; return how many went."""
    lines = file.read_text(encoding="utf-8").splitlines()
    kept = list(dict.fromkeys(lines))
    if len(kept) < len(lines):
        file.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return len(lines) - len(kept)


def upgrade(copy: Path, called: str, say: Say) -> None:
    """Bring each schema of the copy to this MLflow version; refuse a newer one. Raises StackError."""
    uri = f"sqlite:///{copy}"
    with closing(sqlite3.connect(copy)) as connection:
        found = revisions(connection)
    for name, revision in found.items():
        versions = history(name)
        if revision not in versions.known:
            raise StackError(
                f"{called} comes from a newer MLflow than this stack's (schema {revision}); "
                "raise the stack's version first"
            )
        if revision == versions.newest:
            continue
        say(f"schema: the copy goes from {revision} to {versions.newest}")
        command = ["-m", "mlflow", "db", "upgrade", uri]
        if name == "users":
            command = ["-m", "mlflow.server.auth", "db", "upgrade", "--url", uri]
        done = subprocess.run([sys.executable, "-P", *command], text=True, capture_output=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
            cause = next((line for line in reversed(lines) if "Error" in line), lines[-1])
            raise StackError(
                f"the copy of {called} cannot be upgraded: {one_line(cause)}; the file itself is as it was"
            )


def map_artifacts(rows: File, wanted: Sequence[tuple[str, str]], report: Report) -> None:
    """Report where artifacts are and rewrite their locations in the copy. Raises StackError."""
    for uri, count in locations(rows.connection).items():
        report.locations.append({"from": uri, "rows": count, "to": artifact_uris.rewrite(uri, wanted)})
    left = [place["from"] for place in report.locations if not place["to"] and on_disk(place["from"])]
    report.notes += [elsewhere(one_line(uri, 500)) for uri in left[:LOCATIONS]]
    if more := left[LOCATIONS:]:
        report.notes.append(f"so are the artifacts in {len(more)} other places, which --json lists")
    if wanted:
        rewrite(rows.path, wanted)


def rewrite(copy: Path, mapping: Sequence[tuple[str, str]]) -> list[artifact_uris.Change]:
    """Rewrite the artifact locations in the copy. Raises StackError if one would become too long."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(f"sqlite:///{copy}", poolclass=sqlalchemy.pool.NullPool)
    with engine.begin() as connection:
        return artifact_uris.apply(connection, mapping)


def locations(connection: sqlite3.Connection) -> dict[str, int]:
    """Return where artifacts are, shortened to what they have in common, with the number of rows."""
    found: dict[str, int] = {}
    for table, column in (
        ("experiments", "artifact_location"),
        ("runs", "artifact_uri"),
        ("logged_models", "artifact_location"),
    ):
        for (uri,) in connection.execute(f"SELECT {column} FROM {table} WHERE {column} IS NOT NULL"):
            root = artifact_root(uri if isinstance(uri, str) else repr(uri))
            found[root] = found.get(root, 0) + 1
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def artifact_root(uri: str) -> str:
    """Return the part of an artifact location that comes before the experiment's id."""
    parts = uri.split("/")
    for number, part in enumerate(parts):
        if part.isdecimal() and number:
            return "/".join(parts[:number]) or "/"
    return uri
