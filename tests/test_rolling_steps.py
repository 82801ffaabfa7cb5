"""Servers that give way one after the other, step by step: whatever fails, whenever it is killed, one always answers.

Docker is a stand-in that knows the servers and their versions, and that fails or kills at any call. It writes down when
no server that is ready is left. tests/e2e/test_replicas.py runs real ones.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from combinations import Answers
from rendering import Tree

# servers: number, version, and whether it is ready.
DOCKER = """\
#!/bin/sh
echo "$*" >>calls
number=$(($(wc -l <calls)))
dies() { [ "$(cat kill 2>/dev/null)" = "$number $1" ] && rm kill && kill -9 0; }
dies before
[ ! -s fail ] || ! echo "$*" | grep -Eq -- "$(cat fail)" || exit 1
image() { sed -n "s/^$1 \\(.*\\) .*/sha256:\\1/p" servers; }
add() {
  last=$(cut -d ' ' -f 1 servers | sort -n | tail -n 1)
  echo "$((last + 1)) $1 no" >>servers
}
gone() { sed -i "/^$1 /d" servers; }
version=new
case "$*" in *"--file backups/upgrade/compose.yaml"*) version=old ;; esac
case "$*" in
  "compose version --short") echo 2.40.3 ;;
  *" backup upgrade look "*) echo "schema of runs and models: abc, stays" ;;
  *" backup upgrade touched "*) cmp -s schema saved && echo "as before" || echo touched ;;
  *" backup upgrade save "*) cp schema saved ;;
  *" --scale mlflow="*)
    wanted=$(echo "$*" | sed 's/.*--scale mlflow=\\([0-9]*\\) .*/\\1/')
    while [ "$(grep -c . servers)" -lt "$wanted" ]; do add $version; done
    ;;
  "exec "*" stackops ready --wait 120")
    [ "$(image "$2")" != sha256:new ] || [ ! -e broken ] || [ "$2" -lt "$(cat broken)" ] || exit 1
    sed -i "s/^\\($2 .*\\) no/\\1 yes/" servers
    ;;
  "stop "*) sed -i "s/^\\($2 .*\\) yes/\\1 no/" servers ;;
  "rm "*) for last in "$@"; do :; done; gone "$last" ;;
  *" stop mlflow") sed -i 's/ yes$/ no/' servers ;;
  *" up --detach --wait --no-build"*) sed -i "s/ .*/ $version yes/" servers ;;
  "compose up --detach --wait") sed -i 's/ .*/ new yes/' servers ;;
  *" ps --all --format "*) cut -d ' ' -f 1 servers | sed 's/^/mlflow /' ;;
  *State.StartedAt*) echo 2026-01-01T00:00:00.0Z ;;
  "inspect --format mlflow "*) echo "mlflow $(image "$5") demo-stack-mlflow:one" ;;
  "inspect --format "*config-hash*) echo "$(image "$4" | cut -d : -f 2) $(image "$4")" ;;
  "image inspect --format "*) echo sha256:new ;;
  *" config --hash "*) echo "mlflow new" ;;
  *" ps --status running "*"mlflow") grep ' yes$' servers | cut -d ' ' -f 1 ;;
  *" ps "*"mlflow") cut -d ' ' -f 1 servers ;;
  "run --rm --network none "*) echo 3.17.2 ;;
  "compose config") echo "services: {}" ;;
esac
code=$?
grep -q ' yes$' servers || echo "$*" >>gaps
dies after
exit $code
"""
# Minutes: a script is killed at each of its calls.
KILLED = pytest.mark.watches(
    *(f"template/scripts/{name}.sh.jinja" for name in ("restart", "rolling", "up", "upgrade")),
    "template/scripts/lock.sh",
)
TEAM: Answers = {
    "project_name": "demo-stack", "backend": "managed", "artifact_store": "local", "reverse_proxy": "nginx",
    "auth": "none",
}  # fmt: skip


class Servers:
    """A stack with some servers of an old version, all of them ready."""

    def __init__(self, root: Path, number: int = 2):
        self.root = root
        (bin_folder := root / "bin").mkdir()
        for name, text in (("docker", DOCKER), ("sleep", "#!/bin/sh\n")):
            (bin_folder / name).write_text(text)
            (bin_folder / name).chmod(0o755)
        self.environment = {"PATH": f"{bin_folder}:{os.environ['PATH']}", "HOME": str(root.parent)}
        (root / "servers").touch()
        subprocess.run(["scripts/init.sh"], cwd=root, env=self.environment, check=True, capture_output=True)
        (root / ".running.yaml").write_text("services: {}\n")
        with open(root / ".env", "a", encoding="utf-8") as file:
            file.write(f"MLFLOW_REPLICAS={number}\nDB_HOST=db.example.com\n")
        (root / "secrets/db_password").write_text("x")
        self.number = number
        self.as_before()

    def as_before(self) -> None:
        """Begin anew."""
        (self.root / "servers").write_text("".join(f"{n} old yes\n" for n in range(1, self.number + 1)))
        (self.root / "schema").write_text("one\n")
        for name in ("fail", "broken", "kill", "gaps", "backups/upgrade/step"):
            (self.root / name).unlink(missing_ok=True)

    def put(self, name: str, text: str = "") -> None:
        """Write a file for the stand-in."""
        (self.root / name).write_text(f"{text}\n")

    def run(self, script: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run one of the stack's scripts in a process group of its own."""
        (self.root / "calls").write_text("")
        environment: Mapping[str, str] = self.environment | more
        return subprocess.run(
            [f"scripts/{script}.sh", *words], cwd=self.root, env=environment, capture_output=True, text=True,
            start_new_session=True,
        )  # fmt: skip

    def there(self) -> list[tuple[str, str, str]]:
        """Return number, version and readiness of each server."""
        return [tuple(line.split()) for line in (self.root / "servers").read_text().splitlines()]

    def versions(self) -> list[str]:
        """Return the versions of those that are ready; there are no others, and one was always there."""
        assert not (self.root / "gaps").exists(), (self.root / "gaps").read_text()
        assert all(ready == "yes" for _, _, ready in self.there()), self.there()
        return [version for _, version, _ in self.there()]

    def step(self) -> str:
        """Return how far an upgrade is."""
        path = self.root / "backups/upgrade/step"
        return path.read_text().strip() if path.exists() else ""


@pytest.fixture(params=[1, 2])
def servers(request: pytest.FixtureRequest, make_tree: Callable[[Answers], Tree]) -> Servers:
    """The stack."""
    return Servers(make_tree(TEAM).root, request.param)


def test_restart(servers: Servers) -> None:
    done = servers.run("restart")
    assert done.returncode == 0, done.stderr
    assert servers.versions() == ["new"] * servers.number and "done" in done.stdout
    numbers = [number for number, _, _ in servers.there()]
    assert not set(numbers) & set(map(str, range(1, servers.number + 1)))


@pytest.mark.parametrize("number", [1, 2, 4])
def test_restart_with_another_number(servers: Servers, number: int) -> None:
    text = (servers.root / ".env").read_text()
    (servers.root / ".env").write_text(text + f"MLFLOW_REPLICAS={number}\n")
    assert servers.run("restart").returncode == 0
    assert servers.versions() == ["new"] * number


def test_restart_with_a_server_that_is_not_ready(servers: Servers) -> None:
    before = servers.there()
    servers.put("broken", "0")
    done = servers.run("restart")
    assert done.returncode == 1 and "restart: error: no new server is ready" in done.stderr.splitlines()[-1]
    assert servers.versions() and servers.there() == before


@pytest.mark.parametrize("number", ["0", "two", "-1"])
def test_restart_with_a_number_that_is_none(servers: Servers, number: str) -> None:
    before = servers.there()
    with open(servers.root / ".env", "a", encoding="utf-8") as file:
        file.write(f"MLFLOW_REPLICAS={number}\n")
    done = servers.run("restart")
    assert done.returncode == 1 and "no number of servers" in done.stdout
    assert servers.versions() and servers.there() == before


def test_restart_with_jobs(servers: Servers) -> None:
    """With jobs there is one server, which restarts with a pause; of several none is touched."""
    with open(servers.root / ".env", "a", encoding="utf-8") as file:
        file.write("MLFLOW_SERVER_ENABLE_JOB_EXECUTION=true\n")
    done = servers.run("restart")
    calls = (servers.root / "calls").read_text().splitlines()
    if servers.number == 1:
        assert done.returncode == 0 and "compose restart" in calls, done.stderr
    else:
        assert done.returncode == 1 and "restart: error: server-side jobs run in one server" in done.stderr
        assert "compose restart" not in calls and servers.versions() == ["old", "old"]


def test_restart_waits_for_an_upgrade(servers: Servers) -> None:
    (servers.root / "backups/upgrade").mkdir(parents=True)
    servers.put("backups/upgrade/step", "rolling")
    done = servers.run("restart")
    assert done.returncode == 1 and "restart: error: an upgrade was interrupted" in done.stderr
    assert servers.versions() == ["old"] * servers.number


@KILLED
def test_restart_killed_at_any_moment(servers: Servers) -> None:
    """What is left answers; the next one puts all right."""
    assert servers.run("restart").returncode == 0
    for number in range(1, len((servers.root / "calls").read_text().splitlines()) + 1):
        servers.as_before()
        servers.put("kill", f"{number} after")
        assert servers.run("restart").returncode == -signal.SIGKILL
        assert any(ready == "yes" for _, _, ready in servers.there())
        done = servers.run("restart")
        assert done.returncode == 0 and servers.versions() == ["new"] * servers.number, (number, done.stderr)


def test_upgrade(servers: Servers) -> None:
    done = servers.run("upgrade")
    assert done.returncode == 0 and "one after the other, and clients go on" in done.stdout, done.stderr
    assert servers.versions() == ["new"] * servers.number and servers.step() == "done"
    again = servers.run("upgrade")
    assert again.returncode == 0 and "nothing to do" in again.stdout


@pytest.mark.parametrize("fails", ["-T migrate$", "upgrade save", "--scale mlflow=", "broken"])
def test_upgrade_that_fails(servers: Servers, fails: str) -> None:
    """Nobody notices, and what runs is what ran before."""
    before = servers.there()
    servers.put("broken", "0") if fails == "broken" else servers.put("fail", fails)
    done = servers.run("upgrade")
    assert done.returncode == 1 and servers.versions() and servers.there() == before, done.stdout + done.stderr
    assert done.stderr.count("upgrade: error: ") == 1
    if fails != "upgrade save":  # before anything has begun
        assert "the stack runs as before" in done.stderr and servers.step() == "went-back"
        assert servers.run("up").returncode == 1 and servers.there() == before
    (servers.root / ("broken" if fails == "broken" else "fail")).unlink()
    assert servers.run("upgrade").returncode == 0 and servers.versions() == ["new"] * servers.number


def test_upgrade_that_fails_with_the_second_server(servers: Servers) -> None:
    """Those of before that have gone come back."""
    servers.put("broken", str(servers.number + 2))
    done = servers.run("upgrade")
    if servers.number == 1:
        assert done.returncode == 0
        return
    assert done.returncode == 1 and "clients go on" in done.stdout, done.stderr
    assert servers.versions() == ["old"] * servers.number


@KILLED
@pytest.mark.parametrize("finish", ["upgrade", pytest.param("undo", marks=pytest.mark.full)])
def test_upgrade_killed_at_any_moment(servers: Servers, finish: str) -> None:
    """The next run goes on, or back, and nobody notices."""
    assert servers.run("upgrade").returncode == 0
    calls = (servers.root / "calls").read_text().splitlines()
    last = next(number for number, call in enumerate(calls, 1) if call == "compose up --detach --wait")
    rolling = 0
    for number in range(1, last):
        servers.as_before()
        servers.put("kill", f"{number} after")
        assert servers.run("upgrade").returncode == -signal.SIGKILL
        where = f"killed after call {number} ({calls[number - 1]}) at {servers.step()}"
        assert any(ready == "yes" for _, _, ready in servers.there()), where
        if servers.step() == "rolling":
            rolling += 1
            assert "an upgrade was interrupted" in servers.run("up").stderr
            if finish == "undo":
                done = servers.run("upgrade", "undo", REPLACE="1")
                assert (done.returncode, servers.versions()) == (0, ["old"] * servers.number), (where, done.stderr)
                continue
        done = servers.run("upgrade")
        assert (done.returncode, servers.versions()) == (0, ["new"] * servers.number), (where, done.stderr)
    assert rolling > 3


@pytest.mark.parametrize("why", ["schema", "nginx", "jobs"])
def test_the_way_with_a_pause(servers: Servers, why: str) -> None:
    """Where tables change, or what requests pass through, or with jobs, the server stops first."""
    docker = servers.root / "bin/docker"
    if why == "schema":
        docker.write_text(docker.read_text().replace("abc, stays", "abc, becomes def"))
    elif why == "nginx":
        both = 'echo "mlflow new" && echo "nginx new"'
        docker.write_text(
            docker.read_text().replace('echo "mlflow new" ;;', f'{both} ;;\n  *" --quiet nginx") echo 1 ;;')
        )
    else:
        with open(servers.root / ".env", "a", encoding="utf-8") as file:
            file.write("MLFLOW_SERVER_ENABLE_JOB_EXECUTION=true\nMLFLOW_REPLICAS=1\n")
    done = servers.run("upgrade")
    assert done.returncode == 0 and "nobody can log until it is done" in done.stdout, done.stderr
    assert (servers.root / "gaps").read_text() and [version for _, version, _ in servers.there()][0] == "new"
