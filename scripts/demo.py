"""`make demo`: render the default answers into build/demo, start that stack without Docker, log a run to it.

Uses nothing but the rendered stack's own commands, as its owner would: `make local` starts the server, and
`scripts/local.sh check --keep` logs to it. `DEMO_PORT` chooses the port; without it, 5000 or the next free one.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STACK = ROOT / "build" / "demo"
LOG = ROOT / "build" / "demo.log"
PID = ROOT / "build" / "demo.pid"
PATIENCE = 600  # seconds; installing MLflow with pip on a slow line takes a few minutes


def fail(message: str) -> None:
    """End with one sentence on stderr and exit code 1."""
    sys.exit(f"demo: error: {message}")


def is_free(port: int) -> bool:
    """Return whether a server could listen on 127.0.0.1:`port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def choose_port() -> int:
    """Return the port that DEMO_PORT asks for, or the first free one from 5000."""
    wanted = os.environ.get("DEMO_PORT")
    if wanted:
        if not wanted.isdigit() or not 0 < int(wanted) < 65536:
            fail(f"DEMO_PORT={wanted} is not a port: give a number from 1 to 65535")
        if not is_free(int(wanted)):
            fail(f"port {wanted} is in use: choose another with DEMO_PORT=")
        return int(wanted)
    return next(port for port in range(5000, 5100) if is_free(port))


def running() -> int | None:
    """Return the process group of the demo's server, or None if it does not run."""
    try:
        group = int(PID.read_text())
        command = Path(f"/proc/{group}/cmdline")
        # After a reboot the number may belong to somebody else.
        if command.exists() and str(STACK) not in os.readlink(f"/proc/{group}/cwd"):
            return None
        os.killpg(group, 0)
    except (FileNotFoundError, ValueError, ProcessLookupError, PermissionError):
        return None
    return group


def stop() -> bool:
    """Stop the server if it runs, and return whether it did."""
    group = running()
    if group:
        os.killpg(group, signal.SIGTERM)
        for _ in range(300):
            try:
                os.killpg(group, 0)
            except ProcessLookupError:
                break
            reap()
            time.sleep(0.1)
        else:
            os.killpg(group, signal.SIGKILL)
    PID.unlink(missing_ok=True)
    return bool(group)


def reap() -> None:
    """Collect a finished child of ours, so that its process group disappears."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def start() -> None:
    """Render, start, wait until ready, log a run."""
    if stop():
        print("demo: stopped the demo that was running")
    port = choose_port()
    STACK.parent.mkdir(exist_ok=True)

    print(f"demo: rendering the default answers into {STACK.relative_to(ROOT)}", flush=True)
    subprocess.run(
        ["copier", "copy", "--defaults", "--overwrite", "--quiet", "--vcs-ref", "HEAD"]
        + ["--data", f"http_port={port}", str(ROOT), str(STACK)],
        check=True,
    )

    print("demo: starting it with its own 'make local'; the first time this installs MLflow", flush=True)
    with LOG.open("wb") as log:
        server = subprocess.Popen(
            ["make", "--no-print-directory", "local"],
            cwd=STACK,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    PID.write_text(str(server.pid))
    wait_until_ready(server)

    print("demo: logging a run, an artifact and a model with the stock MLflow client", flush=True)
    check = subprocess.run(["scripts/local.sh", "check", "--keep"], cwd=STACK, env=environment())
    if check.returncode:
        stop()
        fail(f"the check failed, see above and {LOG.relative_to(ROOT)}")
    print(f"demo: it runs at http://localhost:{port}; its files are in {STACK.relative_to(ROOT)}")
    print("demo: 'make demo-stop' stops it")


def wait_until_ready(server: subprocess.Popen[bytes]) -> None:
    """Show the server's own words until it answers through to the database and the artifact store."""
    shown = 0
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        lines = LOG.read_text(errors="replace").splitlines()
        for line in lines[shown:]:
            print(f"  {line}", flush=True)
        shown = len(lines)
        if server.poll() is not None:
            PID.unlink(missing_ok=True)
            fail(f"the server ended with exit code {server.returncode}, see above and {LOG.relative_to(ROOT)}")
        if any("starting the server" in line for line in lines):
            ready = subprocess.run(["scripts/local.sh", "ready"], cwd=STACK, env=environment(), capture_output=True)
            if ready.returncode == 0:
                return
        time.sleep(1)
    stop()
    fail(f"the server was not ready after {PATIENCE} s, see {LOG.relative_to(ROOT)}")


def environment() -> dict[str, str]:
    """Return this environment without make's own variables, which would reach the stack's make."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}


if __name__ == "__main__":
    if sys.argv[1:] == ["start"]:
        start()
    elif sys.argv[1:] == ["stop"]:
        print("demo: stopped" if stop() else "demo: nothing runs")
    else:
        fail("say 'start' or 'stop'")
