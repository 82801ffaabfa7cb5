"""`make logs` makes columns of requests and leaves out what does not matter. Docker is a stand-in with lines."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from combinations import Answers
from rendering import Tree

DOCKER = """\
#!/bin/sh
echo "$*" >>asked
case "$*" in
  "compose config --services") printf 'mlflow\\nnginx\\n' ;;
  "compose ps --all --quiet") echo "$CONTAINERS" ;;
  *) cat lines ;;
esac
"""
REQUEST = (
    '{"time":"2026-11-27T13:15:02+00:00","user":"ann","method":"GET","host":"localhost","path":"/a\\",\\"status\\":999,b",'
    '"status":200,"bytes_in":100,"bytes_out":12345,"seconds":0.012,"upstream_seconds":null,"address":"172.18.0.1"}'
)
CADDY = (
    '{"level":"info","ts":"2026-11-27T13:15:02Z","logger":"http.log.access.log0","msg":"handled request","request":'
    '{"remote_ip":"172.18.0.1","client_ip":"172.18.0.1","proto":"HTTP/2.0","method":"GET","host":"localhost",'
    '"uri":"/a\\",\\"status\\":999,b"},"bytes_read":100,"user_id":"","duration":0.012345,'
    '"size":12345,"status":200,"user":"ann"}'
)
COLUMNS = (
    '11-27 13:15:02 nginx        200   0.012 s GET    {}/a\\",\\"status\\":999,b'
    "  ann  100 B in, 12.1 KiB out, 172.18.0.1"
)
LINES = """\
nginx-1     | {request}
nginx-1     | 10.0.0.1 [notice] 1#1: start worker
nginx-1     | [error] 7#7: connect() failed (111: Connection refused)
mlflow-1    | INFO: started
mlflow-1    | Traceback (most recent call last):
mlflow-1    |   File "x.py", line 1
nginx-1     | quiet
mlflow-1    | ValueError: \x1b[31mno\x1b[0m \x07
mlflow-1    | after
postgres-1  | LOG:  checkpoint starting
postgres-1  | [1] ERROR:  relation "x" does not exist
postgres-1  | [1] STATEMENT:  select * from x
postgres-1  | [1] LOG:  duration: 812.1 ms  execute
postgres-1  | [1] LOG:  fine
postgres-1  | [1] STATEMENT:  of nobody
object-store-1 | E1127 13:15:02 volume.go:1] disk
object-store-1 | I1127 13:15:02 volume.go:1] fine
object-store-1 | I1127 13:15:03 volume.go:2] no error, WARNING or other
"""
MATTERS = [
    "nginx [error] 7#7: connect() failed (111: Connection refused)",
    "mlflow Traceback (most recent call last):",
    'mlflow   File "x.py", line 1',
    "mlflow ValueError: no ?",
    'postgres [1] ERROR:  relation "x" does not exist',
    "postgres [1] STATEMENT:  select * from x",
    "postgres [1] LOG:  duration: 812.1 ms  execute",
    "object-store E1127 13:15:02 volume.go:1] disk",
]
TEAM: Answers = {"project_name": "demo-stack", "purpose": "team"}


@pytest.fixture
def logs(make_tree: Callable[[Answers], Tree]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run scripts/logs.sh over the lines above; what Docker was asked for is in `asked` of the result."""

    def run(answers: Answers, request: str, containers: str = "1", **variables: str):
        stack = make_tree(TEAM | answers).root
        (stack / ".env").touch()
        (stack / "lines").write_text(LINES.replace("{request}", request))
        (bin_folder := stack / "bin").mkdir()
        (bin_folder / "docker").write_text(DOCKER)
        (bin_folder / "docker").chmod(0o755)
        environment = {"PATH": f"{bin_folder}:{os.environ['PATH']}", "CONTAINERS": containers, **variables}
        done = subprocess.run(["scripts/logs.sh"], cwd=stack, env=environment, capture_output=True, text=True)
        asked = Path(stack, "asked")
        done.asked = asked.read_text().splitlines()[-1] if asked.exists() else ""
        return done

    return run


@pytest.mark.parametrize(
    ("answers", "request_line", "host"),
    [
        ({}, REQUEST, ""),
        ({"artifact_access": "direct"}, REQUEST, "localhost"),
        ({"reverse_proxy": "caddy"}, CADDY, ""),
        ({"reverse_proxy": "none", "auth": "none"}, REQUEST, ""),
    ],
)
def test_columns(logs, answers: Answers, request_line: str, host: str) -> None:
    """A request is one line, whatever its path pretends; of the rest, what is wrong."""
    done = logs(answers, request_line, FOLLOW="0")
    first, *rest = done.stdout.splitlines()
    assert first == COLUMNS.format(host) and done.returncode == 0 and not done.stderr
    assert [line.strip().split(maxsplit=1)[0] for line in rest] == [line.split()[0] for line in MATTERS]
    assert [line[28:] for line in rest] == [line.split(" ", 1)[1] for line in MATTERS]


def test_all_that_one_service_says(logs) -> None:
    done = logs({}, REQUEST, SERVICE="mlflow", FOLLOW="no", SINCE="10m")
    assert len(done.stdout.splitlines()) == len(LINES.splitlines()) and "INFO: started" in done.stdout
    assert done.asked == "compose logs --no-color --since 10m mlflow"


def test_raw_is_as_it_was(logs) -> None:
    done = logs({}, REQUEST, RAW="1")
    assert done.stdout == LINES.replace("{request}", REQUEST)
    assert done.asked == "compose logs --no-color --follow --tail 1000"
    assert logs({}, REQUEST, RAW="1", SERVICE="nginx").asked.endswith(" --no-log-prefix nginx")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"SERVICE": "postgresql"}, "there is no service 'postgresql'"),
        ({"SERVICE": "--help"}, "there is no service '--help'"),
        ({"SINCE": "yesterday; rm"}, "SINCE is 'yesterday; rm'"),
        ({"FOLLOW": "maybe"}, "FOLLOW is 'maybe'"),
        ({"RAW": "json"}, "RAW is 'json'"),
        ({"containers": ""}, "there are no containers: run 'make up' first"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(logs, variables: dict[str, str], said: str) -> None:
    done = logs({}, REQUEST, **variables)
    assert done.returncode == 1 and done.stderr.startswith(f"logs: error: {said}") and done.stderr.count("\n") == 1
