"""Which combinations of answers exist, and which are refused.

The choices are read from copier.yml's question files, so a new choice is tested at once: it is either rendered
and checked like every other, or the refusals below have to be taught why it cannot be.
"""

import functools
import hashlib
import itertools
import zlib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent

# Two questions without choices that change what is rendered: their values here. They only put a word into places that
# the choices decide, so each combination of choices has one of each, and all of them have both.
PREFIXES = ("", "/mlflow")
DOMAINS = ("localhost", "mlflow.example.com")

# Every pair that is refused, with the sentence that must be shown.
REFUSED: tuple[tuple[dict[str, str], str], ...] = (
    (
        {"artifact_store": "local", "artifact_access": "direct"},
        "artifact_access=direct cannot work with artifact_store=local, because clients cannot reach the server's disk; "
        "choose proxied, or an object store.",
    ),
    (
        {"artifact_store": "local", "artifact_access": "presigned"},
        "artifact_access=presigned cannot work with artifact_store=local, because clients cannot reach the server's "
        "disk; choose proxied, or an S3 store.",
    ),
    *(
        (
            {"artifact_store": store, "artifact_access": "presigned"},
            f"artifact_access=presigned cannot work with artifact_store={store}, because MLflow signs downloads for S3 "
            "only; choose proxied or direct.",
        )
        for store in ("azure", "gcs")
    ),
    *(
        (
            {"artifact_store": store, "artifact_access": "presigned", "reverse_proxy": "none"},
            "artifact_access=presigned with a store in this stack needs a reverse proxy, because the proxy publishes "
            "the store under the name that the server signs; choose reverse_proxy=nginx or caddy, or "
            "artifact_access=proxied.",
        )
        for store in ("seaweedfs", "minio")
    ),
    (
        {"reverse_proxy": "none", "auth": "basic"},
        "auth=basic needs a reverse proxy, because the proxy asks for the password; "
        "choose reverse_proxy=nginx or caddy, or auth=mlflow.",
    ),
    *(
        (
            {"reverse_proxy": proxy, "auth": "oidc"},
            "auth=oidc needs reverse_proxy=nginx, because nginx asks who sends a request and leads people to the "
            "provider's login; choose reverse_proxy=nginx, or auth=mlflow.",
        )
        for proxy in ("none", "caddy")
    ),
    (
        {"reverse_proxy": "none", "url_prefix": "/mlflow"},
        "url_prefix needs a reverse proxy, because the proxy strips the prefix; "
        "choose reverse_proxy=nginx or caddy, or leave url_prefix empty.",
    ),
    *(
        (
            {"reverse_proxy": "none", "tls": tls},
            f"tls={tls} needs a reverse proxy, because the proxy holds the certificate; "
            "choose reverse_proxy=nginx or caddy, or tls=none.",
        )
        for tls in ("self-signed", "files")
    ),
    *(
        (
            {"reverse_proxy": proxy, "tls": "acme"},
            "tls=acme needs reverse_proxy=caddy, because Caddy gets and renews the certificate; "
            "choose reverse_proxy=caddy, or tls=files.",
        )
        for proxy in ("none", "nginx")
    ),
    (
        {"domain": "localhost", "tls": "acme"},
        "tls=acme needs a public host name, because no authority certifies localhost; "
        "set domain, or choose tls=self-signed.",
    ),
    (
        {"reverse_proxy": "caddy", "kubernetes": "kustomize"},
        "kubernetes=kustomize cannot work with reverse_proxy=caddy, because in a cluster a Gateway or an Ingress holds "
        "the certificate; choose reverse_proxy=nginx or none.",
    ),
    *(
        (
            {"tls": tls, "kubernetes": "kustomize"},
            f"kubernetes=kustomize cannot work with tls={tls}, because in a cluster a Gateway or an Ingress holds the "
            "certificate; choose tls=none.",
        )
        for tls in ("self-signed", "files")
    ),
    *(
        (
            {"artifact_store": store, "artifact_access": access, "kubernetes": "kustomize"},
            f"kubernetes=kustomize cannot work with artifact_access={access} and a store in this stack, because "
            "nothing leads clients to that store from outside the cluster; choose artifact_access=proxied, or "
            "artifact_store=s3.",
        )
        for store in ("seaweedfs", "minio")
        for access in ("direct", "presigned")
    ),
)

Answers = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """YAML with copier.yml's `!include`, which gives back the path."""


_Loader.add_constructor("!include", lambda loader, node: Path(loader.construct_scalar(node)))


def settings() -> dict[str, Any]:
    """Return the settings of copier.yml (its first document)."""
    return next(iter(_documents(ROOT / "copier.yml")))


def questions(root: Path = ROOT) -> dict[str, dict[str, Any]]:
    """Return every question in the order in which it is asked, with the hidden ones at their place."""
    found: dict[str, dict[str, Any]] = {}
    for document in _documents(root / "copier.yml"):
        parts = _documents(root / document) if isinstance(document, Path) else [document]
        for part in parts:
            found |= {name: body for name, body in part.items() if not name.startswith("_")}
    return found


def choices(question: str) -> list[str]:
    """Return the values that a question offers, in order."""
    offered = questions()[question]["choices"].values()
    return [choice["value"] if isinstance(choice, dict) else choice for choice in offered]


def refusal(answers: Answers) -> str | None:
    """Return the sentence with which these answers are refused, or None if they are fine."""
    for pair, sentence in REFUSED:
        if all(answers.get(name) == value for name, value in pair.items()):
            return sentence
    return None


def name_of(answers: Answers) -> str:
    """Return a short readable name, e.g. 'postgres-seaweedfs-proxied-nginx-basic-prefix'."""
    parts = [answers[name] for name in ("backend", "artifact_store", "artifact_access", "reverse_proxy", "auth")]
    parts += [answers["tls"]] if answers.get("tls", "none") != "none" else []
    return "-".join([*parts, "prefix"] if answers.get("url_prefix") else parts)


def every_product() -> list[Answers]:
    """Return the product of all choices, also of those that are refused."""
    names = ("backend", "artifact_store", "artifact_access", "reverse_proxy", "auth", "tls")
    found = []
    for values in itertools.product(*(choices(name) for name in names)):
        answers: Answers = {"project_name": "demo-stack", **dict(zip(names, values, strict=True))}
        # Either domain, decided by the name, so that it is the same in every run and tied to no other answer.
        number = zlib.crc32(name_of(answers).encode())
        answers["domain"] = DOMAINS[number % len(DOMAINS)] if answers["tls"] != "acme" else DOMAINS[1]
        # Likewise a prefix, where a proxy can strip it, and a host name of its own for a store that it publishes.
        answers["url_prefix"] = PREFIXES[number // 4 % 2] if answers["reverse_proxy"] != "none" else ""
        if (
            answers["artifact_store"] in ("seaweedfs", "minio")
            and answers["artifact_access"] != "proxied"
            and answers["reverse_proxy"] != "none"
        ):
            answers["store_domain"] = ("", "s3.example.com")[number // 2 % 2]
        # And backups by the clock, which add a service and nothing else: half of the combinations have it. By another
        # hash: two names of one length that differ in a word would always differ in that bit of a CRC, too.
        answers["backups"] = bool(hashlib.sha256(name_of(answers).encode()).digest()[0] % 2)
        # And watching, by another byte of it.
        answers["monitoring"] = bool(hashlib.sha256(name_of(answers).encode()).digest()[1] % 2)
        # And manifests for a cluster, which change nothing else: a quarter of those that can have them.
        answers["kubernetes"] = "kustomize"
        if refusal(answers) or hashlib.sha256(name_of(answers).encode()).digest()[2] % 4:
            answers["kubernetes"] = "none"
        found.append(answers)
    return found


def valid() -> list[Answers]:
    """Return every combination that renders."""
    return [answers for answers in every_product() if refusal(answers) is None]


def _documents(path: Path) -> list[Any]:
    """Return the YAML documents of one file, which nobody may change: they are read once."""
    return _parsed(path.read_text(encoding="utf-8"))


@functools.cache
def _parsed(text: str) -> list[Any]:
    return list(yaml.load_all(text, _Loader))
