"""Settings, secrets and certificates: what is on the disk of the machine."""

import re
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

from stackops.diagnosis.facts import SERIOUS, WARN, Facts, Finding

MAY_BE_EMPTY = re.compile(r"\.pem$|_credentials(\.json)?$|connection_string$")
"""Certificates of public authorities, and keys of a machine that has a role, are empty files."""
NOT_SECRET = {"passwd"}
WEAK = re.compile(r"(?i)^(\w*admin|password|passw0rd|secret|change-?me|mlflow|test|root|\d+)+$")
SHORTEST = 16
FREE = re.compile(r"COMPOSE_|DOCKER_|STACKOPS_")
"""Settings of Compose itself, which .env.example need not name."""


def env_lines(facts: Facts) -> list[Finding]:
    """.env has what it must have, and nothing that nobody reads."""
    env, example = facts.settings(), facts.settings("example")
    if not env:
        return [Finding(SERIOUS, "settings", "there is no .env, or it is empty", "make init")]
    commented = set(re.findall(r"(?m)^#([A-Z][A-Z0-9_]*)=", facts.text("example")))
    found = [
        Finding(SERIOUS, "settings", f"{name} is missing in .env", "make init")
        for name in example.keys() - env.keys()
    ]
    found += [
        Finding(
            SERIOUS,
            "settings",
            f"{name} is empty in .env",
            f"$EDITOR .env   # then: make up; .env.example explains {name}",
        )
        for name in example.keys() & env.keys()
        if not env[name]
    ]
    for name in sorted(env.keys() - example.keys() - commented):
        if not FREE.match(name):
            text = f".env sets {name}, which .env.example does not know: nothing may read it"
            found.append(
                Finding(
                    WARN,
                    "settings",
                    text,
                    f"sed -i '/^{name}=/d' .env   # unless compose.override.yaml uses it",
                )
            )
    return found


def env_mode(facts: Facts) -> list[Finding]:
    """Nobody but its owner reads .env."""
    mode = facts.text("env-mode").strip()
    if mode and mode[4:10] != "------":
        return [Finding(WARN, "settings", f"others may read .env ({mode[:10]})", "chmod 600 .env")]
    return []


def secret_files(facts: Facts) -> list[Finding]:
    """Every secret is there, belongs to the user that runs the stack, and nobody else may read it."""
    folder, found = facts.folder / "secrets", []
    user = facts.settings().get("STACK_UID", "")
    if not folder.is_dir():
        return [Finding(SERIOUS, "secrets", "there is no folder secrets/", "make init")]
    for path in [folder, *sorted(folder.iterdir())]:
        name = path.name if path == folder else f"secrets/{path.name}"
        kind = path.stat()
        if stat.S_IMODE(kind.st_mode) & 0o077:
            text = f"others may read {name} (mode {stat.S_IMODE(kind.st_mode):o})"
            found.append(Finding(SERIOUS, "secrets", text, f"chmod {700 if path == folder else 600} {name}"))
        if user and str(kind.st_uid) != user:
            text = f"{name} belongs to user {kind.st_uid}, and the stack runs as {user}: it cannot read it"
            found.append(
                Finding(
                    SERIOUS,
                    "secrets",
                    text,
                    f"sudo chown -R {user}:{facts.settings().get('STACK_GID', user)} secrets",
                )
            )
    for name in facts.secrets:
        if not (folder / name).exists():
            found.append(Finding(SERIOUS, "secrets", f"secrets/{name} is missing", "make up"))
    return found


def strength(name: str, text: str) -> str:
    """Return what is weak about a secret, or ""."""
    text = text.strip()
    if not text:
        return "" if MAY_BE_EMPTY.search(name) else "is empty"
    words = re.findall(r'(?:secret_access_key\s*=\s*|secretKey": "|^\w+:)([^\s;",]+)', text) or [text]
    for word in words:
        if WEAK.match(word) or len(set(word)) < 6:
            return "is a word that attackers try first"
        if len(word) < SHORTEST and "\n" not in text:
            return f"is shorter than {SHORTEST} characters"
    return ""


def weak_secrets(facts: Facts) -> list[Finding]:
    """No secret is empty, short or a well-known word."""
    found = []
    for name in facts.secrets:
        path = facts.folder / "secrets" / name
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue  # missing or of somebody else: another check says so
        if name not in NOT_SECRET and (fault := strength(name, text)):
            command = f"make rotate-secrets SECRET={name}"
            if fault == "is empty":
                command = f"make init   # it says what belongs in secrets/{name}"
            found.append(Finding(SERIOUS, "secrets", f"secrets/{name} {fault}", command))
    return found


def tracked_secrets(facts: Facts) -> list[Finding]:
    """git knows neither .env nor secrets/."""
    names = facts.text("tracked").split()
    if not names:
        return []
    text = f"git tracks {', '.join(names[:4])}: whoever has the repository has the secrets"
    return [Finding(SERIOUS, "secrets", text, "git rm -r --cached .env secrets; make rotate-secrets")]


def unfinished_rotation(facts: Facts) -> list[Finding]:
    """No change of secrets was interrupted."""
    folder = facts.folder / "secrets"
    left = sorted(
        {p.name[1:].rpartition(".")[0] for kind in ("next", "old") for p in folder.glob(f".*.{kind}")}
    )
    if not left:
        return []
    if holder := facts.text("rotating").strip():
        text = f"the secrets are being changed right now (process {holder})"
        return [Finding(WARN, "secrets", text, "make doctor   # again, when it has ended")]
    text = f"a change of secrets was interrupted: {', '.join(left)}"
    return [Finding(SERIOUS, "secrets", text, "make rotate-secrets")]


def certificate_ends(path: Path) -> list[datetime]:
    """Return when the certificates in a PEM file end."""
    from cryptography import x509

    try:
        return [one.not_valid_after_utc for one in x509.load_pem_x509_certificates(path.read_bytes())]
    except (OSError, ValueError):
        return []


def certificates(facts: Facts) -> list[Finding] | None:
    """No certificate in secrets/ has ended or ends soon."""
    found, now = [], datetime.fromtimestamp(facts.now, UTC)
    known = {path: certificate_ends(path) for path in sorted((facts.folder / "secrets").glob("*.pem"))}
    if not any(known.values()):
        return None
    for path, ends in known.items():
        if not ends:
            continue
        left = min(ends) - now
        if left < timedelta(days=30):
            word = "has ended" if left < timedelta(0) else f"ends in {left.days} days"
            level = SERIOUS if left < timedelta(days=7) else WARN
            command = f"make restart ALL=1   # after you have put the new one into secrets/{path.name}"
            if facts.answer("tls") == "self-signed":
                command = f"rm secrets/{path.name} && make init && make restart ALL=1"
            found.append(
                Finding(level, "certificate", f"the certificate in secrets/{path.name} {word}", command)
            )
    return found


def drift(facts: Facts) -> list[Finding] | None:
    """The template has no newer release; known only if `make doctor UPDATES=1` asked for it."""
    versions = [
        tuple(map(int, v))
        for v in re.findall(r"refs/tags/v(\d+)\.(\d+)\.(\d+)$", facts.text("releases"), re.M)
    ]
    mine = re.match(r"v(\d+)\.(\d+)\.(\d+)", facts.answer("_commit"))
    if not versions or not mine:
        return None
    if max(versions) <= tuple(map(int, mine.groups())):
        return []
    newest = ".".join(map(str, max(versions)))
    return [
        Finding(
            WARN,
            "template",
            f"this stack is of {facts.answer('_commit')}, and v{newest} is out",
            "make update && make up",
        )
    ]


CHECKS = (
    env_lines,
    env_mode,
    secret_files,
    weak_secrets,
    tracked_secrets,
    unfinished_rotation,
    certificates,
    drift,
)
