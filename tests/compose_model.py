"""What holds for every stack as Compose itself understands it: in the model that `docker compose config` prints."""

import functools
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from combinations import Answers
from rendering import Tree

Model = dict[str, Any]

# Who may read which secret. Every other service that mounts it would know more than it needs.
READERS = {
    "postgres_password": {"postgres", "postgres-statistics"},
    "passwd": {"postgres", "postgres-statistics"},
    "db_password": {
        "metrics",
        "mlflow",
        "migrate",
        "artifacts-move",
        "backup",
        "backup-schedule",
        "postgres",
        "pgloader",
    },
    "db_ca.pem": {"metrics", "mlflow", "migrate", "artifacts-move", "backup", "backup-schedule", "pgloader"},
    "object_store_root_user": {"object-store", "object-store-init"},
    "object_store_root_password": {"object-store", "object-store-init"},
    "object_store.json": {"object-store"},
    "object_store_direct.json": {"object-store"},
    "object_store_admin": {"object-store-init"},
    "s3_credentials": {"mlflow", "migrate", "artifacts-move", "backup", "backup-schedule", "object-store-init"},
    "client_s3_credentials": {"object-store-init", "check"},
    "azure_connection_string": {"mlflow", "migrate", "artifacts-move", "backup", "backup-schedule"},
    "gcs_credentials.json": {"mlflow", "migrate", "artifacts-move", "backup", "backup-schedule"},
    "admin_password": {"mlflow", "migrate", "artifacts-move", "backup", "backup-schedule", "check", "users"},
    "htpasswd": {"mlflow", "migrate", "artifacts-move", "backup", "backup-schedule"},
    "tls.pem": {"nginx", "caddy"},
    "tls.key": {"nginx", "caddy"},
    "tls_ca.pem": {"caddy", "check"},
    "flask_secret_key": {"mlflow", "migrate", "artifacts-move", "backup", "backup-schedule"},
    "oidc_client_secret": {"oauth2-proxy"},
    "oidc_cookie_secret": {"oauth2-proxy"},
    "oidc_ca.pem": {"oauth2-proxy"},
    "identity_key": {"nginx", "mlflow", "migrate", "artifacts-move", "backup", "backup-schedule"},
    "grafana_password": {"grafana"},
    "crypto_kek_passphrase": {"mlflow", "migrate", "artifacts-move", "backup", "backup-schedule"},
    "webhook_encryption_key": {"mlflow", "migrate", "artifacts-move", "backup", "backup-schedule"},
}


# Whose name sounds like a secret.
SWITCHES = {"OAUTH2_PROXY_SKIP_JWT_BEARER_TOKENS", "GF_PLUGINS_PUBLIC_KEY_RETRIEVAL_DISABLED"}


def settings_for(tree: Tree) -> str:
    """Return the .env that a person would have: what 'make init' copies, with every required value filled in."""
    lines = re.findall(r"(?m)^[A-Z0-9_]+=.*$", tree.files[".env.example"])
    given = {"STACK_UID": "10001", "STACK_GID": "10001", "DB_HOST": "database.example.com"}
    given |= {"OIDC_ISSUER": "https://login.example.com", "OIDC_CLIENT_ID": "mlflow"}
    return "".join(f"{line.partition('=')[0]}={given[line.partition('=')[0]]}\n" for line in lines)


@functools.cache
def compose_command() -> tuple[str, ...]:
    """Return Compose's own program where Docker says where it is: half as long to start as by way of `docker`."""
    which = '{{range .ClientInfo.Plugins}}{{if eq .Name "compose"}}{{.Path}}{{end}}{{end}}'
    found = subprocess.run(["docker", "info", "--format", which], capture_output=True, text=True).stdout.strip()
    return (found,) if os.access(found, os.X_OK) else ("docker", "compose")


def parse(tree: Tree, folder: Path, **settings: str) -> Model:
    """Return the stack as Compose reads it, with every profile. Raises RuntimeError with Compose's words."""
    (folder / ".env").write_text(settings_for(tree) + "".join(f"{name}={value}\n" for name, value in settings.items()))
    command = [*compose_command(), "--env-file", str(folder / ".env"), "--profile", "*", "config", "--format", "json"]
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(command, cwd=tree.root, env=clean, capture_output=True, text=True)
    if done.returncode or done.stderr.strip():
        raise RuntimeError(done.stderr.strip())
    return json.loads(done.stdout)


def model_faults(model: Model, answers: Answers) -> list[str]:
    """Return what is wrong with a model."""
    found = []
    for name, service in model["services"].items():
        found += [f"{name}: {fault}" for fault in _container(service) + _image(service) + _environment(service)]
        found += [f"{name}: {fault}" for fault in _mounts(service) + _life(service)]
        for secret in service.get("secrets") or []:
            if name not in _readers(secret["source"], answers):
                found.append(f"{name}: can read the secret {secret['source']} and need not")
    return found + _ports(model, answers) + _networks(model, answers) + _settings(model, answers)


def _container(service: dict[str, Any]) -> list[str]:
    wanted = {
        "user": "10001:10001",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "init": True,
    }
    found = [
        f"{key} is {service.get(key)!r} and not {value!r}" for key, value in wanted.items() if service.get(key) != value
    ]
    forbidden = (
        "privileged",
        "cap_add",
        "devices",
        "pid",
        "ipc",
        "userns_mode",
        "container_name",
        "pull_policy",
        "post_start",
        "pre_start",
        "pre_stop",
        "links",
    )
    found += [f"uses {key}" for key in forbidden if service.get(key)]
    deploy = service.get("deploy") or {}
    found += [f"uses deploy.{key}" for key, value in deploy.items() if value and key != "replicas"]
    found += [f"{key} is not limited" for key in ("mem_limit", "pids_limit") if int(service.get(key) or 0) <= 0]
    logging = service.get("logging") or {}
    if logging.get("driver") != "json-file" or not {"max-size", "max-file"} <= set(logging.get("options") or {}):
        found.append("its log can grow for ever")
    return found


def _image(service: dict[str, Any]) -> list[str]:
    """Each image is pinned by version or digest; one that is built here may take its version from what it builds on."""
    images = [service["image"]] if "build" not in service else []
    images += [value for key, value in (service.get("build", {}).get("args") or {}).items() if key.endswith("_IMAGE")]
    found = [] if images else ["is built from an image that no variable of .env can replace"]
    return found + [
        f"the image {image} is not pinned"
        for image in images
        if not re.search(r":[\w.-]*\d[\w.-]*$|:[a-z]+-slim$|@sha256:", image) or ":latest" in image
    ]


def _environment(service: dict[str, Any]) -> list[str]:
    found = []
    for key, value in (service.get("environment") or {}).items():
        secret = re.search(r"PASS|SECRET|TOKEN|_KEY|CREDENTIAL", key) and not key.endswith("_FILE")
        if secret and key not in SWITCHES:
            found.append(f"{key} is in its environment, where 'docker inspect' shows it")
        elif key.endswith("_FILE") and not str(value).startswith("/run/secrets/"):
            found.append(f"{key} is no secret's file")
        elif re.search(r"://[^/@\s]*:[^/@\s]*@|^postgresql|^sqlite:", str(value)):
            found.append(f"{key} holds a database URI or a password")
    command = " ".join([*(service.get("command") or []), *(service.get("entrypoint") or [])])
    return found + [f"its command line holds a secret: {command}"] * bool(re.search(r"(?i)passw|secret_?key", command))


def _mounts(service: dict[str, Any]) -> list[str]:
    found = []
    for mount in service.get("volumes") or []:
        # The list of users, which one service looks after, and where backups go.
        kept = ("/run/users/htpasswd", "/backups")
        if mount["type"] == "bind" and not mount.get("read_only") and mount.get("target") not in kept:
            found.append(f"can write to {mount['source']}")
        if "docker.sock" in str(mount["source"]):
            found.append("reaches the Docker engine")
    return found + ["has no /tmp"] * (not any(path.startswith("/tmp") for path in service.get("tmpfs") or []))


def _life(service: dict[str, Any]) -> list[str]:
    """A service that runs for long is restarted and watched; a job is neither."""
    check = service.get("healthcheck")
    if service.get("restart") == "no":
        return ["is a job with a health check"] * bool(check)
    found = [] if service.get("restart") == "unless-stopped" else [f"restart is {service.get('restart')!r}"]
    if "oauth2-proxy" in service["image"]:
        return found  # its image has no program that could ask it; nginx's health check asks
    if not check or check.get("disable"):
        return [*found, "runs for long and has no health check"]
    if "start_interval" in check:
        found.append("its health check needs an engine newer than 24")
    return found + [
        f"its health check has no {key}"
        for key in ("interval", "timeout", "retries", "start_period")
        if key not in check
    ]


def _readers(secret: str, answers: Answers) -> set[str]:
    """Return the services that may read a secret."""
    readers = READERS.get(secret, set())
    if secret == "admin_password" and answers["auth"] == "basic":
        return readers - {"mlflow", "migrate", "artifacts-move", "backup", "backup-schedule"}
    if answers["artifact_access"] == "direct" and answers["artifact_store"] in ("s3", "azure", "gcs"):
        return readers | ({"check"} if "s3" in secret or "azure" in secret or "gcs" in secret else set())
    return readers


def _ports(model: Model, answers: Answers) -> list[str]:
    """Only the proxy publishes a port; without one, the server and a store that clients reach directly, here only.

    An authority has to reach the stack from outside before it certifies its name.
    """
    behind_proxy = answers["reverse_proxy"] != "none"
    front = answers["reverse_proxy"] if behind_proxy else "mlflow"
    publishes, address = {front}, "0.0.0.0" if answers["tls"] == "acme" else "127.0.0.1"
    if not behind_proxy:
        publishes |= {"grafana"}
    if not behind_proxy and answers["artifact_access"] == "direct":
        publishes |= {"object-store"}
    found = []
    for name, service in model["services"].items():
        for port in service.get("ports") or []:
            if name not in publishes:
                found.append(f"{name}: publishes port {port['published']}")
            if port.get("host_ip") != address:
                found.append(f"{name}: publishes port {port['published']} beyond this machine by default")
    return found + [f"{front}: publishes no port"] * (not model["services"][front].get("ports"))


def _networks(model: Model, answers: Answers) -> list[str]:
    """The database and the store are on a network without a way out; the proxy is not on it unless it leads there."""
    networks, found = model["networks"], []
    published = answers["artifact_access"] != "proxied" and "object-store" in model["services"]
    inside = {
        name
        for name in ("postgres", "postgres-statistics", "object-store", "object-store-init")
        if name in model["services"]
    }
    inside |= {"pgloader"} if answers["backend"] == "postgres" else set()
    if inside and not networks["data"].get("internal"):
        found.append("networks: data is not internal")
    for name, service in model["services"].items():
        joined = set(service.get("networks") or {})
        if name == "check":
            found += ["check: is on the stack's networks, and a user is not"] * (service.get("network_mode") != "host")
            continue
        if name == "users":
            found += ["users: is on a network"] * (service.get("network_mode") != "none")
            continue
        if service.get("network_mode"):
            found.append(f"{name}: network_mode is {service['network_mode']}")
        wanted = {"data"} if name in inside else {"edge"}
        if name == "object-store" and published and answers["reverse_proxy"] == "none":
            wanted = {"data", "edge"}
        if (name in ("mlflow", "migrate", "artifacts-move", "backup", "backup-schedule", "metrics") and inside) or (
            name == answers["reverse_proxy"] and published
        ):
            wanted = {"data", "edge"}
        watched = {"seaweedfs": True, "minio": not published}.get(answers["artifact_store"])
        if name == "prometheus" and watched:
            wanted = {"data", "edge"}
        if joined != wanted:
            found.append(f"{name}: is on the networks {sorted(joined)} and not on {sorted(wanted)}")
    return found


def _store_url(model: Model, answers: Answers) -> str | None:
    """Return the address that the server signs: a port that nginx publishes, under the name that clients know."""
    if answers["artifact_access"] == "proxied" or "object-store" not in model["services"]:
        return None
    if answers["reverse_proxy"] == "none":
        return f"http://localhost:{model['services']['object-store']['ports'][0]['published']}"
    ports = {port["target"]: port["published"] for port in model["services"][answers["reverse_proxy"]]["ports"]}
    plain = answers["tls"] == "none"
    scheme, own = ("http", ports[8080]) if plain else ("https", ports[8443])
    if name := answers.get("store_domain"):
        return f"{scheme}://{name}" + ("" if own == "443" else f":{own}")
    own = next(published for target, published in ports.items() if target not in (8080, 8443))
    return f"{scheme}://{answers['domain']}:{own}"


def _settings(model: Model, answers: Answers) -> list[str]:
    """What the answers decide arrives at the server."""
    environment, domain = model["services"]["mlflow"]["environment"], answers["domain"]
    wanted = {
        "STACK_BACKEND": "sqlite" if answers["backend"] == "sqlite" else "postgres",
        "STACK_STORE": {"minio": "s3", "seaweedfs": "s3"}.get(answers["artifact_store"], answers["artifact_store"]),
        "ARTIFACT_ACCESS": answers["artifact_access"],
        "STORE_URL": _store_url(model, answers),
        "STACK_AUTH": "mlflow" if answers["auth"] == "oidc" else answers["auth"],
    }
    found = [
        f"mlflow: {key} is {environment.get(key)!r} and not {value!r}"
        for key, value in wanted.items()
        if environment.get(key) != value
    ]
    hosts = environment["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    found += [f"mlflow: does not answer to {host}" for host in (domain, f"{domain}:*") if host not in hosts]
    origins = environment["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    if not any(re.fullmatch(rf"https?://{re.escape(domain)}(:\d+)?", origin) for origin in origins):
        found.append(f"mlflow: browsers on {domain} are refused")
    found += ["mlflow: answers to every host or browser"] * ("*" in hosts or "*" in origins)
    uris = {
        "local": r"/data/artifacts",
        "azure": r"wasbs://[a-z0-9-]+@[a-z0-9]+\.blob\.core\.windows\.net",
        "gcs": "gs://.+",
    }
    if not re.fullmatch(uris.get(answers["artifact_store"], "s3://.+"), environment["ARTIFACT_URI"]):
        found.append(f"mlflow: ARTIFACT_URI is {environment['ARTIFACT_URI']}")
    url = model["services"]["check"]["environment"]["MLFLOW_TRACKING_URI"]
    host = domain if answers["reverse_proxy"] != "none" else "localhost"
    start = (
        r"http://{}:\d+" if answers["tls"] == "none" else r"https://{}" + ("" if answers["tls"] == "acme" else r":\d+")
    )
    if not re.fullmatch(start.format(re.escape(host)) + answers["url_prefix"], url):
        found.append(f"check: looks for the server at {url}")
    return found
