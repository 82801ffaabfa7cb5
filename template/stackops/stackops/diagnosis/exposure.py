"""Who can reach the stack, and under which name."""

import fnmatch
from urllib.parse import urlsplit

from stackops.diagnosis.facts import SERIOUS, WARN, Facts, Finding, service_of

LOCAL = ("127.0.0.1", "::1", "localhost")
OPEN = {"": "0.0.0.0", "::": "0.0.0.0", "[::]": "0.0.0.0"}


def _bound(facts: Facts) -> list[tuple[str, str, str, bool]]:
    """Return (service, address, port, whether it is only configured) of each port that others reach."""
    found = set()
    for name, service in facts.services.items():
        for port in service.get("ports", ()):
            found.add((name, port.get("host_ip", ""), str(port.get("published", "")), True))
    for container in facts.containers:
        if container.get("State", {}).get("Running"):
            for bindings in (container.get("HostConfig", {}).get("PortBindings") or {}).values():
                for one in bindings or ():
                    found.add((service_of(container), one.get("HostIp", ""), one.get("HostPort", ""), False))
    return sorted(one for one in found if one[1] not in LOCAL)


def meant(facts: Facts) -> set[str]:
    """Return the services that the stack itself publishes; scripts/doctor.sh knows them."""
    return set(facts.text("published").split())


def http_outside(facts: Facts) -> list[Finding]:
    """What other machines reach is encrypted: by the stack, or by a proxy in front that PUBLIC_URL names."""
    if facts.answer("tls") not in ("", "none"):
        return []
    behind = facts.settings().get("PUBLIC_URL", "").startswith("https://")
    found = []
    for service, address, port, configured in _bound(facts):
        if configured and service in meant(facts):
            where = f"{OPEN.get(address, address)}:{port}"
            text = f"{service} answers other machines at {where} and does not encrypt"
            level = WARN if behind else SERIOUS
            more = "; only the https proxy of PUBLIC_URL should reach that port" if behind else ""
            found.append(
                Finding(
                    level,
                    "http",
                    text + more,
                    "sed -i '/^HTTP_BIND=/d' .env && make up   # or https in front, and PUBLIC_URL=https://…",
                )
            )
    return found


def open_ports(facts: Facts) -> list[Finding]:
    """No other service is open to other machines, and nothing is that the settings do not say."""
    bound, found = _bound(facts), []
    configured = {(service, port) for service, _, port, planned in bound if planned}
    for service, address, port, planned in bound:
        where = f"{OPEN.get(address, address)}:{port}"
        if planned and service not in meant(facts):
            text = f"{service} publishes {where} to other machines, which this stack never does by itself"
            found.append(
                Finding(
                    SERIOUS,
                    "ports",
                    text,
                    f"$EDITOR compose.override.yaml   # ports of {service}: 127.0.0.1:{port}:…; then make up",
                )
            )
        elif not planned and (service, port) not in configured:
            text = f"the container of {service} still publishes {where}, which the settings no longer say"
            found.append(Finding(SERIOUS, "ports", text, "make up"))
    return found


def host_allowed(host: str, patterns: str) -> bool:
    """Whether MLflow answers requests for `host`; patterns are those of ALLOWED_HOSTS."""
    return any(fnmatch.fnmatchcase(host, pattern.strip()) for pattern in patterns.split(","))


def host_names(facts: Facts) -> list[Finding]:
    """The server answers under the name that people use."""
    patterns = (facts.services.get("mlflow", {}).get("environment") or {}).get(
        "MLFLOW_SERVER_ALLOWED_HOSTS"
    ) or ""
    url = facts.settings().get("PUBLIC_URL") or facts.text("url").strip()
    host = urlsplit(url).netloc.rpartition("@")[2]
    if not patterns or not host or host_allowed(host, patterns):
        return []
    name = urlsplit(url).hostname
    text = f"people use {url}, and the server refuses requests for {host}: it is not in ALLOWED_HOSTS"
    return [
        Finding(
            SERIOUS, "host name", text, f"echo 'ALLOWED_HOSTS={patterns},{name},{name}:*' >>.env && make up"
        )
    ]


CHECKS = (http_outside, open_ports, host_names)
