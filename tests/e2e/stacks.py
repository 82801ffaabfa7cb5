"""Renders a stack, starts it as its owner would, removes every trace of it; and clients that see it from outside."""

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import copier
import yaml
from needs import engine

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PREFIX = "mlflow-stack-test"  # every container, volume and network of the tests starts so


def run(
    *command: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None, **more: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command and return what it did; nothing of make's, Compose's or MLflow's environment leaks in."""
    foreign = ("MAKE", "MFLAGS", "COMPOSE_", "MLFLOW_", "AWS_", "AZURE_", "GOOGLE_", "PG")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    options = {"text": True, "capture_output": True, "timeout": 900} | more
    return subprocess.run(command, cwd=cwd, env=clean | dict(env or {}), **options)


def stretch() -> tuple[socket.socket, int]:
    """Return the first of 199 ports that no other process of the tests takes, and what keeps them: a bound socket."""
    for number in range(100):
        first = 12000 + (os.getpid() + number) % 100 * 200
        keeper = socket.socket()
        try:
            keeper.bind(("127.0.0.1", first))
            return keeper, first + 1
        except OSError:
            keeper.close()
    raise AssertionError("there are no free ports")


# Below the ports that the kernel gives to outgoing connections: a stack binds its port only when its image is built,
# and one of those could take it until then. Each process has a stretch of its own.
KEEPER, FIRST = stretch()
PORTS = iter(range(FIRST, FIRST + 199))


def free_port(address: str = "127.0.0.1") -> int:
    """Return a port of an address of this machine that nobody listens on; each call gives another one."""
    for port in PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((address, port))
            return port
    raise AssertionError("there is no free port")


def leftovers(project: str, *kinds: str) -> list[str]:
    """Return the containers, networks and volumes that carry the project's label."""
    found = []
    for kind in kinds:
        options = ["--all"] if kind == "container" else []
        listed = run(
            "docker", kind, "ls", "--quiet", *options, "--filter", f"label=com.docker.compose.project={project}"
        )
        found += [f"{kind} {name}" for name in listed.stdout.split()]
    return found


@dataclass
class Stack:
    """A rendered stack in its folder."""

    folder: Path
    seconds_to_ready: float = 0.0
    passed: list[str] = field(default_factory=list)  # the names of the checks that passed, for the table

    @functools.cached_property
    def answers(self) -> dict[str, Any]:
        """What .copier-answers.yml holds."""
        return yaml.safe_load((self.folder / ".copier-answers.yml").read_text())

    @property
    def name(self) -> str:
        """The Compose project's name."""
        return self.answers["project_name"]

    def make(self, *words: str, fails: bool = False, **more: Any) -> str:
        """Run make, which must succeed (or fail, with `fails`); return standard output and error."""
        done = run("make", "--no-print-directory", *words, cwd=self.folder, **more)
        assert (done.returncode != 0) == fails, f"make {' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def compose(self, *words: str, fails: bool = False, **more: Any) -> str:
        """Run docker compose, which must succeed (or fail, with `fails`); return standard output."""
        done = run("docker", "compose", *words, cwd=self.folder, **more)
        assert (done.returncode != 0) == fails, f"compose {' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def container(self, service: str) -> str:
        """Return the id of a service's running container."""
        return self.compose("ps", "--quiet", service).strip()

    def has(self, service: str) -> bool:
        """Whether the stack has this service."""
        return service in self.compose("config", "--services").split()

    def secret(self, name: str) -> str:
        """Return the text of a secret."""
        return (self.folder / "secrets" / name).read_text().strip()

    def setting(self, name: str, value: str) -> None:
        """Put a setting into .env, as the owner would; an earlier value goes."""
        path = self.folder / ".env"
        lines = path.read_text().splitlines() if path.exists() else []
        path.write_text("\n".join([*(x for x in lines if not x.startswith(f"{name}=")), f"{name}={value}"]) + "\n")

    def settings(self) -> dict[str, str]:
        """Return what .env sets."""
        lines = (self.folder / ".env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))

    def override(self, model: Mapping[str, Any]) -> None:
        """Write compose.override.yaml, as the owner would."""
        (self.folder / "compose.override.yaml").write_text(yaml.safe_dump(dict(model)))

    def without_grafana(self) -> None:
        """Leave Grafana out, whose image is not to be had where the tests run; everything else is watched."""
        path = self.folder / "compose.override.yaml"
        model = (yaml.safe_load(path.read_text()) if path.exists() else None) or {}
        self.override({**model, "services": {**model.get("services", {}), "grafana": {"profiles": ["absent"]}}})

    @property
    def url(self) -> str:
        """The address that people use: scripts/url.sh prints it."""
        return run("scripts/url.sh", cwd=self.folder).stdout.strip()

    @property
    def doors(self) -> dict[str, str]:
        """What the stack publishes: name:port as people write it -> address:port on this machine."""
        name = "http_port" if self.answers.get("tls", "none") == "none" else "https_port"
        port = self.settings().get(name.upper()) or str(self.answers[name])
        host = self.url.split("//")[1].split("/")[0].rpartition(":")[0]
        doors = {f"{host}:{port}": f"127.0.0.1:{port}"}
        if self.answers["artifact_store"] in ("seaweedfs", "minio") and self.answers["artifact_access"] != "proxied":
            name, store_port = self.answers.get("store_domain"), self.settings()["STORE_PORT"]
            doors |= (
                {f"{name}:{port}": f"127.0.0.1:{port}"} if name else {f"{host}:{store_port}": f"127.0.0.1:{store_port}"}
            )
        return doors

    @property
    def scheme(self) -> str:
        """How the doors are spoken to."""
        return self.url.partition(":")[0]

    def trust(self) -> dict[str, str]:
        """Return the variables with which a client trusts the stack's certificate, as the stack's README has them."""
        file = self.folder / "secrets" / "tls_ca.pem"
        if self.answers.get("tls", "none") == "none" or not file.stat().st_size:
            return {}
        own_store = self.answers["artifact_store"] in ("seaweedfs", "minio")
        if own_store and self.answers["artifact_access"] == "presigned":
            return {"REQUESTS_CA_BUNDLE": str(file)}
        found = {"MLFLOW_TRACKING_SERVER_CERT_PATH": str(file)}
        direct = own_store and self.answers["artifact_access"] == "direct"
        return found | ({"AWS_CA_BUNDLE": str(file)} if direct else {})

    def login(self) -> dict[str, str]:
        """Return the variables with which the stock client signs in as admin."""
        if self.answers["auth"] == "none":
            return {}
        return {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": self.secret("admin_password")}

    def client_environment(self, doors: Mapping[str, str] | None = None, **more: str) -> dict[str, str]:
        """Return the whole environment of a client outside the stack that sees the doors and nothing else.

        `doors` are further ones besides the stack's own, e.g. the store's in direct mode; `more` are variables.
        """
        allow = ",".join(f"{name}={address}" for name, address in {**self.doors, **(doors or {})}.items())
        return {
            "PYTHONPATH": str(HERE / "fence"),
            "FENCE_ALLOW": allow,
            "FENCE_LOG": str(self.folder.parent / "fence.log"),
            "MLFLOW_TRACKING_URI": self.url,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            "GIT_PYTHON_REFRESH": "quiet",
            "NO_PROXY": "*",
            **self.trust(),
            **self.login(),
            **more,
        }

    def client(
        self,
        script: str,
        *arguments: str,
        python: str = sys.executable,
        doors: Mapping[str, str] | None = None,
        fails: bool = False,
        timeout: float = 300,
        **more: str,
    ) -> str:
        """Run a Python program with the stock MLflow client from outside, fenced in; return what it prints.

        It must succeed (or fail, with `fails`: then standard error is returned too).
        """
        done = run(
            python, "-c", script, *arguments, cwd=self.folder.parent, env=self.client_environment(doors, **more),
            timeout=timeout,
        )  # fmt: skip
        assert (done.returncode != 0) == fails, f"client\n{done.stdout}\n{done.stderr[-4000:]}"
        return done.stdout + (done.stderr if fails else "")

    def fence_log(self) -> list[str]:
        """Return what fenced clients tried to reach and could not, since the last call."""
        log = self.folder.parent / "fence.log"
        tried = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return tried

    def answer(self, **answers: Any) -> None:
        """Change answers, as `copier update --data` would: files come, change and go; what the owner made stays."""
        with tempfile.TemporaryDirectory() as folder:
            before, after = Path(folder, "before"), Path(folder, "after")
            for destination, data in ((before, self.answers), (after, {**self.answers, **answers})):
                copier.run_copy(str(ROOT), destination, data=data, defaults=True, quiet=True, vcs_ref="HEAD")
            for path in (p for p in before.rglob("*") if p.is_file() and not (after / p.relative_to(before)).exists()):
                (self.folder / path.relative_to(before)).unlink()
            shutil.copytree(after, self.folder, dirs_exist_ok=True)
        del self.answers
        self.setting("MLFLOW_IMAGE", image_tag(self.folder))

    def up(self) -> None:
        """`make up`, and remember how long it took."""
        with first_build(self.settings().get("MLFLOW_IMAGE", self.name)):
            start = time.monotonic()
            self.make("up")
            self.seconds_to_ready = time.monotonic() - start


@contextlib.contextmanager
def first_build(image: str) -> Iterator[None]:
    """Let nobody else build an image of this name at the same time.

    Two builds would make two images, and the second would take the name under a stack that runs with the first.
    """
    with open(Path(tempfile.gettempdir(), f"{image.replace(':', '-').replace('/', '-')}.lock"), "w") as lock:
        if run("docker", "image", "inspect", image).returncode:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def swept(project: str) -> None:
    """Remove what a killed run left of the project: an old database would refuse this run's new password."""
    for thing in leftovers(project, "container") + leftovers(project, "network", "volume"):
        kind, name = thing.split(" ", 1)
        run("docker", kind, "rm", "--force", *(["--volumes"] if kind == "container" else []), name)


def image_tag(folder: Path) -> str:
    """Return a name for the server's image that changes with what is built into it: equal stacks share an image."""
    digest = hashlib.sha256()
    for path in sorted(p for part in ("mlflow", "stackops") for p in (folder / part).rglob("*") if p.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{PREFIX}-image:{digest.hexdigest()[:16]}"


def rendered(
    folder: Path,
    name: str,
    answers: Mapping[str, Any],
    settings: Mapping[str, str] | None = None,
    template: Path = ROOT,
    version: str = "HEAD",
) -> Stack:
    """Render a stack of the working tree's template, or of another version, into `folder`/`name`; starts nothing.

    It has free ports.
    """
    data = {"project_name": f"{PREFIX}-{name}", "http_port": free_port(), **answers}
    if data.get("tls", "none") != "none":
        data = {"https_port": free_port(), **data}
    else:
        data.pop("https_port", None)
    stack = Stack(folder / f"{PREFIX}-{name}")
    if shutil.which("docker"):
        swept(data["project_name"])
    copier.run_copy(str(template), stack.folder, data=data, defaults=True, quiet=True, vcs_ref=version)
    own = {"STORE_PORT": str(free_port()), "MLFLOW_IMAGE": image_tag(stack.folder)}
    if os.getuid() == 0:
        # Debian's own postgres user: a stand-in image may hold a data folder of that user.
        own |= {"STACK_UID": "999", "STACK_GID": "999"}
    for key, value in {**own, **(settings or {})}.items():
        stack.setting(key, value)
    stack.make("init")
    return stack


def removed(stack: Stack) -> None:
    """Remove the stack's containers, networks, volumes and folder; fail if anything is left."""
    run(
        "docker",
        "compose",
        "--profile",
        "*",
        "down",
        "--volumes",
        "--remove-orphans",
        "--timeout",
        "5",
        cwd=stack.folder,
    )
    assert leftovers(stack.name, "container", "network", "volume") == []
    shutil.rmtree(stack.folder)


@contextlib.contextmanager
def stack(
    folder: Path, name: str, answers: Mapping[str, Any], settings: Mapping[str, str] | None = None
) -> Iterator[Stack]:
    """Render a stack, not started, and remove every trace of it afterwards. Skips where no engine answers."""
    engine()
    made = rendered(folder, name, answers, settings)
    try:
        yield made
    finally:
        removed(made)
