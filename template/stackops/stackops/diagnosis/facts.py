"""What is known about the stack: collected by scripts/doctor.sh and, inside the running server, by `live`."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OK, WARN, SERIOUS = "ok", "warn", "serious"


@dataclass(frozen=True)
class Finding:
    """One line of the report: how bad it is, which check says so, what it found, and what mends it."""

    level: str
    check: str
    text: str
    command: str = ""


@dataclass
class Facts:
    """Everything that checks may look at. What could not be collected is empty."""

    folder: Path = Path("/stack")
    sections: Mapping[str, str] = field(default_factory=dict)
    now: float = 0.0

    def text(self, name: str) -> str:
        """Return a section as it came."""
        return self.sections.get(name, "")

    def parsed(self, name: str) -> Any:
        """Return a section that is JSON, or {} if it is missing or broken."""
        try:
            return json.loads(self.text(name) or "{}")
        except ValueError:
            return {}

    @property
    def services(self) -> dict[str, dict[str, Any]]:
        """The services as Compose understands them."""
        return self.parsed("compose").get("services", {})

    @property
    def containers(self) -> list[dict[str, Any]]:
        """What the engine says about each container of the stack."""
        found = self.parsed("containers")
        return found if isinstance(found, list) else []

    @property
    def live(self) -> dict[str, Any]:
        """What the running server says, or {} if it does not run."""
        return self.parsed("live")

    @property
    def secrets(self) -> list[str]:
        """The names of the secrets that the stack declares."""
        return list(self.parsed("compose").get("secrets", {}))

    def settings(self, section: str = "env") -> dict[str, str]:
        """Return the lines NAME=value of .env (or another section)."""
        return dict(re.findall(r"(?m)^([A-Za-z_][A-Za-z0-9_]*)=(.*)$", self.text(section)))

    def answer(self, name: str) -> str:
        """Return an answer of .copier-answers.yml, or ""."""
        match = re.search(rf"(?m)^{re.escape(name)}: (.*)$", self.text("answers"))
        return match[1].strip("'\" ") if match else ""


def sections(lines: Iterable[str]) -> dict[str, str]:
    """Return the sections of scripts/doctor.sh: `=== name`, then its text."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in lines:
        if line.startswith("=== "):
            name = line[4:].strip()
            found[name] = []
        elif name:
            found[name].append(line.rstrip("\n"))
    return {name: "\n".join(text) for name, text in found.items()}


def service_of(container: Mapping[str, Any]) -> str:
    """Return the service that a container belongs to."""
    return container.get("Config", {}).get("Labels", {}).get("com.docker.compose.service", "?")
