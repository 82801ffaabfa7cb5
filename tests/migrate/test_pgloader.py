"""The other engine through the hazards of the first: the rows are equal, or one sentence says what is not.

pgloader's own exit code is 0 whatever it has lost; here nothing but the target counts.
"""

import subprocess
import time

import moving
import oracle
import pytest
from test_hazards import DATASET, FOREIGN_KEYS_OFF, HAZARDS, PARAM, RECORD, ROLLUP, RUN

METRIC = "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan) VALUES ('{}', {}, {}, 'r', {}, {})"
TRACE = (
    "INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, status, db_payload_generation) "
    "VALUES ('t', 0, 1, 'OK', 0)"
)
SPANS = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) "
    "INSERT INTO spans (trace_id, experiment_id, span_id, status, start_time_unix_nano, content) "
    "SELECT 't', 0, i, 'OK', i, {} || i FROM n"
)
SECRET = (
    "INSERT INTO secrets (secret_id, secret_name, encrypted_value, wrapped_dek, masked_value, kek_version, created_at, "
    "last_updated_at, workspace) VALUES ('{0}', '{0}', x'{1}', x'{1}', '{{}}', 1, 1, 1, 'default')"
)
EVERY_BYTE = bytes(range(256)).hex()

# What pgloader cannot load -> what makes it, and what the sentence says.
LOST = {
    "infinities": (
        [METRIC.format("m", "9e999", 1, 0, 0), METRIC.format("m", "-9e999", 1, 1, 0)],
        "metrics has 0 rows instead of 2",
    ),
    "json-that-is-one-float": (
        [DATASET, RECORD.format("1", "1e300", "1")],
        "evaluation_dataset_records has 0 rows instead of 1",
    ),
}
# Values that like to get lost -> what makes them, each in a run of its own.
VALUES = {
    "nan": [METRIC.format("m", 0, 1, 0, 1)],
    "floats": [
        METRIC.format(number, number, 1, 0, 0)
        for number in ("-0.0", "5e-324", "1e-310", "1.7976931348623157e308", "9007199254740994.0", "0.1", "-2.5e-7")
    ],
    "integers-in-a-float": [METRIC.format("m", 3, 1, 0, 0)],
    "numbers-as-text": ["UPDATE runs SET start_time = '1700000000000', end_time = 5.0"],
    "bigint": [METRIC.format("m", 1, 2**63 - 1, -(2**63), 0)],
    "backslash-n": [PARAM.format("a", r"'\N'"), PARAM.format("b", r"'\.'"), PARAM.format("c", r"'\'")],
    "white-space": [PARAM.format("a", "char(9) || 'a' || char(13, 10) || ' ' || char(11, 12)")],
    "control-characters": [PARAM.format("a", "char(1, 2, 8, 27, 31, 127)")],
    "empty": [PARAM.format("a", "''"), PARAM.format("b", "' '")],
    "null-in-letters": [PARAM.format("a", "'NULL'"), PARAM.format("b", "'null'")],
    "quotes": [PARAM.format("a", """'"x" ''y'' `z` $1 %s {}'""")],
    "other-scripts": [PARAM.format("a", "'👩‍👩‍👧 é ‏עברית  ﬀ'")],
    "long-text": [PARAM.format("a", "printf('%.*c', 8000, 'é')")],
    "every-byte": [SECRET.format("a", EVERY_BYTE), SECRET.format("b", "")],
    "json": [
        DATASET,
        *(
            RECORD.format(number, text, number)
            for number, text in enumerate(('{"a":  [1, null]}', "[]", '"\\\\N"', "0", "null", '"é👩"'))
        ),
    ],
    "dates": [
        ROLLUP.format(0, f"'{day}'", number)
        for number, day in enumerate(("1970-01-01", "2026-02-28", "9999-12-31", "0001-01-01"))
    ],
    "wide-traces": [TRACE, SPANS.format(20, r"replace(hex(zeroblob(75000)), '0', '\')")],
    "tables-of-the-owner": ["CREATE TABLE notes (text TEXT)", "INSERT INTO notes VALUES ('x')"],
}


def made(mover) -> list[tuple]:
    """Return the schemas in which rows wait: none, once a move has ended."""
    return mover.server.sql("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'mlflow%'", mover.database)


def is_as_before(mover, before) -> None:
    """Fail unless the target is what it was."""
    assert oracle.content(mover.dsn) == before
    assert made(mover) == []
    assert oracle.schema(mover.server.container, mover.database) == oracle.fresh(mover.server.container)


@pytest.mark.parametrize("name", HAZARDS)
def test_a_hazard_is_refused_before_anything_is_made(mover, empty_store, tmp_path, name):
    statements, _, _ = HAZARDS[name]
    store = moving.copy(empty_store, tmp_path, FOREIGN_KEYS_OFF, *statements)
    before = oracle.content(mover.dsn)
    assert "in the way" in mover.run(store, "--stage", "prepare", fails=True)
    is_as_before(mover, before)


def test_values_arrive(mover, empty_store, tmp_path):
    own = [
        statement.replace("'r'", f"'{name}'") for name, statements in VALUES.items() for statement in (RUN, *statements)
    ]
    store = moving.copy(empty_store, tmp_path, *own)
    original = store.read_bytes()
    mover.load(store, engine="pgloader")
    assert store.read_bytes() == original
    assert oracle.differences(store, mover.dsn) == []
    assert oracle.schema(mover.server.container, mover.database) == oracle.fresh(mover.server.container)
    assert made(mover) == []


@pytest.mark.parametrize("name", LOST)
def test_what_pgloader_cannot_load_is_said_in_a_sentence(mover, empty_store, tmp_path, name):
    statements, sentence = LOST[name]
    store = moving.copy(empty_store, tmp_path, RUN, *statements)
    before = oracle.content(mover.dsn)
    said = mover.load(store, engine="pgloader", fails=True)
    assert f"source and target differ: {sentence}" in said and "ENGINE=copy can do it" in said
    is_as_before(mover, before)
    mover.run(store)
    assert oracle.differences(store, mover.dsn) == []


MANY = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 60000) "
SESSIONS = (
    "FROM pg_stat_activity a WHERE datname = current_database() AND pid <> pg_backend_pid() AND usename = 'mlflow'"
)
COPIES = f"{SESSIONS} AND query ILIKE '%copy metrics %'"
COMPARES = f"{SESSIONS} AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND mode = 'AccessExclusiveLock')"
MAKES = f"{COMPARES} AND EXISTS (SELECT FROM pg_namespace WHERE nspname = 'mlflow_incoming')"
# Which step is struck, when, and how; what the command says afterwards, or nothing if it was killed itself.
STRIKES = {
    "pgloader-is-cut": ("load", COPIES, "cut", "source and target differ"),
    "pgloader-is-killed": ("load", COPIES, "kill", "source and target differ"),
    "preparing-is-cut": ("prepare", MAKES, "cut", "cannot be made"),
    "preparing-is-killed": ("prepare", MAKES, "kill", ""),
    "comparing-is-cut": ("finish", COMPARES, "cut", "nothing was changed"),
    "comparing-is-killed": ("finish", COMPARES, "kill", ""),
}


def struck(mover, command: list[str], when: str, how: str) -> str:
    """Run a step, and cut its connection or kill it when `when` has rows; return what it said to standard error."""
    env = None if command[0] == "docker" else mover.environment()
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    hit = False
    while process.poll() is None and not hit:
        if how == "cut":
            hit = bool(mover.server.sql(f"SELECT pg_terminate_backend(pid) {when}", mover.database))
        elif hit := bool(mover.server.sql(f"SELECT pid {when}", mover.database)):
            if command[0] == "docker":
                moving.run("docker", "kill", "--signal", "KILL", f"mlflow-stack-test-{mover.database}", check=True)
            else:
                process.kill()
    _, error = process.communicate(timeout=120)
    assert hit, f"it was over too soon: {error.decode()}"
    return error.decode()


@pytest.mark.parametrize("name", STRIKES)
def test_struck_half_way(mover, empty_store, tmp_path, name):
    step, when, how, sentence = STRIKES[name]
    store = moving.copy(
        empty_store, tmp_path, RUN, MANY + "INSERT INTO metrics SELECT 'm', i / 7.0, i, 'r', i, 0 FROM n"
    )
    before = oracle.content(mover.dsn)
    steps = {part: mover.command(store, "--stage", part) for part in ("prepare", "finish")}
    if step != "prepare":
        mover.run(store, "--stage", "prepare")
    if step == "finish":
        moving.run(*mover.pgloader())
    said = struck(mover, steps.get(step) or mover.pgloader(), when, how)
    if step == "load":
        said = mover.run(store, "--stage", "finish", fails=True)
    if sentence:
        last = said.splitlines()[-1]
        assert last.startswith("stackops: error: ") and sentence in last and "Traceback" not in said, said
        is_as_before(mover, before)
    else:
        for _ in range(200):
            if not mover.server.sql(f"SELECT pid {SESSIONS}", mover.database):
                break
            time.sleep(0.1)
        assert oracle.content(mover.dsn) == before
    mover.load(store, engine="pgloader")
    assert oracle.differences(store, mover.dsn) == []
    assert oracle.schema(mover.server.container, mover.database) == oracle.fresh(mover.server.container)
    assert made(mover) == []
