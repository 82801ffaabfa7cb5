"""A server that is told to end: what has been sent to it is answered, whatever moment it was."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from http.client import HTTPConnection, HTTPException

import pytest

SERVER = textwrap.dedent(
    """
    import asyncio, multiprocessing, os, signal, sys
    import uvicorn, uvicorn._subprocess, uvicorn.server
    from uvicorn.supervisors.multiprocess import Multiprocess
    from stackops import preload

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        await asyncio.sleep(0.002)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    uvicorn._subprocess.spawn = multiprocessing.get_context("fork")
    if "as it is" not in sys.argv:
        uvicorn.server.Server.shutdown = preload.politely(uvicorn.server.Server.shutdown)
        Multiprocess.terminate_all = preload.first_the_door(Multiprocess.terminate_all)
    # As in preload.serve: a worker that has only begun would keep its parent's handler, and not hear that it is to end.
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    uvicorn.run(app if sys.argv[2] == "1" else "__main__:app", port=int(sys.argv[1]), workers=int(sys.argv[2]),
                log_level="error", timeout_graceful_shutdown=20)
    """
)


def ended(workers: int, *words: str) -> tuple[int, int]:
    """End a server under load; return how many requests were answered and how many were sent and lost."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", SERVER, str(port), str(workers), *words]
    server = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    answered, lost, gone = [], [], threading.Event()

    def client(number: int) -> None:
        connection = None
        while not gone.is_set():
            if connection is None:
                connection = HTTPConnection("127.0.0.1", port, timeout=5)
                try:
                    connection.connect()
                except OSError:
                    gone.wait(0.02)
                    connection = None
                    continue
            try:
                connection.request("POST", "/", b"x")
                answer = connection.getresponse()
                answer.read()
                answered.append(number)
                if answer.will_close or number % 2:  # half of them make a connection for each request
                    connection.close()
                    connection = None
            except (OSError, HTTPException) as error:
                lost.append(error)
                connection = None

    threads = [threading.Thread(target=client, args=(number,)) for number in range(16)]
    try:
        for thread in threads:
            thread.start()
        until = time.monotonic() + 20
        while len(answered) < 500:
            assert time.monotonic() < until and server.poll() is None, "it does not serve"
            time.sleep(0.05)
        server.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert server.wait(15) in (0, -signal.SIGTERM) and time.monotonic() - began < 8
    finally:
        gone.set()
        server.kill()
        for thread in threads:
            thread.join()
    return len(answered), len(lost)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the filter")
@pytest.mark.parametrize("workers", [1, 2])
def test_no_request_is_lost_when_a_server_ends(workers: int) -> None:
    answered, lost = ended(workers)
    assert answered >= 500 and lost == 0


def test_uvicorn_alone_would_lose_some() -> None:
    """Else the test above could not fail."""
    assert any(ended(2, "as it is")[1] for _ in range(3))
