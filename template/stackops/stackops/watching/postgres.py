"""What PostgreSQL says of itself: connections, transactions, size, and its slow statements.

One connection at a time, which ends with each look. Statements are counted by the extension
pg_stat_statements in the database `postgres`; where that is missing, the other figures are there without.
"""

from collections.abc import Mapping
from contextlib import closing

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from stackops import settings
from stackops.backends import postgres
from stackops.watching import Figures, gauge

SLOWEST = 10
LONGEST_TEXT = 160
OWN = "/* stackops metrics */"
LIMIT = "SET statement_timeout = '5s'; SET application_name = 'stackops metrics'"
HERE = f"""
    SELECT {OWN} current_setting('max_connections')::int, pg_database_size(current_database()),
        coalesce((SELECT extract(epoch FROM max(clock_timestamp() - xact_start))::float FROM pg_stat_activity
            WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()), 0),
        xact_commit, xact_rollback, deadlocks, blks_read, blks_hit
    FROM pg_stat_database WHERE datname = current_database()
"""
STATES = f"""
    SELECT {OWN} coalesce(state, 'of others'), count(*) FROM pg_stat_activity
    WHERE datid IS NOT NULL AND pid <> pg_backend_pid() GROUP BY 1
"""
STATEMENTS = """
    SELECT queryid::text, left(regexp_replace(query, '\\s+', ' ', 'g'), %s), calls, total_exec_time / 1000
    FROM pg_stat_statements WHERE dbid = (SELECT oid FROM pg_database WHERE datname = %s) AND toplevel
        AND position('/* stackops metrics */' IN query) = 0
"""
ALL = f"""
    SELECT coalesce(sum(calls), 0)::float, coalesce(sum(seconds), 0)::float
    FROM ({STATEMENTS}) AS counted (id, statement, calls, seconds)
"""
WORST = f"{STATEMENTS} ORDER BY total_exec_time DESC LIMIT {SLOWEST}"


def figures(env: Mapping[str, str]) -> Figures:
    """Yield whether it answers, and its figures. Not every role may see the connections of others."""
    import psycopg2

    keys = settings.secrets(env)
    folder = settings.runtime_dir(env)
    settings.write_private({str(folder / n): text for n, text in postgres.files(env, keys).items()})
    answers = "Whether the database answers."
    try:
        with closing(postgres.connect(env)) as connection, connection.cursor() as cursor:
            cursor.execute(LIMIT)
            cursor.execute(HERE)
            limit, size, longest, *counted = cursor.fetchone()
            cursor.execute(STATES)
            states = cursor.fetchall()
    except psycopg2.OperationalError:
        yield gauge("stack_database_up", answers, 0)
        return
    yield gauge("stack_database_up", answers, 1)
    yield gauge("stack_database_max_connections", "Connections that the database lets in.", limit)
    yield gauge("stack_database_bytes", "Size of the database.", size)
    yield gauge("stack_database_longest_transaction_seconds", "Age of the oldest transaction.", longest)
    connections = GaugeMetricFamily("stack_database_connections", "Open connections.", labels=["state"])
    for state, number in states:
        connections.add_metric([state], number)
    yield connections
    names = {
        "commits": "Transactions that were committed.",
        "rollbacks": "Transactions that were rolled back.",
        "deadlocks": "Transactions that were ended because they waited for each other.",
        "blocks_read": "Blocks that were not in the database's own memory.",
        "blocks_found": "Blocks that were.",
    }
    for (name, meaning), value in zip(names.items(), counted, strict=True):
        yield CounterMetricFamily(f"stack_database_{name}", meaning, value=value)
    yield from statements(env)


def statements(env: Mapping[str, str]) -> Figures:
    """Yield how many statements there were and what they cost, and the same of those that cost most."""
    import psycopg2

    asked = (LONGEST_TEXT, settings.need(env, "DB_NAME"))
    try:
        there = {**env, "DB_NAME": "postgres"}
        with closing(postgres.connect(there)) as connection, connection.cursor() as cursor:
            cursor.execute(LIMIT)
            cursor.execute(ALL, asked)
            calls, cost = cursor.fetchone()
            cursor.execute(WORST, asked)
            worst = cursor.fetchall()
    except psycopg2.Error:
        return
    yield CounterMetricFamily("stack_database_statements", "Statements that were executed.", value=calls)
    yield CounterMetricFamily("stack_database_statement_seconds", "What they took together.", value=cost)
    labels = ["id", "statement"]
    number = CounterMetricFamily(
        "stack_database_slow_statements", "Calls of a costly statement.", labels=labels
    )
    took = CounterMetricFamily("stack_database_slow_statement_seconds", "What they took.", labels=labels)
    for name, text, times, seconds in worst:
        number.add_metric([name, text], times)
        took.add_metric([name, text], seconds)
    yield number
    yield took
