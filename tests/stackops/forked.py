"""A small server of uvicorn's with workers that are forked, as a stack starts them."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SERVER = """
import asyncio, multiprocessing, os, signal, sys
import uvicorn, uvicorn._subprocess, uvicorn.server
from uvicorn.supervisors.multiprocess import Multiprocess, Process
from stackops import balance, preload

async def answer(scope, receive, send):
    if scope["type"] != "http":
        return
    await asyncio.sleep({seconds})
    await send({{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8")]}})
    await send({{"type": "http.response.body", "body": b"%8d" % os.getpid()}})

def app():
    return {app}

uvicorn._subprocess.spawn = multiprocessing.get_context("fork")
{setup}
# As in preload.serve: a worker that has only begun would keep its parent's handler, and not hear that it is to end.
os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
uvicorn.run("__main__:app", factory=True, port={port}, workers={workers}, log_level="error",
            timeout_graceful_shutdown=20)
"""


@contextmanager
def forked(
    workers: int, seconds: float, app: str = "answer", setup: str = ""
) -> Iterator[tuple[subprocess.Popen, int]]:
    """Start a server that answers with its worker's process id after so many seconds; give its process and its port.

    `app` is what each worker serves, `setup` what is done before the first is made: Python that may name `answer`,
    `balance`, `preload` and uvicorn's classes.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = SERVER.format(seconds=seconds, app=app, setup=setup, port=port, workers=workers)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    server = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        yield server, port
    finally:
        if server.poll() is None:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
