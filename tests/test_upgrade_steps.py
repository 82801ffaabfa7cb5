"""`make upgrade` step by step: whatever fails, and whenever it is killed, it ends with one version and its own data.

Docker is a stand-in that knows which version the tables and the container have, and that fails or kills at any call.
tests/e2e/test_upgrade.py runs real ones.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from combinations import Answers
from rendering import Tree

DOCKER = """\
#!/bin/sh
echo "$*" >>calls
number=$(($(wc -l <calls)))
dies() { [ "$(cat kill 2>/dev/null)" = "$number $1" ] && rm kill && kill -9 0; }
dies before
[ ! -s fail ] || ! echo "$*" | grep -Eq -- "$(cat fail)" || exit 1
new() { echo new >container && echo yes >running; }
case "$*" in
  "compose version --short") echo 2.40.3 ;;
  *" backup upgrade look "*) echo "MLflow: 3.16.1 runs, 3.17.2 is to come" ;;
  *" backup upgrade save "*) cp schema saved ;;
  *" backup upgrade touched "*) cmp -s schema saved && echo "as before" || echo touched ;;
  *" backup upgrade put-back "*) cp saved schema ;;
  *" backup upgrade verify "*) cmp -s schema saved || { echo "stackops: error: they differ" >&2 && exit 1; } ;;
  *" run --rm -T migrate") echo new >schema ;;
  *" stop mlflow") echo no >running ;;
  *" --file backups/upgrade/compose.yaml up "*) echo old >container && echo yes >running ;;
  *" up --detach --wait --no-build"*) exit 9 ;;
  "compose up --detach --wait") new ;;
  *" ps --all --format "*) echo "mlflow id" ;;
  "inspect --format mlflow "*) echo "mlflow sha256:$(cat container) demo-stack-mlflow:one" ;;
  "inspect --format "*config-hash*) echo "$(cat container) sha256:$(cat container)" ;;
  "image inspect --format "*) echo sha256:new ;;
  *" config --hash "*) echo "mlflow new" ;;
  *" ps --all --quiet mlflow") echo id ;;
  "run --rm --network none "*) echo 3.16.1 ;;
  "compose config") echo "services: {}" ;;
esac
code=$?
dies after
exit $code
"""
SOLO: Answers = {"project_name": "demo-stack", "purpose": "solo"}
OLD, NEW = ("old", "old", "yes"), ("new", "new", "yes")


class Steps:
    """A stack whose old version runs."""

    def __init__(self, root: Path):
        self.root = root
        (bin_folder := root / "bin").mkdir()
        (bin_folder / "docker").write_text(DOCKER)
        (bin_folder / "docker").chmod(0o755)
        self.environment = {"PATH": f"{bin_folder}:{os.environ['PATH']}", "HOME": str(root.parent)}
        subprocess.run(["scripts/init.sh"], cwd=root, env=self.environment, check=True, capture_output=True)
        (root / ".running.yaml").write_text("services: {}\n")
        self.put(schema="old", container="old", running="yes")

    def put(self, **files: str) -> None:
        """Write files."""
        for name, text in files.items():
            (self.root / name).write_text(f"{text}\n")

    def run(self, script: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run one of the stack's scripts in a process group of its own."""
        (self.root / "calls").write_text("")
        environment: Mapping[str, str] = self.environment | more
        return subprocess.run(
            [f"scripts/{script}.sh", *words], cwd=self.root, env=environment, capture_output=True, text=True,
            start_new_session=True,
        )  # fmt: skip

    def calls(self) -> list[str]:
        """Return what Docker was asked by the last script."""
        return (self.root / "calls").read_text().splitlines()

    def state(self) -> tuple[str, str, str]:
        """Return which version the tables and the container have, and whether it runs."""
        schema, container, running = (
            (self.root / name).read_text().strip() for name in ("schema", "container", "running")
        )
        return schema, container, running

    def step(self) -> str:
        """Return how far it is."""
        path = self.root / "backups/upgrade/step"
        return path.read_text().strip() if path.exists() else ""


@pytest.fixture
def steps(make_tree: Callable[[Answers], Tree]) -> Steps:
    """The stack."""
    return Steps(make_tree(SOLO).root)


def test_all_goes_well(steps: Steps) -> None:
    look = steps.run("upgrade", "check")
    assert look.returncode == 0 and "containers that change: mlflow" in look.stdout and steps.state() == OLD
    done = steps.run("upgrade")
    assert done.returncode == 0, done.stderr
    assert steps.state() == NEW and steps.step() == "done"
    order = [
        call for call in steps.calls() if any(word in call for word in (" stop ", " save ", " migrate", "-T check"))
    ]
    assert [call.split()[-1] for call in order] == ["mlflow", "/upgrade/database", "migrate", "check"]
    again = steps.run("upgrade")
    assert "nothing to do" in again.stdout and not [call for call in steps.calls() if " stop " in call]
    assert steps.run("up").returncode == 0

    refused = steps.run("upgrade", "undo")
    assert refused.returncode == 1 and "REPLACE=1 says that it may (they differ)" in refused.stderr
    assert steps.state() == NEW
    back = steps.run("upgrade", "undo", REPLACE="1")
    assert (back.returncode, back.stderr, steps.state()) == (0, "", OLD)
    refused = steps.run("up")
    assert refused.returncode == 1 and "the last upgrade went back" in refused.stderr and steps.state() == OLD
    steps.put(**{"mlflow/requirements.extra.txt": "# another version"})
    assert steps.run("up").returncode == 0


@pytest.mark.parametrize(
    ("fails", "said", "restored"),
    [
        ("build --quiet mlflow", "cannot be built, see above; nothing has changed", None),
        ("upgrade look", "nothing has changed", None),
        ("stop mlflow", "the server does not stop", False),
        ("upgrade save", "the database cannot be saved", False),
        ("-T migrate$", "the migration failed", False),
        ("^compose up --detach --wait$", "the new version does not start", True),
        ("-T check$", "the new version does not pass 'make check'", True),
    ],
)
def test_whatever_fails(steps: Steps, fails: str, said: str, restored: bool | None) -> None:
    """None: it had not begun. The tables are restored only where they have changed."""
    steps.put(fail=fails)
    done = steps.run("upgrade")
    assert done.returncode == 1 and steps.state() == OLD
    assert done.stderr.count("upgrade: error: ") == 1 and said in done.stderr.splitlines()[-1]
    assert [call for call in steps.calls() if "put-back" in call] == [] or restored
    if restored is None:
        assert steps.step() == "" and not [call for call in steps.calls() if " stop " in call]
        return
    assert "the stack runs as before: MLflow 3.16.1 with the data from before" in done.stderr
    assert steps.step() == "went-back"
    assert steps.run("up").returncode == 1
    (steps.root / "fail").unlink()
    assert steps.run("upgrade").returncode == 0 and steps.state() == NEW


def test_a_way_back_that_fails_is_gone_again(steps: Steps) -> None:
    steps.put(fail="-T check$|put-back")
    done = steps.run("upgrade")
    assert done.returncode == 1 and "could not be restored" in done.stderr and "nothing runs" in done.stderr
    assert steps.state() == ("new", "new", "no")
    assert "an upgrade was interrupted" in steps.run("up").stderr and steps.state() == ("new", "new", "no")
    steps.put(fail="-T check$")
    done = steps.run("upgrade")
    assert done.returncode == 1 and "interrupted on its way back; the stack runs as before" in done.stderr
    assert steps.state() == OLD


@pytest.mark.parametrize("finish", ["upgrade", "undo"])
@pytest.mark.parametrize("when", ["before", pytest.param("after", marks=pytest.mark.full)])
def test_killed_at_any_moment(steps: Steps, when: str, finish: str) -> None:
    """Before or after each thing that Docker is asked for. The next run goes on, or back, as its operator likes."""
    assert steps.run("upgrade").returncode == 0
    count, interrupted = len(steps.calls()), set()
    assert steps.run("upgrade", "undo", REPLACE="1").returncode == 0
    for number in range(1, count + 1):
        assert steps.state() == OLD
        (steps.root / "backups/upgrade/step").unlink(missing_ok=True)
        steps.put(kill=f"{number} {when}")
        assert steps.run("upgrade").returncode == -signal.SIGKILL
        where = f"killed {when} call {number} at {steps.step()}"
        if steps.step() in ("stopped", "saved", "migrating", "starting"):
            interrupted.add(steps.step())
            refused = steps.run("up")
            assert refused.returncode == 1 and "an upgrade was interrupted" in refused.stderr, where
            if finish == "undo":
                done = steps.run("upgrade", "undo", REPLACE="1")
                assert (done.returncode, done.stderr, steps.state()) == (0, "", OLD), where
                continue
        done = steps.run("upgrade")
        assert (done.returncode, steps.state(), steps.step()) in ((0, NEW, "done"), (0, NEW, "")), (where, done.stderr)
        steps.put(schema="old", container="old", running="yes")
    assert interrupted >= {"stopped", "migrating", "starting"}
    assert not (steps.root / ".stack.lock").is_symlink()


def test_killed_on_the_way_back(steps: Steps) -> None:
    steps.put(fail="-T check$")
    assert steps.run("upgrade").returncode == 1
    count, interrupted = len(steps.calls()), 0
    for number in range(1, count + 1):
        assert steps.state() == OLD
        (steps.root / "backups/upgrade/step").unlink(missing_ok=True)
        steps.put(kill=f"{number} before", fail="-T check$")
        steps.run("upgrade")
        if steps.step() == "going-back":
            interrupted += 1
            assert "an upgrade was interrupted" in steps.run("up").stderr
        done = steps.run("upgrade")
        assert done.returncode == 1, number
        if steps.state() != OLD:  # what was killed while it started does not go back by itself
            assert "'make upgrade-undo' does" in done.stderr and steps.step() == "starting", number
            assert steps.run("upgrade", "undo", REPLACE="1").returncode == 0
    assert steps.state() == OLD and interrupted > 2


@pytest.mark.parametrize("command", ["restore", "migrate", "gc"])
def test_others_wait_for_it_to_be_finished(steps: Steps, command: str) -> None:
    """What starts the stack, or what it needs, does not do so in the middle of an upgrade."""
    (steps.root / "backups/upgrade").mkdir(parents=True)
    source = steps.root / "mlflow.db"
    source.touch()
    for step in ("stopped", "migrating", "going-back"):
        (steps.root / "backups/upgrade/step").write_text(f"{step}\n")
        done = steps.run(command, FROM=str(source) if command == "migrate" else "backups")
        assert done.returncode == 1
        assert f"{command}: error: an upgrade was interrupted: run 'make upgrade' to finish it" in done.stderr
        assert not [call for call in steps.calls() if " stop " in call or " run " in call], steps.calls()
    (steps.root / "backups/upgrade/step").write_text("done\n")
    assert "an upgrade was interrupted" not in steps.run(command, FROM=str(source)).stderr


def test_one_at_a_time(steps: Steps) -> None:
    with subprocess.Popen(["sh", "-c", "sleep 60; :", "scripts/upgrade.sh"], start_new_session=True) as busy:
        try:
            (steps.root / ".stack.lock").symlink_to(f"{busy.pid} upgrade")
            for script in ("upgrade", "up"):
                done = steps.run(script)
                assert done.returncode == 1
                assert f"'make upgrade' (process {busy.pid}) is at work: wait until it has ended" in done.stderr
            assert steps.state() == OLD
        finally:
            os.killpg(busy.pid, signal.SIGKILL)
    assert steps.run("upgrade").returncode == 0


def test_many_at_the_same_moment(steps: Steps) -> None:
    """Of those that begin together, when none sees another's lock yet, one goes on."""
    script = ". scripts/lock.sh; die() { exit 1; }; lock test; read -r line; : scripts/"
    start = {"cwd": steps.root, "stdin": subprocess.PIPE}
    many = [subprocess.Popen(["sh", "-c", script, "scripts/x.sh"], **start) for _ in range(8)]
    until = time.monotonic() + 20
    while sum(one.poll() is None for one in many) > 1 and time.monotonic() < until:
        time.sleep(0.05)
    assert sum(one.poll() is None for one in many) == 1
    for one in many:
        one.communicate()
