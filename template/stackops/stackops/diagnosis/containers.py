"""The engine, the containers and their images."""

import filecmp
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from stackops.diagnosis.facts import SERIOUS, WARN, Facts, Finding, service_of

ENGINE, COMPOSE = (24, 0), (2, 24)
RESTARTS = 3
BUILT = {"stackops/stackops": "/stackops/stackops", "mlflow/requirements": "/requirements"}
"""What the image was built from -> where it is in there."""


def _version(text: str) -> tuple[int, int]:
    match = re.search(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def versions(facts: Facts) -> list[Finding]:
    """Engine and Compose are new enough."""
    found = []
    for what, section, least in (
        ("Docker Engine", "engine", ENGINE),
        ("Docker Compose", "compose-version", COMPOSE),
    ):
        if (text := facts.text(section).strip()) and _version(text) < least:
            said = f"{what} {text} is too old: {least[0]}.{least[1]} or later is needed"
            found.append(
                Finding(
                    SERIOUS,
                    "engine",
                    said,
                    "sudo apt-get install docker-ce docker-compose-plugin   # or as your system does it",
                )
            )
    return found


def states(facts: Facts) -> list[Finding]:
    """Every service runs, is healthy, and has not been killed or restarted again and again."""
    found, seen = [], set()
    for container in facts.containers:
        service, state = service_of(container), container.get("State", {})
        seen.add(service)
        job = container.get("HostConfig", {}).get("RestartPolicy", {}).get("Name") in ("no", "")
        logs = f"make logs SERVICE={service}"
        health = (state.get("Health") or {}).get("Status", "")
        if state.get("OOMKilled"):
            text = f"{service} was killed because it needed more memory than its limit"
            found.append(
                Finding(
                    SERIOUS,
                    "containers",
                    text,
                    f"grep MEMORY .env.example   # raise the limit of {service} in .env, then make up",
                )
            )
        if state.get("Restarting") or state.get("Status") == "restarting":
            found.append(Finding(SERIOUS, "containers", f"{service} ends at its start again and again", logs))
        elif job and state.get("Status") == "exited" and state.get("ExitCode"):
            found.append(
                Finding(
                    SERIOUS,
                    "containers",
                    f"the job {service} failed (exit code {state['ExitCode']})",
                    f"make up   # {logs} says why",
                )
            )
        elif not job and state.get("Status") != "running":
            found.append(Finding(SERIOUS, "containers", f"{service} is {state.get('Status')}", "make up"))
        elif health == "unhealthy":
            text = f"{service} is unhealthy: {_said(checks(state))}"
            found.append(Finding(SERIOUS, "containers", text, logs))
        elif container.get("RestartCount", 0) >= RESTARTS:
            text = f"{service} was restarted {container['RestartCount']} times"
            found.append(Finding(WARN, "containers", text, logs))
        elif failed := gaps(state):
            text = f"{service} was not ready for {len(failed)} of its last health checks: {_said(failed)}"
            found.append(Finding(WARN, "containers", text, logs))
    missing = [
        n
        for n, s in facts.services.items()
        if not s.get("profiles") and n not in seen and s.get("restart") != "no"
    ]
    for name, service in facts.services.items():
        runs = sum(
            service_of(one) == name and one.get("State", {}).get("Status") == "running"
            for one in facts.containers
        )
        if name in seen and service.get("restart") != "no" and 0 < runs < (wanted := replicas(service)):
            text = f"{runs} of {wanted} containers of {name} run; the others do their work"
            found.append(Finding(WARN, "containers", text, "make up"))
    if missing and facts.services:
        word = "the stack does not run" if not seen else f"{', '.join(missing)}: no container"
        found.append(Finding(SERIOUS, "containers", word, "make up"))
    return found


def replicas(service: Mapping[str, Any]) -> int:
    """Return how many containers of a service there should be."""
    return int((service.get("deploy") or {}).get("replicas", 1))


def checks(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the last health checks since a container's start: the engine keeps those from before it."""
    log, started = (state.get("Health") or {}).get("Log") or (), _time(state.get("StartedAt"))
    times = [_time(one.get("Start")) for one in log]
    return [one for one, begun in zip(log, times, strict=True) if not (begun and started and begun < started)]


def _time(text: str | None) -> datetime | None:
    """Return the time that the engine wrote down, or None if there is none."""
    try:
        return datetime.fromisoformat(text or "")
    except ValueError:
        return None


def gaps(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the failed health checks of a container that had been well: at its start they may fail."""
    log = checks(state)
    well = next((number for number, one in enumerate(log) if not one.get("ExitCode")), len(log))
    return [one for one in log[well:] if one.get("ExitCode")]


def _said(log: Sequence[Mapping[str, Any]]) -> str:
    """Return the words of the last health check that failed."""
    said = [one.get("Output", "") for one in log if one.get("ExitCode")]
    return " ".join(said[-1].split())[:160] if said else "no words"


def images(facts: Facts) -> list[Finding]:
    """Each container runs the image that the settings name."""
    found = []
    for container in facts.containers:
        service = service_of(container)
        wanted = facts.services.get(service, {}).get("image", "")
        runs = container.get("Config", {}).get("Image", "")
        if container.get("State", {}).get("Running") and wanted and runs != wanted:
            found.append(
                Finding(WARN, "image", f"{service} runs {runs}, and the settings say {wanted}", "make up")
            )
    return found


def differs(source: Path, built: Path) -> bool:
    """Whether a folder that went into the image has another content now. A file of a cache does not count."""
    if not source.is_dir() or not built.is_dir():
        return False
    for path in source.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and path.suffix in (".py", ".txt"):
            twin = built / path.relative_to(source)
            if not twin.is_file() or not filecmp.cmp(path, twin, shallow=False):
                return True
    return False


def built(facts: Facts, places: dict[str, str] = BUILT) -> list[Finding]:
    """The server's image was built from the files that are here; this check runs inside it."""
    old = [source for source, there in places.items() if differs(facts.folder / source, Path(there))]
    if not old:
        return []
    text = f"the server's image was built from other files than there are now in {', '.join(old)}"
    return [Finding(WARN, "image", text, "make up")]


def memory(facts: Facts) -> list[Finding]:
    """What the services may take fits into the machine."""
    total = int(facts.text("memory").strip() or 0)
    limits = {
        name: int(service["mem_limit"]) * replicas(service)
        for name, service in facts.services.items()
        if service.get("mem_limit") and not service.get("profiles") and service.get("restart") != "no"
    }
    if not total or sum(limits.values()) <= total:
        return []
    together = f"{sum(limits.values()) >> 20} MiB together"
    text = f"the services may take {together}, and the machine has {total >> 20} MiB"
    return [
        Finding(WARN, "memory", text, "grep MEMORY .env.example   # lower the limits in .env, then make up")
    ]


CHECKS = (versions, states, images, built, memory)
