"""From what Compose (or scripts/local.sh) hands over to what MLflow reads.

The decisions are `server_environment` and `runtime_files`: both only look at what they are given.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from stackops import sizing
from stackops.errors import StackError

DATA_DIR = "/data"
SECRETS_DIR = "/run/secrets"
RUNTIME_DIR = "/run/stackops"
ADMIN, MINIMUM = "admin", 12
"""Who looks after the other users of a stack with logins, and how short a password may be."""
HOOKS_DIR = str(Path(__file__).parent / "hooks")

LEAN = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_SERVER_ENABLE_CUSTOM_SCORERS": "false",
    "MLFLOW_ENABLE_AI_GATEWAY": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_MODEL_CATALOG_URI": "",
}
"""What a stack does not do unless it is asked to: eight job processes and calls to the internet."""

KEYS = {
    "MLFLOW_CRYPTO_KEK_PASSPHRASE": "crypto_kek_passphrase",
    "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": "webhook_encryption_key",
}
"""MLflow has no *_FILE form of these: they go from their secret into the server's environment."""

KEEP_ALIVE = 75
"""Seconds an idle connection stays open: longer than the 65 s of a proxy in front, so that the proxy, not
the server, closes first and no request is lost in between."""

GRACE = 20
"""Seconds that running requests get after SIGTERM; the whole stop stays below 30 s."""


class Secrets:
    """The folder of file secrets."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def path(self, name: str) -> Path:
        """Return the path of the secret `name`, whether it exists or not."""
        return self.folder / name

    def read(self, name: str) -> str:
        """Return the secret without its final newline, or "". Raises StackError if it is unreadable."""
        try:
            return self.path(name).read_text(encoding="utf-8").rstrip("\r\n")
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise StackError(
                f"the secret {name} cannot be read ({type(error).__name__}); it must be text that belongs to "
                "the user that runs the stack: run make init"
            ) from None

    def need(self, name: str) -> str:
        """Return the secret, or raise StackError if it is missing or empty."""
        if value := self.read(name):
            return value
        raise StackError(f"the secret {name} is missing or empty; run make init, or fill secrets/{name}")


def present(env: Mapping[str, str]) -> dict[str, str]:
    """Return `env` without empty variables: Compose writes `NAME: ${NAME:-}`, and empty means not set."""
    return {name: value for name, value in env.items() if value}


def secrets(env: Mapping[str, str]) -> Secrets:
    """Return the secrets of this stack."""
    return Secrets(env.get("SECRETS_DIR") or SECRETS_DIR)


def runtime_dir(env: Mapping[str, str]) -> Path:
    """Return the private folder for files made at start."""
    return Path(env.get("RUNTIME_DIR") or RUNTIME_DIR)


def data_dir(env: Mapping[str, str]) -> Path:
    """Return the folder for data that stays."""
    return Path(env.get("DATA_DIR") or DATA_DIR)


def backend(env: Mapping[str, str]) -> ModuleType:
    """Return the module of this stack's database. Raises StackError if STACK_BACKEND names none."""
    return _part("backends", "STACK_BACKEND", env)


def store(env: Mapping[str, str]) -> ModuleType:
    """Return the module of this stack's artifact store. Raises StackError if STACK_STORE names none."""
    return _part("stores", "STACK_STORE", env)


def accounts(env: Mapping[str, str]) -> ModuleType | None:
    """Return the module for MLflow's own users, or None if this stack does not use them."""
    return importlib.import_module("stackops.accounts") if env.get("STACK_AUTH") == "mlflow" else None


def logins(env: Mapping[str, str]) -> ModuleType | None:
    """Return the module that checks logins and knows the users, or None if this stack keeps none."""
    name = {"basic": "login", "mlflow": "guard"}.get(env.get("STACK_AUTH", ""))
    return importlib.import_module(f"stackops.{name}") if name else None


def _part(kind: str, variable: str, env: Mapping[str, str]) -> ModuleType:
    name = env.get(variable, "")
    if not name.isidentifier() or not importlib.util.find_spec(f"stackops.{kind}.{name}"):
        raise StackError(f"{variable} is {name!r}, and this stack has no such part; see compose.yaml")
    return importlib.import_module(f"stackops.{kind}.{name}")


def need(env: Mapping[str, str], name: str) -> str:
    """Return the variable `name`. Raises StackError if it is missing or empty."""
    if value := env.get(name):
        return value
    raise StackError(f"{name} is not set; run make init and look at .env")


def artifact_uri(env: Mapping[str, str]) -> str:
    """Return the URI of the artifact store without a final slash."""
    return need(env, "ARTIFACT_URI").rstrip("/")


def port(env: Mapping[str, str]) -> str:
    """Return the port on which the server listens."""
    return env.get("MLFLOW_PORT") or "5000"


def shared_dir(env: Mapping[str, str]) -> Path:
    """Return the folder in which servers tell each other; a single one tells its own processes."""
    return Path(env.get("SHARED_DIR") or runtime_dir(env))


def servers(env: Mapping[str, str]) -> int:
    """Return how many servers share the work. Raises StackError if MLFLOW_REPLICAS is no number above 0."""
    value = env.get("MLFLOW_REPLICAS") or "1"
    if not value.isdecimal() or int(value) < 1:
        raise StackError(f"MLFLOW_REPLICAS is {value!r}; use a whole number above 0, or leave it empty")
    return int(value)


def servers_at_once(env: Mapping[str, str]) -> int:
    """Return how many servers there may be at a time: where there can be several, one more while they are
    replaced one after the other."""
    return servers(env) + (1 if env.get("MLFLOW_REPLICAS") else 0)


def has_workspaces(env: Mapping[str, str]) -> bool:
    """Return whether MLflow keeps workspaces apart."""
    return env.get("MLFLOW_ENABLE_WORKSPACES", "false").lower() in ("true", "1")


def engines(env: Mapping[str, str]) -> int:
    """Return how many pools each worker has: tracking, model registry, and the users' own."""
    return 3 if accounts(env) else 2


def server_environment(env: Mapping[str, str], here: sizing.Machine) -> dict[str, str]:
    """Return the whole environment of the MLflow server (mlflow/cli, mlflow/environment_variables.py).

    What `env` already sets for MLflow stays as it is. Raises StackError if something is missing or does not
    fit. Nothing here ends up on a command line.
    """
    env = present(env)
    database, artifacts, users, keys = backend(env), store(env), accounts(env), secrets(env)
    here = sizing.share(here, servers(env))
    workers = sizing.workers(env.get("MLFLOW_WORKERS"), here, database.max_workers(env, engines(env)))
    direct = env.get("ARTIFACT_ACCESS") == "direct"
    ours = {
        **LEAN,
        "MLFLOW_BACKEND_STORE_URI": database.uri(env),
        # Direct access changes nothing but where *new* experiments live: the server keeps serving the others.
        "MLFLOW_SERVE_ARTIFACTS": "true",
        "MLFLOW_ARTIFACTS_DESTINATION": artifacts.destination(env),
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": artifact_uri(env) if direct else "mlflow-artifacts:/",
        "MLFLOW_HOST": "0.0.0.0",
        "MLFLOW_PORT": port(env),
        "MLFLOW_WORKERS": str(workers),
        "MLFLOW_UVICORN_OPTS": uvicorn_options(),
        **{variable: value for variable, name in KEYS.items() if (value := keys.read(name))},
        **database.environment(env, workers, engines(env)),
        **artifacts.environment(env, keys),
        **(users.environment(env, keys) if users else {}),
    }
    path = os.pathsep.join(p for p in (HOOKS_DIR, env.get("PYTHONPATH")) if p)
    return {**ours, **env, "PYTHONPATH": path}


def uvicorn_options() -> str:
    """Return uvicorn's options.

    The access log is the reverse proxy's or, without one, our own (access.py). A busy worker may be silent
    for more than uvicorn's 5 s without being dead, so it gets 60.
    """
    options = [
        "--no-access-log",
        f"--timeout-keep-alive {KEEP_ALIVE}",
        f"--timeout-graceful-shutdown {GRACE}",
        "--timeout-worker-healthcheck 60",
    ]
    return " ".join(options)


def runtime_files(env: Mapping[str, str]) -> dict[str, str]:
    """Return the private files that belong to `server_environment`: path -> text."""
    env = present(env)
    users, keys, folder = accounts(env), secrets(env), runtime_dir(env)
    files = {**backend(env).files(env, keys), **(users.files(env) if users else {})}
    return {str(folder / name): text for name, text in files.items()}


def server_command() -> list[str]:
    """Return the command line of the server; the application (app.py) has no environment variable."""
    return [sys.executable, "-P", "-m", "mlflow", "server", "--app-name", "stackops"]


def write_private(files: Mapping[str, str]) -> None:
    """Write each file whole or not at all, with mode 0600 (its folder: 0700). Raises StackError."""
    for name, text in files.items():
        path = Path(name)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{os.getpid()}")
            part.unlink(missing_ok=True)
            with open(
                os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
            ) as file:
                file.write(text)
            part.replace(path)
        except OSError as error:
            raise StackError(
                f"{path} cannot be written ({error.strerror}); its folder must belong to user {os.getuid()}"
            ) from None


def adopt() -> dict[str, str]:
    """Make this process look like the server: write the private files, set the environment, and return it."""
    environment = server_environment(os.environ, sizing.machine())
    write_private(runtime_files(os.environ))
    for name in [name for name, value in os.environ.items() if not value]:
        del os.environ[name]
    os.environ.update(environment)
    return environment
