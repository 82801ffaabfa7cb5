"""How MLflow's stores make their sessions with the database."""

import functools
import importlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import mlflow.store.db.utils
import mlflow.store.model_registry.sqlalchemy_store
from sqlalchemy.orm import sessionmaker

Sessions = Callable[..., AbstractContextManager[Any]]
"""Opens a session that only reads, or with `read_only=False` one that writes, too."""


PATIENCE = 30
"""Seconds to wait for one's turn; then a request tries without, and the pool makes it wait or fail."""
HOLDS: ContextVar[frozenset[int]] = ContextVar("holds", default=frozenset())
"""The pools, by their ids, of which the request that is answered now has a session open."""


def at_once(pool: Any) -> int:
    """Return how many requests may have sessions of a pool: half as many as connections. 0: as many as come.

    MLflow opens a session while it has another (log_batch does, for metrics, parameters and tags). Requests
    that hold all connections between them and each want a second one wait for each other, until the pool's
    timeout fails them after 30 seconds.
    """
    size, overflow = getattr(pool, "size", None), getattr(pool, "_max_overflow", 0)
    return max(1, (size() + overflow) // 2) if size and overflow >= 0 else 0


def taking_turns(original: Callable[[Any, str], Sessions]) -> Callable[[Any, str], Sessions]:
    """Let no more requests have sessions at once than there are two connections for; the others wait."""
    turns: dict[int, threading.Semaphore] = {}

    def made(maker: Any, db_type: str) -> Sessions:
        opened, pool = original(maker, db_type), maker.kw["bind"].pool
        if not (count := at_once(pool)):
            return opened
        turn = turns.setdefault(id(pool), threading.Semaphore(count))

        @contextmanager
        def session(read_only: bool = True) -> Iterator[Any]:
            holds = HOLDS.get()
            has_turn = id(pool) not in holds and turn.acquire(timeout=PATIENCE)
            token = HOLDS.set(holds | {id(pool)})
            try:
                with opened(read_only=read_only) as one:
                    yield one
            finally:
                HOLDS.reset(token)
                if has_turn:
                    turn.release()

        return session

    return made


def keeping(original: Callable[[Any, str], Sessions]) -> Callable[[Any, str], Sessions]:
    """Let sessions that only read keep what they have read until they are closed.

    MLflow commits each session before it closes it, and SQLAlchemy then marks every value of every object as
    one to be read again, which nobody does: an eighth of the time of a history of 10,000 points.
    """

    def made(maker: Any, db_type: str) -> Sessions:
        kept = sessionmaker(class_=maker.class_, **{**maker.kw, "expire_on_commit": False})
        reading, writing = original(kept, db_type), original(maker, db_type)

        def session(read_only: bool = True) -> AbstractContextManager[Any]:
            return (reading if read_only else writing)(read_only=read_only)

        return session

    return made


@functools.cache
def prepare() -> None:
    """Let them be made so, before MLflow's command opens its stores, which it does first of all."""
    utils, registry = mlflow.store.db.utils, mlflow.store.model_registry.sqlalchemy_store
    utils._get_managed_session_maker = taking_turns(keeping(utils._get_managed_session_maker))
    if os.environ.get("MLFLOW_READ_REPLICA_BACKEND_STORE_URI"):
        routing = importlib.import_module("stackops.backends.replica").routing
        utils._get_routing_session_maker = routing(utils._get_routing_session_maker)
    for name in ("_get_managed_session_maker", "_get_routing_session_maker"):
        setattr(registry, name, getattr(utils, name))
