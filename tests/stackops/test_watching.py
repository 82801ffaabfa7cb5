"""What the workers count, and what `stackops metrics` makes of it and of the rest."""

import asyncio
import contextlib
import json
import os
import socket
import time
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from stackops import counting, metrics, ready, schedule
from stackops.errors import StackError
from stackops.saving import journal
from stackops.watching import disks, gauge, nginx, readiness, saved, sqlite, workers
from werkzeug.routing import Map, Rule

SEARCH = "2.0/mlflow/runs/search"
RULES = Map(
    [
        *(Rule(f"/{door}/{SEARCH}", methods=["POST"]) for door in ("api", "ajax-api")),
        Rule("/api/3.0/mlflow/traces/<trace_id>"),
    ]
)


def scope(path, method="GET", address="172.18.0.1", agent=b"python", **more):
    given = {
        "type": "http",
        "method": method,
        "path": path,
        "client": (address, 1),
        "headers": [(b"user-agent", agent)],
    }
    return given | more


def count(app, *scopes):
    """Send requests through the counting; return the figures."""
    figures = counting.Figures()
    counted = counting.Counting(app, figures, counting.Routes(RULES))

    async def receive():
        return {"type": "http.request", "body": b"12345"}

    async def send(message):
        pass

    async def all_of_them():
        for one in scopes:
            with contextlib.suppress(ValueError):
                await counted(one, receive, send)

    asyncio.run(all_of_them())
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for metric in figures.registry.collect()
        for sample in metric.samples
    }


async def fine(scope, receive, send):
    await receive()
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"123"})


async def broken(scope, receive, send):
    raise ValueError


async def silent(scope, receive, send):
    pass


def requests(found, route, status, method="GET"):
    return found.get(("stack_requests_total", ("method", method), ("route", route), ("status", status)), 0)


def test_requests_are_counted_by_route():
    search, trace = f"/api/{SEARCH}", "/api/3.0/mlflow/traces/<trace_id>"
    found = count(
        fine,
        scope(search, "POST"),
        scope(search.replace("/api/", "/ajax-api/"), "POST"),
        scope("/api/3.0/mlflow/traces/tr-1"),
        scope("/api/3.0/mlflow/traces/tr-2"),
        scope("/artifacts/a/b", route=SimpleNamespace(path="/artifacts/{path}")),
    )
    assert requests(found, search, "200", "POST") == 2
    assert requests(found, trace, "200") == 2
    assert requests(found, "/artifacts/{path}", "200") == 1
    assert found["stack_request_bytes_total", ("direction", "in")] == 25
    assert found["stack_request_bytes_total", ("direction", "out")] == 15
    assert found["stack_request_seconds_count", ("route", trace)] == 2
    assert found[("stack_requests_running",)] == 0


def test_nobody_can_make_up_a_series():
    found = count(fine, *(scope(f"/made/up/{n}", f"X{n}") for n in range(50)), scope("/stackops/login"))
    assert requests(found, "other", "200", "other") == 50 and requests(found, "/stackops/", "200") == 1
    assert sum(name[0] == "stack_requests_total" for name in found) == 2


def test_failures_and_clients_that_go_away_are_counted():
    assert requests(count(broken, scope("/x")), "other", "500") == 1
    assert requests(count(silent, scope("/x")), "other", "499") == 1


def test_the_containers_own_health_check_is_not_counted():
    agent = ready.AGENT.encode()
    found = count(fine, scope("/x", address="127.0.0.1", agent=agent), scope("/x", agent=agent))
    assert requests(found, "other", "200") == 1


def worker(folder, number, text, age=0.0):
    path = folder / number / counting.FOLDER
    path.mkdir(parents=True, exist_ok=True)
    file = path / f"{text[0]}.prom"
    file.write_text(text[1])
    os.utime(file, (time.time() - age, time.time() - age))


TEXT = """# HELP stack_requests_total Requests.
# TYPE stack_requests_total counter
stack_requests_total{{route="/a"}} {0}
# HELP process_start_time_seconds Start.
# TYPE process_start_time_seconds gauge
process_start_time_seconds {1}
"""


def shown(*modules, env=None):
    registry = CollectorRegistry()
    registry.register(metrics.Stack(env or {}, modules))
    return generate_latest(registry).decode()


def test_workers_are_put_together(tmp_path):
    worker(tmp_path, "server-a", ("7", TEXT.format(3, 100)))
    worker(tmp_path, "server-a", ("8", TEXT.format(4, 200)))
    worker(tmp_path, "server-a", ("9", TEXT.format(5, 300)), age=60)  # gone
    worker(tmp_path, "server-b", ("7", TEXT.format(1, 50)), age=10)  # an earlier server's
    text = shown(workers, env={"TMPDIR": str(tmp_path)})
    assert 'stack_requests_total{route="/a",server="",worker="7"} 3.0' in text
    assert 'stack_requests_total{route="/a",server="",worker="8"} 4.0' in text
    assert 'worker="9"' not in text and text.count('worker="7"') == 2
    assert "stack_workers 2.0" in text and "stack_worker_started_seconds 200.0" in text


def test_workers_of_several_servers(tmp_path):
    """Each container numbers its processes for itself."""
    worker(tmp_path, "server-one-a1", ("7", TEXT.format(3, 100)))
    worker(tmp_path, "server-two-b2", ("7", TEXT.format(4, 200)), age=10)
    worker(tmp_path, "server-two-b3", ("7", TEXT.format(5, 300)))  # the same, started again
    text = shown(workers, env={"TMPDIR": str(tmp_path)})
    assert 'stack_requests_total{route="/a",server="one",worker="7"} 3.0' in text
    assert 'stack_requests_total{route="/a",server="two",worker="7"} 5.0' in text
    assert "stack_workers 2.0" in text and "stack_worker_started_seconds 300.0" in text


def test_without_a_server_there_are_no_workers(tmp_path):
    assert "stack_workers 0.0" in shown(workers, env={"TMPDIR": str(tmp_path)})


def test_what_a_worker_writes_is_what_is_read(tmp_path):
    figures = counting.Figures()
    figures.requests.labels("GET", '/a"b\\c', "200").inc()
    (tmp_path / "server-host-x").mkdir()
    figures.keep_writing(tmp_path / "server-host-x" / counting.FOLDER, 0.05)
    until = time.monotonic() + 10
    while "stack_workers 1.0" not in (text := shown(workers, env={"TMPDIR": str(tmp_path)})):
        assert time.monotonic() < until, text
    whose = f'server="host",worker="{os.getpid()}"'
    assert 'stack_requests_total{method="GET",route="/a\\"b\\\\c",server="host",status="200",worker=' in text
    assert f"process_resident_memory_bytes{{{whose}}}" in text and "_created" not in text


def test_a_part_that_fails_leaves_the_others(capsys):
    def fails(env):
        yield gauge("stack_half", "Not shown.", 1)
        raise OSError("no\nsuch thing")

    bad = SimpleNamespace(__name__="stackops.watching.bad", figures=fails)
    good = SimpleNamespace(__name__="stackops.watching.good", figures=lambda env: [gauge("stack_good", "Shown.", 1)])
    stack = metrics.Stack({}, [bad, good])
    registry = CollectorRegistry()
    registry.register(stack)
    for _ in range(2):
        text = generate_latest(registry).decode()
    assert "stack_good 1.0" in text and "stack_half" not in text
    assert 'stack_figures_failed{part="bad"} 1.0' in text and 'stack_figures_failed{part="good"} 0.0' in text
    assert capsys.readouterr().err == "stackops: bad cannot be looked at: no such thing\n", "once, not at every look"


def test_the_check_wants_figures():
    with pytest.raises(StackError, match="the figures do not come"):
        metrics.check(1)


def test_readiness(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert "stack_ready 0.0" in shown(readiness)
    ready.note({"database": 0.25, "artifact store": 0.5})
    text = shown(readiness)
    assert "stack_ready 1.0" in text and 'stack_ready_seconds{part="database"} 0.25' in text
    ready.note({}, "not ready: database")
    assert "stack_ready 0.0" in shown(readiness)
    (own,) = ready.notes()
    own.write_text(json.dumps({"time": time.time() - 60, "seconds": {}, "error": ""}))
    assert "stack_ready 0.0" in shown(readiness), "an old result says nothing"
    assert list(tmp_path.iterdir()) == [own]


def test_readiness_of_several_servers(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name, took in (("one", 0.25), ("two", 0.75)):
        monkeypatch.setattr(socket, "gethostname", lambda name=name: name)
        ready.note({"database": took})
    text = shown(readiness, env={"MLFLOW_REPLICAS": "3"})
    assert "stack_ready 1.0" in text and "stack_servers_ready 2.0" in text and "stack_servers 3.0" in text
    assert 'stack_ready_seconds{part="database"} 0.75' in text, "where it takes longest"
    ready.note({}, "not ready: database")
    text = shown(readiness, env={"MLFLOW_REPLICAS": "3"})
    assert "stack_ready 1.0" in text and "stack_servers_ready 1.0" in text
    # Of a server that is not there any more, nothing stays.
    os.utime(tmp_path / "ready-one.json", (time.time() - 7200,) * 2)
    ready.note({"database": 0.1})
    assert [path.name for path in tmp_path.iterdir()] == ["ready-two.json"]


def test_a_note_that_cannot_be_written_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    ready.note({})


def test_backups(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert "stack_backup" not in shown(saved)
    times = {"began": "2026-11-27T03:30:00+00:00", "ended": "2026-11-27T03:30:20+00:00"}
    journal.write(
        journal.text({**times, "ok": True, "error": "", "set": "x", "to": "y", "bytes": 5, "rows": 6, "objects": 7})
    )
    text = shown(saved)
    assert "stack_backup_ok 1.0" in text and "stack_backup_duration_seconds 20.0" in text
    assert "stack_backup_rows 6.0" in text and "stack_backup_due_seconds" not in text
    journal.write(journal.text({**times, "ok": False, "error": "disk full", "to": "y"}))
    schedule.tell([schedule.Job(schedule.BACKUP, schedule.Clock(schedule.parsed("0 3 * * *"), 0.0), [])])
    text = shown(saved)
    assert "stack_backup_ok 0.0" in text and "stack_backup_rows" not in text
    assert "stack_backup_due_seconds 10800.0" in text


def test_nginx():
    page = "Active connections: 3 \nserver accepts handled requests\n 10 8 50 \nReading: 0 Writing: 1 Waiting: 2 \n"
    part = SimpleNamespace(__name__="stackops.watching.nginx", figures=lambda env: nginx.shown(page))
    text = shown(part)
    assert "stack_nginx_up 1.0" in text and "stack_nginx_requests_total 50.0" in text
    assert "stack_nginx_dropped_total 2.0" in text and 'stack_nginx_connections_now{state="waiting"} 2.0' in text
    with pytest.raises(ValueError, match="not the status page"):
        list(nginx.shown("<html>"))


def test_nginx_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(nginx, "STATUS", "http://127.0.0.1:1/status")
    assert "stack_nginx_up 0.0" in shown(nginx)


def test_sqlite(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"x" * 4096)
    text = shown(sqlite, env={"DATA_DIR": str(tmp_path)})
    assert 'stack_database_bytes{file="mlflow.db"} 4096.0' in text and "wal" not in text


def test_disks(monkeypatch):
    monkeypatch.setattr(disks, "DISKS", {"/": "all", "/no-such-place": "none"})
    text = shown(disks)
    assert 'stack_disk_free_bytes{path="/"}' in text and "no-such-place" not in text
