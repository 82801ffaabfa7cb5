"""What only the running server knows: its disk, its database, its store, what their clocks say, and which
certificate the proxy shows."""

import json
import os
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from stackops import ready, settings
from stackops.diagnosis.facts import SERIOUS, WARN, Facts, Finding
from stackops.errors import StackError, one_line
from stackops.saving import journal

DISKS = {"/data": "data", "/var/tmp": "artifacts on their way"}
FULL, NEARLY = 1 << 30, 0.10
SKEW, TOO_MUCH = 5, 300
SOON, VERY_SOON = timedelta(days=30), timedelta(days=7)
OLD = 8  # days until a backup is too old
FIRST = "/api/2.0/mlflow/experiments/get?experiment_id=0"


def collect(env: Mapping[str, str], served: str = "") -> dict[str, Any]:
    """Return the facts. A part that does not answer is left out: readiness says so.

    `served` is where the proxy answers, and the name that people use: HOST:PORT=NAME.
    """
    found: dict[str, Any] = {"time": time.time(), "disks": {}, "clocks": {}, "database": {}}
    if served:
        found["served"] = certificate(served)
    for path in DISKS:
        with suppress(OSError):
            disk = os.statvfs(path)
            found["disks"][path] = [disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize]
    password = settings.secrets(env).read("admin_password") if env.get("STACK_AUTH") == "mlflow" else ""
    try:
        ready.check(f"http://127.0.0.1:{settings.port(env)}", password, ready.TRY)
        found["ready"] = ""
    except StackError as error:
        found["ready"] = one_line(error).removeprefix("not ready: ")
    with suppress(Exception):
        found["database"] = settings.backend(env).vital_signs(env)
    found["backup"] = journal.read()
    with suppress(StackError, ValueError, KeyError):
        url = f"http://127.0.0.1:{settings.port(env)}{FIRST}"
        said = json.loads(ready.ask("database", ready.request(url, password), ready.TRY))
        found["first"] = said["experiment"]["creation_time"] / 1000
    with suppress(Exception):
        found["store is empty"] = next(iter(settings.store(env).items(env)), None) is None
    with suppress(Exception):
        if ask := getattr(settings.store(env), "clock", None):
            found["clocks"]["the artifact store"] = ask(env) - time.time()
    return found


def certificate(served: str) -> dict[str, str]:
    """Return the certificate that the proxy at HOST:PORT=NAME shows for NAME, or the reason why not."""
    place, _, name = served.partition("=")
    host, _, port = place.rpartition(":")
    asks = ssl.create_default_context()
    asks.check_hostname, asks.verify_mode = False, ssl.CERT_NONE  # it is looked at, not trusted
    try:
        with (
            socket.create_connection((host, int(port)), 10) as plain,
            asks.wrap_socket(plain, server_hostname=name) as tls,
        ):
            return {"name": name, "pem": ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True) or b"")}
    except OSError as error:
        return {"name": name, "error": one_line(error)}


def readiness(facts: Facts) -> list[Finding] | None:
    """The server can work."""
    if not facts.live:
        return None
    if said := facts.live.get("ready"):
        return [Finding(SERIOUS, "readiness", f"the server is not ready: {said}", "make up")]
    return []


def disks(facts: Facts) -> list[Finding] | None:
    """There is room where the stack writes: in volumes, which the engine keeps in its own folder."""
    if not facts.live:
        return None
    found = []
    for path, (free, size) in facts.live.get("disks", {}).items():
        if free < FULL or free < size * NEARLY:
            text = f"{free >> 20} MiB of {size >> 20} MiB are free where {path} is ({DISKS.get(path, path)})"
            level = SERIOUS if free < FULL else WARN
            found.append(
                Finding(
                    level, "disk", text, "docker system df   # then: docker image prune, or a larger disk"
                )
            )
    return found


def clocks(facts: Facts) -> list[Finding] | None:
    """This machine, the containers, the database and the store agree about the time."""
    if not (live := facts.live):
        return None
    asked = {"the database": live.get("database", {}).get("skew"), **live.get("clocks", {})}
    if (host := facts.text("time").strip()) and live.get("time"):
        asked["this machine"] = float(host) - live["time"]
    found = []
    for who, skew in asked.items():
        # Between two looks some seconds pass: the first waits for nobody.
        if skew is not None and abs(skew) > (2 * SKEW if who == "this machine" else SKEW):
            text = f"the clock of {who} differs by {abs(skew):.0f} s from that of the server"
            level = SERIOUS if abs(skew) > TOO_MUCH else WARN
            found.append(Finding(level, "clock", text, "sudo timedatectl set-ntp true"))
    return found


def connections(facts: Facts) -> list[Finding] | None:
    """The database has connections to spare, and the server does not count on more than there are."""
    signs = facts.live.get("database", {})
    used, limit, planned = (signs.get(name) for name in ("connections", "max_connections", "planned"))
    if not limit:
        return None
    if used > 0.9 * limit:
        text = f"{used} of the database's {limit} connections are in use"
        return [
            Finding(
                SERIOUS,
                "database",
                text,
                "grep -n CONNECTIONS .env.example   # raise it in .env, then make up",
            )
        ]
    if planned and planned > limit:
        text = f"the server may open {planned} connections, and the database has {limit}"
        return [
            Finding(
                SERIOUS,
                "database",
                text,
                "grep -n CONNECTIONS .env.example   # lower it in .env, then make up",
            )
        ]
    return []


def size(facts: Facts) -> list[Finding] | None:
    """A database that is one file has not grown beyond what one writer at a time copes with."""
    length = facts.live.get("database", {}).get("file")
    if length is None:
        return None
    if length > 4 << 30:
        text = f"the database file has {length >> 20} MiB: searches become slow"
        return [
            Finding(
                WARN,
                "database",
                text,
                "docker compose exec mlflow mlflow gc   # or move to a database server",
            )
        ]
    return []


def covers(pattern: str, name: str) -> bool:
    """Whether a name of a certificate stands for `name`; a star stands for its first part."""
    pattern, name = pattern.lower(), name.lower()
    return pattern == name or (pattern[:2] == "*." and pattern[2:] == name.partition(".")[2])


def served_certificate(facts: Facts) -> list[Finding] | None:
    """The proxy shows a certificate for the name that people use, and it does not end soon."""
    if not (served := facts.live.get("served")):
        return None
    from cryptography import x509

    name, service = served["name"], next(iter(facts.text("published").split()), "")
    look = f"make logs SERVICE={service}"
    renew = {
        "self-signed": "rm secrets/tls.pem && make up",
        "files": "make up   # after you have put the new one into secrets/tls.pem",
    }.get(facts.answer("tls"), f"{look}   # {service} gets it by itself, and says there why not")
    if said := served.get("error"):
        return [Finding(SERIOUS, "certificate", f"no certificate is shown for {name}: {said}", look)]
    shown, now = (
        x509.load_pem_x509_certificate(served["pem"].encode()),
        datetime.fromtimestamp(facts.now, UTC),
    )
    found = []
    try:
        known = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = known.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        names = []
    if not any(covers(one, name) for one in names):
        text = f"the certificate that is shown for {name} is for {', '.join(names) or 'no host name'}"
        found.append(Finding(SERIOUS, "certificate", text, renew))
    left = shown.not_valid_after_utc - now
    # One that lives for days is renewed when a third of its time is left.
    life = shown.not_valid_after_utc - shown.not_valid_before_utc
    if left < min(SOON, life / 4):
        ends = "has ended" if left < timedelta(0) else f"ends in {left.days} days"
        level = SERIOUS if left < min(VERY_SOON, life / 10) else WARN
        found.append(Finding(level, "certificate", f"the certificate that is shown for {name} {ends}", renew))
    return found


def backups(facts: Facts) -> list[Finding] | None:
    """The last backup is young, and it succeeded."""
    if "backup" not in (live := facts.live):
        return None
    last = live["backup"]
    if last is None:
        # A stack that is new need not have one yet.
        days = (live["time"] - live.get("first", live["time"])) / 86400
        text = f"no backup was made in {days:.0f} days" if days > OLD else ""
    elif not last["ok"]:
        text = f"the last backup failed ({last['ended'][:16]}): {last['error']}"
    else:
        days = (live["time"] - datetime.fromisoformat(last["ended"]).timestamp()) / 86400
        text = f"the last backup is {days:.0f} days old" if days > OLD else ""
    return [Finding(WARN, "backup", text, "make backup")] if text else []


def artifacts(facts: Facts) -> list[Finding] | None:
    """The artifact store has something, if it had when the last backup was made."""
    if not facts.live or "store is empty" not in facts.live:
        return None
    number = (facts.live.get("backup") or {}).get("objects", 0)
    if not facts.live["store is empty"] or not number:
        return []
    text = f"the store is empty, and {number:,} artifacts were there when the last backup was made"
    return [Finding(SERIOUS, "artifacts", text, "make restore ONLY=artifacts")]


CHECKS = (readiness, artifacts, disks, clocks, connections, size, served_certificate, backups)
