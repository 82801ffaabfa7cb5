"""`mlflow server` whose workers are forks of one process that has imported everything already.

MLflow's command starts uvicorn as a second process, and uvicorn starts every worker as a new Python: the same
two thousand modules are read, and kept in memory, once for the command and once for each worker. Here the
command's own process becomes uvicorn's, and its workers share its memory. All else is MLflow's own: what it
checks, the environment that it makes, uvicorn's command line.
"""

import asyncio
import contextlib
import ctypes
import gc
import importlib
import multiprocessing
import os
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

from stackops import balance, settings

EARLY = {
    "MLFLOW_STATIC_PREFIX": "_MLFLOW_STATIC_PREFIX",
    "MLFLOW_EXPOSE_PROMETHEUS": "prometheus_multiproc_dir",
}
"""What MLflow's command hands over to uvicorn's process, and mlflow.server reads while it is imported."""


def application() -> None:
    """Import what the workers will need."""
    importlib.import_module("stackops.app")
    importlib.import_module("mlflow.server.fastapi_app")
    if settings.accounts(os.environ):
        importlib.import_module("mlflow.server.auth")
    settings.logins(os.environ)
    if settle := getattr(settings.store(os.environ), "settle", None):
        settle()


def at_once(bind: Callable[[Any], socket.socket]) -> Callable[[Any], socket.socket]:
    """Let a socket, and the connections that come of it, send at once what is written.

    uvicorn writes the beginning of an answer and its body apart. The kernel keeps the second small piece back
    until the first is acknowledged, which a proxy's kernel puts off for 40 ms. asyncio switches that off, but
    not for a socket like the one that uvicorn shares among several workers.
    """

    def bound(config: Any) -> socket.socket:
        made = bind(config)
        if made.family in (socket.AF_INET, socket.AF_INET6):
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    return bound


LINGER = 2.0
"""Seconds for which a server that ends still answers on connections that were idle."""
SETTLED = 0.3
"""Seconds after which every connection that was being made is there, and accepted."""
WITHOUT_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 2), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
"""For the kernel's packet filter: load TCP's flags; drop a packet that has SYN; take all others."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_void_p))


def close_door(listening: Any) -> None:
    """Let no new connection begin at a listening socket; those that have begun come to their end.

    What the kernel has taken for a socket, and nobody has accepted when it is closed, is lost, and with it a
    request that somebody has sent. So it first takes no more. Only Linux has such a filter.
    """
    steps = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in WITHOUT_SYN))
    program = _Program(len(WITHOUT_SYN), ctypes.addressof(steps))
    with contextlib.suppress(OSError):
        listening.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_ATTACH_FILTER", 26), bytes(program))


def first_the_door(terminate: Callable[[Any], None]) -> Callable[[Any], None]:
    """Let the parent of the workers take no more connections before it tells the workers to end."""

    def told(parent: Any) -> None:
        for listening in parent.sockets:
            close_door(listening)
        time.sleep(SETTLED)
        terminate(parent)
        for listening in parent.sockets:
            listening.close()

    return told


def politely(shutdown: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Let a server that is told to end lose no request that a proxy sends it in that moment.

    uvicorn closes idle connections at once, and the proxy may just have begun to use one. Here they are
    answered for a moment longer, and told that it was the last time. No new ones begin meanwhile, so the
    proxy goes to another server.
    """

    async def ended(server: Any, sockets: list[socket.socket] | None = None) -> None:
        if not sockets:  # there is no parent
            for listening in (one for each in server.servers for one in each.sockets):
                close_door(listening)
            await asyncio.sleep(SETTLED)
        for one in (*server.servers, *(sockets or ())):
            one.close()
        state, clock = server.server_state, asyncio.get_running_loop().time
        state.default_headers = [*state.default_headers, (b"connection", b"close")]
        # Where there are others, who was turned away must hear so: a container that is gone says nothing.
        until, others = clock() + LINGER, bool(os.environ.get("MLFLOW_REPLICAS"))
        while (state.connections or others) and clock() < until:
            await asyncio.sleep(0.05)
        await shutdown(server, sockets)

    return ended


def serve(command: list[str], extra_env: Mapping[str, str], **_: object) -> NoReturn:
    """Become the process that MLflow would start: `python -m uvicorn …`, with `extra_env` in its environment.

    Takes what `mlflow.utils.process._exec_cmd` takes.
    """
    import uvicorn._subprocess
    import uvicorn.config
    import uvicorn.main
    import uvicorn.server
    import uvicorn.supervisors.multiprocess
    from mlflow.server import handlers

    os.environ.update(extra_env)
    application()
    # A connection belongs to one process, and MLflow has opened some to look at the databases.
    for store in filter(None, (handlers._tracking_store, handlers._model_registry_store)):
        for engine in filter(None, (store.engine, getattr(store, "read_engine", None))):
            engine.dispose()
    # On macOS its own libraries do not survive a fork.
    if sys.platform == "linux":
        uvicorn._subprocess.spawn = multiprocessing.get_context("fork")
    uvicorn.config.Config.bind_socket = at_once(uvicorn.config.Config.bind_socket)
    uvicorn.server.Server.shutdown = politely(uvicorn.server.Server.shutdown)
    parents = uvicorn.supervisors.multiprocess.Multiprocess
    parents.terminate_all = first_the_door(parents.terminate_all)
    balance.among(uvicorn.supervisors.multiprocess.Process, int(os.environ["MLFLOW_WORKERS"]))
    # A signal that comes before uvicorn in the new worker listens must not be lost.
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    # What is there now stays: the collector need not look at it, and does not write into shared memory.
    gc.collect()
    gc.freeze()
    uvicorn.main.main(command[command.index("uvicorn") + 1 :])


def run() -> NoReturn:
    """Become `mlflow server --app-name stackops`, with the settings in this process's environment."""
    importlib.import_module("stackops.hooks.sitecustomize")
    tempfile.tempdir = None  # TMPDIR may have been another one when somebody first asked
    os.environ.update({private: os.environ[name] for name, private in EARLY.items() if name in os.environ})
    importlib.import_module("uvicorn")  # mlflow.server looks whether it runs in a server
    import mlflow.cli
    import mlflow.server

    from stackops import sessions

    sessions.prepare()
    mlflow.server._exec_cmd = serve
    mlflow.cli.cli(["server", "--app-name", "stackops"])
