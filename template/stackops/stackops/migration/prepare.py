"""Makes a copy of the source that can be loaded as it is; the source itself is only read.

The copy is brought to this MLflow version, long experiment ids are renumbered, artifact locations rewritten
and what FIX names is repaired.
"""

import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from stackops import artifact_uris
from stackops.errors import StackError, one_line
from stackops.migration import hazards
from stackops.migration.catalogue import Table
from stackops.migration.source import SQLite, history, revisions, sqlite_file
from stackops.migration.values import quoted

Say = Callable[[str], None]

PROMPT_EXPERIMENTS = "_mlflow_experiment_ids"  # the tag of a prompt with the experiments that use it: ,1,2,


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


def copy_sqlite(path: Path, called: str, copy: Path) -> None:
    """Copy a SQLite file, and its write-ahead log if it has one, as one consistent state. Raises
    StackError."""
    before = _fingerprint(path)
    try:
        with sqlite_file(path, called) as connection, closing(sqlite3.connect(copy)) as target:
            if not revisions(connection):
                raise StackError(
                    f"{called} is no MLflow database: it has no schema of MLflow's; look for the right file"
                )
            connection.backup(target, pages=4096)
            target.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error as error:
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


def renumber(connection: sqlite3.Connection) -> dict[int, int]:
    """Give experiments whose id PostgreSQL cannot hold the next free ones, by age. Return old id -> new
    id."""
    too_big = connection.execute(
        "SELECT experiment_id FROM experiments WHERE experiment_id > ? ORDER BY creation_time, experiment_id",
        (hazards.INT4,),
    ).fetchall()
    (highest,) = connection.execute(
        "SELECT coalesce(max(experiment_id), 0) FROM experiments WHERE experiment_id <= ?", (hazards.INT4,)
    ).fetchone()
    numbers = {old: highest + 1 + position for position, (old,) in enumerate(too_big)}
    if not numbers:
        return {}
    connection.execute("BEGIN")
    connection.execute("CREATE TEMP TABLE renumbered (old INTEGER PRIMARY KEY, new INTEGER NOT NULL)")
    connection.executemany("INSERT INTO renumbered VALUES (?, ?)", numbers.items())
    places = [
        (table, "experiment_id", "")
        for (table,) in connection.execute(
            "SELECT m.name FROM sqlite_master m JOIN pragma_table_info(m.name) c "
            "WHERE m.type = 'table' AND c.name = 'experiment_id'"
        ).fetchall()
    ]
    places += [
        ("entity_associations", f"{end}_id", f" AND {end}_type = 'experiment'")
        for end in ("source", "destination")
    ]
    for table, column, only in places:
        connection.execute(
            f"UPDATE {quoted(table)} SET {column} = (SELECT new FROM renumbered WHERE old = CAST({column} "
            "AS INTEGER)) "
            f"WHERE CAST({column} AS INTEGER) IN (SELECT old FROM renumbered){only}"
        )
    for name, value in connection.execute(
        "SELECT name, value FROM registered_model_tags WHERE key = ?", (PROMPT_EXPERIMENTS,)
    ).fetchall():
        ids = [str(numbers.get(int(word), word)) if word.isdecimal() else word for word in value.split(",")]
        connection.execute(
            "UPDATE registered_model_tags SET value = ? WHERE name = ? AND key = ?",
            (",".join(ids), name, PROMPT_EXPERIMENTS),
        )
    connection.execute("DROP TABLE renumbered")
    connection.execute("COMMIT")
    return numbers


def rewrite(copy: Path, mapping: Sequence[tuple[str, str]]) -> list[artifact_uris.Change]:
    """Rewrite the artifact locations in the copy. Raises StackError if one would become too long."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(f"sqlite:///{copy}", poolclass=sqlalchemy.pool.NullPool)
    with engine.begin() as connection:
        return artifact_uris.apply(connection, mapping)


def drop_rollups(source: SQLite, say: Say) -> None:
    """Delete the daily sums of traces, and what waits for them to be made again."""
    for name in (*hazards.ROLLUPS, hazards.ROLLUP_QUEUE):
        if name in source.tables and (count := source.total(name)):
            source.connection.execute(f"DELETE FROM {quoted(name)}")
            say(f"repaired: {name}: {count} rows left out ({hazards.FIXES['rollups']})")


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


def repair(
    source: SQLite,
    tables: Mapping[str, Table],
    found: Sequence[hazards.Hazard],
    fixes: Sequence[str],
    say: Say,
) -> None:
    """Repair on the copy what `fixes` names. Raises StackError if two rows would become one."""
    connection = source.connection
    connection.create_function("mended", 2, _mended)
    connection.execute("BEGIN")
    try:
        for hazard in found:
            fix = hazard.fix.removeprefix("FIX=")
            if fix not in fixes or fix in ("orphans", "renumber"):
                continue
            table, column = quoted(hazard.table), quoted(hazard.column)
            if fix == "shorten":
                length = next(c.length for c in tables[hazard.table].columns if c.name == hazard.column)
                done = connection.execute(
                    f"UPDATE {table} SET {column} = substr({column}, 1, {length}) WHERE length({column}) > "
                    f"{length}"
                )
            elif fix == "rows":
                condition = next(
                    condition
                    for c, code, condition, _, _ in hazards.conditions(tables[hazard.table])
                    if c.name == hazard.column and code == hazard.code
                )
                done = connection.execute(f"DELETE FROM {table} WHERE {condition}")
            else:
                done = connection.execute(
                    f"UPDATE {table} SET {column} = CAST(mended('{fix}', CAST({column} AS BLOB)) AS TEXT) "
                    f"WHERE mended('{fix}', CAST({column} AS BLOB)) IS NOT CAST({column} AS BLOB)"
                )
            say(f"repaired: {hazard.table}.{hazard.column}: {done.rowcount} rows ({hazards.FIXES[fix]})")
        if "orphans" in fixes:
            _drop_orphans(connection, tables, say)
        connection.execute("COMMIT")
    except sqlite3.IntegrityError as error:
        raise StackError(
            f"a repair would make two rows equal ({one_line(error)}); mend them in the source"
        ) from None


def _mended(fix: str, value: bytes | None) -> bytes | None:
    if value is None:
        return None
    if fix == "nul":
        return value.replace(b"\0", b"")
    if fix == "utf8":
        return value.decode("utf-8", "replace").encode()
    return _valid_json(value) if hazards.bad_json(value) else value


def _valid_json(value: bytes) -> bytes:
    """Return JSON without NaN and Infinity; text that is no JSON at all becomes a JSON string."""
    import json

    text = value.decode("utf-8", "replace")
    try:
        return json.dumps(json.loads(text, parse_constant=lambda name: None)).encode()
    except (ValueError, RecursionError):
        return json.dumps(text).encode()


def _drop_orphans(connection: sqlite3.Connection, tables: Mapping[str, Table], say: Say) -> None:
    """Delete rows without a parent, and then those that have lost theirs, until none is left."""
    gone: dict[str, int] = {}
    while True:
        before = sum(gone.values())
        for table in tables.values():
            for key in table.foreign_keys:
                done = connection.execute(
                    f"DELETE FROM {quoted(table.name)} WHERE {hazards.orphan_condition(table, key)}"
                )
                gone[table.name] = gone.get(table.name, 0) + done.rowcount
        if sum(gone.values()) == before:
            break
    for name, count in gone.items():
        if count:
            say(f"repaired: {name}: {count} rows left out ({hazards.FIXES['orphans']})")
