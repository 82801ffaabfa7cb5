"""A real API server of Kubernetes with its database, as controller-runtime's envtest starts them.

There is no node and no controller: what is applied is checked, admitted and kept, and nothing comes of it but what
`hands` says. Both are built from their Go modules, which takes up to a quarter of an hour. So the tests run only
where that has been done: by this file as a program, in the environment of the tests, or elsewhere, and then
KUBE_APISERVER names the program.
"""

import contextlib
import functools
import json
import os
import re
import secrets
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes_model as kube
import requests
import yaml
from linters import tool
from outside import built
from stacks import free_port, run

# Its module needs those of its own folder staging/, which are published with the same numbers below 1.
KUBERNETES = "k8s.io/kubernetes@v1.34.1"
ETCD = "go.etcd.io/etcd/server/v3@v3.6.4"
PATIENCE = 90


@functools.cache
def server() -> Path:
    """Return the API server's program. Its first build takes minutes."""
    if given := os.environ.get("KUBE_APISERVER"):
        return Path(given)

    def build(folder: Path, go: Callable[..., str]) -> Path:
        module, _, version = KUBERNETES.partition("@")
        staging = version.replace("v1.", "v0.")
        text = Path(json.loads(go("mod", "download", "-json", KUBERNETES))["GoMod"]).read_text()
        own = re.findall(r"(?m)^\t(\S+) => \./staging/", text)
        go("mod", "init", "build")
        go("mod", "edit", *(f"-replace={name}={name}@{staging}" for name in own))
        go("get", f"{module}/cmd/kube-apiserver@{version}")
        go("build", "-ldflags", "-s -w", "-o", "kube-apiserver", f"{module}/cmd/kube-apiserver")
        return folder / "kube-apiserver"

    return built("kube-apiserver", KUBERNETES, build)


@functools.cache
def database() -> Path:
    """Return etcd's program."""

    def build(folder: Path, go: Callable[..., str]) -> Path:
        module, _, version = ETCD.partition("@")
        go("mod", "init", "build")
        go("get", f"{module}@{version}")
        go("build", "-ldflags", "-s -w", "-o", "etcd", module)
        return folder / "etcd"

    return built("etcd", ETCD, build)


@dataclass
class Cluster:
    """What its administrator has."""

    url: str
    token: str
    folder: Path  # certificates, logs, the configuration for kubectl

    @property
    def config(self) -> Path:
        """For kubectl."""
        return self.folder / "kubeconfig"

    def kubectl(self, *words: str, fails: bool = False, text: str | None = None) -> str:
        """Run kubectl, which must succeed (or fail, with `fails`). Return all that it says."""
        done = run(tool("kubectl"), *words, env={"KUBECONFIG": str(self.config)}, input=text)
        assert (done.returncode != 0) == fails, f"kubectl {' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def ask(self, method: str, path: str, **more: Any) -> requests.Response:
        """Speak to the API itself."""
        return requests.request(
            method,
            self.url + path,
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/merge-patch+json"},
            verify=str(self.folder / "apiserver.crt"),
            timeout=20,
            **more,
        )

    def know(self, kinds: set[tuple[str, str]]) -> None:
        """Let kinds of others be kept; what is in them, nobody looks at."""
        for kind, version in sorted(kinds):
            group, _, number = version.partition("/")
            plural = f"{kind.lower()}s"
            shape = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
            one = {"name": number, "served": True, "storage": True, "schema": {"openAPIV3Schema": shape}}
            definition = {
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {
                    "name": f"{plural}.{group}",
                    # Such names are kept for those whom Kubernetes has approved.
                    "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
                },
                "spec": {
                    "group": group,
                    "scope": "Namespaced",
                    "names": {"kind": kind, "plural": plural},
                    "versions": [one],
                },
            }
            self.kubectl("apply", "--filename", "-", text=yaml.safe_dump(definition))
            self.kubectl("wait", "--for=condition=established", f"crd/{plural}.{group}", "--timeout=30s")

    @contextlib.contextmanager
    def hands(self, job: str = "Complete") -> Iterator[None]:
        """Stand in for the controllers: every job ends so, and every Deployment has all its pods."""
        over, wrong = threading.Event(), []

        def work() -> None:
            while not over.wait(0.3):
                for one in self.ask("GET", "/apis/batch/v1/jobs").json()["items"]:
                    if not one.get("status", {}).get("conditions"):
                        wrong.extend(self._status("batch/v1", "jobs", one, ended(job)))
                for one in self.ask("GET", "/apis/apps/v1/deployments").json()["items"]:
                    wanted, number = one["spec"]["replicas"], one["metadata"]["generation"]
                    if one.get("status", {}).get("observedGeneration") != number:
                        names = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
                        status = dict.fromkeys(names, wanted) | {"observedGeneration": number}
                        wrong.extend(self._status("apps/v1", "deployments", one, status))

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        assert wrong == []

    def _status(self, version: str, kind: str, one: dict[str, Any], status: dict[str, Any]) -> list[str]:
        place = f"/apis/{version}/namespaces/{one['metadata']['namespace']}/{kind}/{one['metadata']['name']}/status"
        answer = self.ask("PATCH", place, data=json.dumps({"status": status}))
        return [answer.text] * (answer.status_code not in (200, 404))  # it may have gone meanwhile


def ended(how: str) -> dict[str, Any]:
    """Return the status of a job that is over: Complete or Failed."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    before = {"Complete": "SuccessCriteriaMet", "Failed": "FailureTarget"}[how]
    conditions = [{"type": name, "status": "True", "lastTransitionTime": now} for name in (before, how)]
    times = {"startTime": now} | ({"completionTime": now} if how == "Complete" else {})
    return {"conditions": conditions, **times, "succeeded" if how == "Complete" else "failed": 1}


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """An API server that enforces what a cluster's does, without a node."""
    programs = (database(), server())
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stopped:
        folder, token = Path(name), secrets.token_hex(20)
        data, peers, port = (free_port() for _ in range(3))
        run("openssl", "genrsa", "-out", str(folder / "key"), "2048")
        (folder / "tokens").touch(0o600)
        (folder / "tokens").write_text(f"{token},admin,admin,system:masters\n")
        made = Cluster(f"https://127.0.0.1:{port}", token, folder)
        commands = (
            (
                f"--data-dir={folder / 'data'}",
                f"--listen-client-urls=http://127.0.0.1:{data}",
                f"--advertise-client-urls=http://127.0.0.1:{data}",
                f"--listen-peer-urls=http://127.0.0.1:{peers}",
                f"--initial-advertise-peer-urls=http://127.0.0.1:{peers}",
                f"--initial-cluster=default=http://127.0.0.1:{peers}",
                "--unsafe-no-fsync",
            ),
            (
                f"--etcd-servers=http://127.0.0.1:{data}",
                f"--cert-dir={folder}",
                "--bind-address=127.0.0.1",
                f"--secure-port={port}",
                "--endpoint-reconciler-type=none",
                "--service-cluster-ip-range=10.0.0.0/24",
                "--service-account-issuer=https://localhost",
                f"--service-account-key-file={folder / 'key'}",
                f"--service-account-signing-key-file={folder / 'key'}",
                f"--token-auth-file={folder / 'tokens'}",
                "--authorization-mode=RBAC",
                # A cluster may allow it: then it is the profile that refuses such a pod.
                "--allow-privileged=true",
            ),
        )
        for program, words in zip(programs, commands, strict=True):
            log = stopped.enter_context((folder / f"{program.name}.log").open("w"))
            process = subprocess.Popen((program, *words), stdout=log, stderr=log, cwd=folder)
            stopped.callback(process.wait, 20)
            stopped.callback(process.terminate)
        end = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError):
                if made.ask("GET", "/readyz").status_code == 200:
                    break
            said = (folder / f"{programs[1].name}.log").read_text()
            assert process.poll() is None and time.monotonic() < end, said[-3000:]
            time.sleep(0.3)
        entry = {
            "clusters": [
                {
                    "name": "test",
                    "cluster": {"server": made.url, "certificate-authority": str(folder / "apiserver.crt")},
                }
            ],
            "users": [{"name": "admin", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            "current-context": "test",
        }
        made.config.touch(0o600)
        made.config.write_text(yaml.safe_dump(entry))
        made.know(kube.CUSTOM)
        yield made


if __name__ == "__main__":
    print(server(), database(), sep="\n")
