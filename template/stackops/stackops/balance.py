"""Has a worker that has much to do give clients to one that has little.

A connection belongs to the worker that accepted it, and a proxy, or MLflow's client, keeps it for many
requests. Two clients that meet at one worker would share it for as long as they ask, while another is idle.
So a worker with more requests than another closes a connection with its answer, and the next one is accepted
by the first that has time.
"""

import mmap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MANY = 2
"""So many more requests than the worker with the fewest are too many: with one, nothing would be gained."""


class Requests:
    """How many requests each worker has, in memory that all of them share."""

    def __init__(self, workers: int) -> None:
        self.each = memoryview(mmap.mmap(-1, 4 * workers)).cast("I")
        self.own = 0
        self.workers: dict[int, BaseProcess] = {}

    def place(self, worker: "BaseProcess") -> None:
        """Give a worker that is about to be forked a place: a new one, or that of one that is gone."""
        taken = {place for place, other in self.workers.items() if other.is_alive()}
        self.own = next((place for place in range(len(self.each)) if place not in taken), 0)
        self.workers[self.own] = worker
        self.each[self.own] = 0

    def too_many(self) -> bool:
        """Whether another worker had better have the next request of one of this worker's clients."""
        return self.each[self.own] >= min(self.each) + MANY


class Balance:
    """ASGI middleware around the whole application of a worker."""

    def __init__(self, app: "ASGIApp", requests: Requests) -> None:
        self.app, self.requests = app, requests

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> Any:
        """Pass the request on, and let go of its client if there are too many."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        each, own = self.requests.each, self.requests.own
        # A client that is still sending when its connection is closed may lose the answer.
        whole = not any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])

        async def look() -> "Message":
            nonlocal whole
            message = await receive()
            whole = whole or not message.get("more_body", False)
            return message

        async def answer(message: "Message") -> None:
            if message["type"] == "http.response.start" and whole and self.requests.too_many():
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        each[own] += 1
        try:
            await self.app(scope, look, answer)
        finally:
            each[own] -= 1


shared: Requests | None = None
"""Of this server; None if it has a single worker."""


def among(process: Any, workers: int) -> None:
    """Count the requests of so many workers; `process` is the class of which uvicorn makes each."""
    global shared
    if workers == 1:
        return
    requests, start = Requests(workers), process.start

    def placed(worker: Any) -> None:
        requests.place(worker.process)
        start(worker)

    shared, process.start = requests, placed


def between(app: "ASGIApp") -> "ASGIApp":
    """Return the application of a worker, with what it does for the others, if there are others."""
    return Balance(app, shared) if shared else app
