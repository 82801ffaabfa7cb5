"""What the tests of backups share: a stack is destroyed, killed at work, looked at."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from stacks import Stack, leftovers, run


def destroy(one: Stack) -> None:
    """Remove everything that a stack has: containers, volumes, secrets. What stays is its repository and .env."""
    run("docker", "compose", "--profile", "*", "down", "--volumes", "--timeout", "5", cwd=one.folder)
    assert leftovers(one.name, "container", "network", "volume") == []
    shutil.rmtree(one.folder / "secrets")


def inside(one: Stack, script: str, *words: str) -> str:
    """Run a Python program in the image of the backups, with everything that a backup sees; return what it prints."""
    return one.compose(
        "run", "--rm", "-T", "--no-deps", "--entrypoint", "python", "backup", "-c", script, *words
    ).strip()


def errors(said: str) -> list[str]:
    """Return the sentences with which a command ends."""
    return [line for line in said.splitlines() if re.match(r"(stackops|[a-z-]+): error: ", line)]


def sets(folder: Path) -> list[str]:
    """Return the whole backups in a folder, oldest first."""
    return sorted(path.parent.name for path in folder.glob("2*Z/manifest.json"))


def pool(folder: Path) -> dict[Path, int]:
    """Return the objects of a folder's pool, each with the number by which a copy is told from the same file."""
    return {path: path.stat().st_ino for path in (folder / "artifacts").rglob("*") if path.is_file()}


def containers(one: Stack, service: str) -> list[str]:
    """Return the containers of a `docker compose run` of a service."""
    found = run("docker", "ps", "--quiet", "--no-trunc", "--filter", f"name={one.name}-{service}-run")
    return found.stdout.split()


def start(one: Stack, *words: str) -> subprocess.Popen[str]:
    """Start make, and go on."""
    return subprocess.Popen(
        ["make", "--no-print-directory", *words],
        cwd=one.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def until(true: Callable[[], object], what: str, seconds: float = 180) -> None:
    """Return when something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def kill(one: Stack, words: tuple[str, ...], when: Callable[[], object], service: str = "backup") -> str:
    """Start a command, and kill -9 it and its container as soon as `when` is true. Return what it has said."""
    begun = start(one, *words)
    until(lambda: when() or begun.poll() is not None, f"make {words} did not get that far")
    assert begun.poll() is None, f"it ended before it was killed: {begun.communicate()[0]}"
    # All processes of the command at once, so that no trap of a shell can tidy up.
    run("pkill", "-KILL", "-s", str(begun.pid))
    for name in containers(one, service):
        run("docker", "kill", "--signal", "KILL", name)
    said = begun.communicate(timeout=60)[0]
    until(lambda: not containers(one, service), "its container is gone")
    return said


def drilled(one: Stack, *words: str) -> str:
    """Run `make restore-drill`, which must find the backup good and leave nothing; return the backup's name."""
    running = run("docker", "inspect", "-f", "{{.Id}} {{.State.StartedAt}}", one.container("mlflow")).stdout
    said = one.make("restore-drill", *words)
    good = re.search(r"^the backup (\S+) in \S+ is good: restored, compared and used in \d+ s$", said, re.MULTILINE)
    assert good and "counts and checksums are right" in said and "proved: artifact" in said, said
    assert leftovers(f"{one.name}-drill", "container", "network", "volume") == []
    assert run("docker", "ps", "-aq", "--filter", f"name={one.name}-drill").stdout == ""
    assert run("docker", "inspect", "-f", "{{.Id}} {{.State.StartedAt}}", one.container("mlflow")).stdout == running
    return good[1]


def last(one: Stack) -> dict:
    """Return how the last backup of a stack ended, as it keeps it."""
    script = "import json; from stackops.saving import journal; print(json.dumps(journal.read()))"
    return json.loads(inside(one, script))
