"""Python runs this at the start of a fenced client: it sees the addresses in FENCE_ALLOW and nothing else.

FENCE_ALLOW is `name:port=address:port,...`. A name that is not in it does not resolve, an address that is not in it
refuses the connection, and each such try is written to FENCE_LOG. So a client proves by finishing that it needed
nothing else. Other than a firewall this needs no rights and fences one process only.
"""

import os
import socket

_doors = [tuple(door.split("=")) for door in os.environ["FENCE_ALLOW"].split(",")]
_names = {}
for _door, _address in _doors:
    _names.setdefault(_door.rpartition(":")[0].strip("[]"), _address.rpartition(":")[0])
_open = {_address for _, _address in _doors}
_resolve, _connect, _connect_ex = socket.getaddrinfo, socket.socket.connect, socket.socket.connect_ex


def _report(what: str) -> None:
    with open(os.environ["FENCE_LOG"], "a", encoding="utf-8") as log:
        log.write(what + "\n")


def _getaddrinfo(host, port, *arguments, **named):
    host = host.decode() if isinstance(host, bytes) else host
    if host in _names or host in _names.values():
        return _resolve(_names.get(host, host), port, *arguments, **named)
    _report(f"resolve {host}")
    raise socket.gaierror(socket.EAI_NONAME, "outside the fence")


def _allowed(address) -> bool:
    if not isinstance(address, tuple) or f"{address[0]}:{address[1]}" in _open:
        return True
    _report(f"connect {address[0]}:{address[1]}")
    return False


def _fenced_connect(self, address):
    if not _allowed(address):
        raise ConnectionRefusedError(f"{address} is outside the fence")
    return _connect(self, address)


def _fenced_connect_ex(self, address):
    return _connect_ex(self, address) if _allowed(address) else 111


socket.getaddrinfo = _getaddrinfo
socket.socket.connect = _fenced_connect
socket.socket.connect_ex = _fenced_connect_ex
