"""Clients move from a worker that has much to do to one that has little."""

import asyncio
import http.client
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from forked import forked
from stackops import balance
from starlette.types import Message


class Client:
    """Keeps a connection for as long as the server does; `new` counts how many it has made."""

    def __init__(self, port: int) -> None:
        self.door, self.new = http.client.HTTPConnection("127.0.0.1", port, timeout=10), 0

    def ask(self) -> int:
        """Return the worker that answers."""
        self.new += self.door.sock is None
        self.door.request("GET", "/")
        return int(self.door.getresponse().read())


def workers_of_two(setup: str) -> tuple[set[int], int]:
    """Let two clients meet at one worker and ask on; return who answers them then, and how often they connected."""
    with forked(2, 0.02, "balance.between(answer)", setup) as (server, port):
        clients: dict[int, list[Client]] = {}
        until = time.monotonic() + 30
        while not (two := next((met for met in clients.values() if len(met) == 2), None)):
            client = Client(port)
            try:
                clients.setdefault(client.ask(), []).append(client)
            except OSError:
                assert time.monotonic() < until and server.poll() is None, "it does not serve"
                time.sleep(0.05)
        with ThreadPoolExecutor(2) as pool:
            for _ in range(60):
                answered = set(pool.map(Client.ask, two))
        return answered, sum(client.new for client in two)


def test_two_clients_part() -> None:
    """And once they have, they stay where they are."""
    answered, connections = workers_of_two("balance.among(Process, 2)")
    assert len(answered) == 2 and 3 <= connections < 40


def test_uvicorn_alone_would_leave_them_together() -> None:
    """Else the test above could not fail."""
    answered, connections = workers_of_two("")
    assert len(answered) == 1 and connections == 2


def asked(counts: list[int], own: int, body: list[Message] | None = None, **headers: str) -> list[Message]:
    """Send a request to worker `own` of those that have so many; return what it sends."""
    requests, sent = balance.Requests(len(counts)), []
    for place, count in enumerate(counts):
        requests.each[place] = count
    requests.own = own

    async def app(scope, receive, send) -> None:
        if body:
            await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})

    async def receive() -> Message:
        return body.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(balance.Balance(app, requests)({"type": "http", "headers": pairs}, receive, send))
    assert list(requests.each) == counts
    return sent


CLOSES = (b"connection", b"close")


@pytest.mark.parametrize(
    ("counts", "own", "closes"),
    [
        ([0, 0], 0, False),
        ([0, 1], 0, False),
        ([1, 0], 0, True),
        ([1, 1], 0, False),
        ([5, 4, 5], 2, True),
        ([5, 5, 6], 0, False),
    ],
)
def test_who_lets_go(counts: list[int], own: int, closes: bool) -> None:
    """A worker that has at least two more requests, with the one that it answers, than another one."""
    assert (CLOSES in asked(counts, own)[0]["headers"]) == closes


def test_a_client_that_still_sends_stays() -> None:
    """It would lose the answer."""
    piece = {"type": "http.request", "body": b"x", "more_body": True}
    last = {"type": "http.request", "body": b"x", "more_body": False}
    assert CLOSES not in asked([9, 0], 0, [piece, last], content_length="2")[0]["headers"]
    assert CLOSES not in asked([9, 0], 0, transfer_encoding="chunked")[0]["headers"]
    assert CLOSES in asked([9, 0], 0, [last], content_length="1")[0]["headers"]


def test_a_new_worker_takes_the_place_of_one_that_is_gone() -> None:
    """With no requests, whatever the one before had."""
    requests = balance.Requests(2)
    first, second, third = (SimpleNamespace(is_alive=lambda: True) for _ in range(3))
    requests.place(first)
    requests.each[requests.own] += 3
    requests.place(second)
    assert requests.own == 1 and list(requests.each) == [3, 0]
    first.is_alive = lambda: False
    requests.place(third)
    assert requests.own == 0 and list(requests.each) == [0, 0]


def test_a_single_worker_counts_nothing() -> None:
    class Process:
        def start(self) -> None: ...

    before = Process.start
    balance.among(Process, 1)
    assert Process.start is before and balance.between(len) is len
