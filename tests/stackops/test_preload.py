"""A server that is told to end: what has been sent to it is answered, whatever moment it was."""

import signal
import sys
import threading
import time
from http.client import HTTPConnection, HTTPException

import pytest
from forked import forked

POLITELY = """
uvicorn.server.Server.shutdown = preload.politely(uvicorn.server.Server.shutdown)
Multiprocess.terminate_all = preload.first_the_door(Multiprocess.terminate_all)
"""


def ended(workers: int, setup: str) -> tuple[int, int]:
    """End a server under load; return how many requests were answered and how many were sent and lost."""
    answered, lost, gone = [], [], threading.Event()

    def client(number: int, port: int) -> None:
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

    with forked(workers, 0.002, setup=setup) as (server, port):
        threads = [threading.Thread(target=client, args=(number, port)) for number in range(16)]
        try:
            for thread in threads:
                thread.start()
            until = time.monotonic() + 20
            while len(answered) < 500:
                assert time.monotonic() < until and server.poll() is None, "it does not serve"
                time.sleep(0.05)
            server.terminate()
            began = time.monotonic()
            assert server.wait(15) in (0, -signal.SIGTERM) and time.monotonic() - began < 8
        finally:
            gone.set()
            for thread in threads:
                thread.join()
    return len(answered), len(lost)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the filter")
@pytest.mark.parametrize("workers", [1, 2])
def test_no_request_is_lost_when_a_server_ends(workers: int) -> None:
    answered, lost = ended(workers, POLITELY)
    assert answered >= 500 and lost == 0


def test_uvicorn_alone_would_lose_some() -> None:
    """Else the test above could not fail."""
    assert any(ended(2, "")[1] for _ in range(3))
