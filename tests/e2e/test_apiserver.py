"""k8s/ against a real API server: it takes every manifest, and its profile `restricted` takes every pod.

It has no controllers and no nodes, see apiserver.py: no pod starts here. tests/e2e/test_pods.py runs them.
"""

import copy
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_model as kube
import pytest
import yaml
from apiserver import Cluster, cluster
from combinations import Answers
from kubernetes_model import Manifest
from rendering import render
from stacks import Stack, run

STACKS: dict[str, Answers] = {
    "solo": {},
    "team": {"purpose": "team", "backups": True, "monitoring": True},
    "cloud": {"purpose": "cloud", "auth": "mlflow"},
    "login": {"purpose": "team", "auth": "oidc", "url_prefix": "/mlflow", "backups": True},
    "minio": {"purpose": "team", "artifact_store": "minio", "auth": "mlflow"},
}
# The third is production with every component that neither of the others has.
OVERLAYS = ("dev", "production", "rest")
# What the profile must refuse in a pod of ours.
PLANTED: dict[str, Callable[[Manifest], object]] = {
    "runAsUser=0": lambda pod: pod["securityContext"].update(runAsUser=0),
    "privileged": lambda pod: pod["containers"][0].update(securityContext={"privileged": True}),
    "unrestricted capabilities": lambda pod: pod["containers"][0]["securityContext"].pop("capabilities"),
    "allowPrivilegeEscalation != false": lambda pod: pod["containers"][0]["securityContext"].pop(
        "allowPrivilegeEscalation"
    ),
    "seccompProfile": lambda pod: pod["securityContext"].pop("seccompProfile"),
    "host namespaces": lambda pod: pod.update(hostNetwork=True),
    "hostPath": lambda pod: pod["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
}


@pytest.fixture(scope="module")
def api() -> Iterator[Cluster]:
    """The API server."""
    with cluster() as made:
        yield made


@pytest.fixture(scope="module")
def stacks(template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Stack]:
    """Each stack for each overlay, filled in, with secrets; every one has a namespace of its own."""
    base, found = tmp_path_factory.mktemp("stacks"), {}
    for name, answers in STACKS.items():
        root = render(template, base / name, {**answers, "kubernetes": "kustomize", "project_name": f"{name}-stack"})
        everything(root)
        done = run("scripts/init.sh", "init", cwd=root)
        assert done.returncode == 0, done.stderr
        for overlay in OVERLAYS:
            found[name, overlay] = moved(root, f"{name}-stack", f"{name}-{overlay}")
    return found


def moved(root: Path, old: str, new: str) -> Stack:
    """Return a copy of a stack under another name, filled in. It is as if rendered, and much faster."""
    folder = root.parent / new
    shutil.copytree(root, folder)
    for path in (*(folder / "k8s").rglob("*"), folder / "scripts" / "k8s.sh", folder / ".copier-answers.yml"):
        if path.is_file():
            text = path.read_text().replace(old, new)
            if "k8s" in path.parts:
                text = re.sub(r"(registry|database|login|mlflow)\.example\.com", r"\1.test", text)
            path.write_text(text)
    return Stack(folder)


def everything(root: Path) -> None:
    """Write the overlay `rest`."""
    overlays = root / "k8s" / "overlays"
    listed = "".join((overlays / name / "kustomization.yaml").read_text().split("# Also")[0] for name in OVERLAYS[:2])
    rest = {path.name for path in (root / "k8s" / "components").iterdir()}
    rest -= {*re.findall(r"(?m)^  - \.\./\.\./components/([\w-]+)$", listed)}
    production = yaml.safe_load((overlays / "production" / "kustomization.yaml").read_text())
    made = {
        **{key: production[key] for key in ("apiVersion", "kind", "namespace", "labels")},
        "resources": ["../production"],
        "components": [f"../../components/{name}" for name in sorted(rest)],
    }
    (overlays / "rest").mkdir()
    (overlays / "rest" / "kustomization.yaml").write_text(yaml.safe_dump(made))


def k8s(api: Cluster, stack: Stack, command: str, overlay: str, fails: bool = False) -> str:
    """Run `make k8s-…` of a stack, which must succeed (or fail, with `fails`). Return all that it says."""
    env = {"KUBECONFIG": str(api.config), "OVERLAY": overlay, "PATH": path_with_kubectl()}
    return stack.make(f"k8s-{command}", env=env, fails=fails)


def path_with_kubectl() -> str:
    """Return PATH with the kubectl of the test requirements first."""
    return f"{Path(kube.tool('kubectl')).parent}:{os.environ['PATH']}"


def pods_of(manifests: list[Manifest]) -> Iterator[Manifest]:
    """Yield a bare pod for each workload, as its controller would make it."""
    for manifest, template in kube.pods(manifests):
        spec = copy.deepcopy(template["spec"])
        for claim in manifest["spec"].get("volumeClaimTemplates", ()):
            name = claim["metadata"]["name"]
            spec.setdefault("volumes", []).append({"name": name, "persistentVolumeClaim": {"claimName": name}})
        metadata = {
            "name": f"{manifest['kind'].lower()}-{manifest['metadata']['name']}",
            "namespace": manifest["metadata"]["namespace"],
            "labels": template["metadata"]["labels"],
        }
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def versions(api: Cluster, namespace: str) -> dict[str, Any]:
    """Return the generation of what is in a namespace: it grows whenever something is changed.

    A NetworkPolicy's also grows when it is applied as it is with an empty list, which is kept as none.
    """
    kinds = "deployments,statefulsets,jobs,cronjobs,services,configmaps,pdb,hpa,ingresses,httproutes"
    listed = api.kubectl("get", kinds, "--namespace", namespace, "--output", "yaml")
    return {
        kube.where(one): one["metadata"].get("generation", one["metadata"]["resourceVersion"])
        for one in yaml.safe_load(listed)["items"]
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", STACKS)
def test_the_cluster_takes_it(api: Cluster, stacks: dict[tuple[str, str], Stack], name: str, overlay: str) -> None:
    """`make k8s-secrets`, `k8s-check`, then everything, without a warning, twice; and every pod under the profile."""
    stack = stacks[name, overlay]
    folder = stack.folder / "k8s" / "overlays" / overlay
    said = k8s(api, stack, "check", overlay, fails=True)
    assert f"has no namespace {stack.name}" in said
    assert "has its Secrets" in k8s(api, stack, "secrets", overlay)
    assert f"would take k8s/overlays/{overlay}" in k8s(api, stack, "check", overlay)
    manifests = kube.kustomize(folder)
    apply = ("apply", "--server-side", "--kustomize", str(folder))
    said = api.kubectl(*apply, "--force-conflicts")
    assert "arning" not in said and said.count("serverside-applied") == len(manifests)
    before = versions(api, stack.name)
    assert len(before) > 5
    api.kubectl(*apply)
    assert versions(api, stack.name) == before
    made = list(pods_of(manifests))
    said = api.kubectl("create", "--filename", "-", text=yaml.safe_dump_all(made))
    assert "arning" not in said and said.count(" created") == len(made)


def test_it_refuses_what_the_profile_forbids(api: Cluster, stacks: dict[tuple[str, str], Stack]) -> None:
    """Else the test above would say nothing: the same pods, each with one thing that is not allowed."""
    stack = stacks["team", "production"]
    folder = stack.folder / "k8s" / "overlays" / "production"
    api.kubectl("apply", "--server-side", "--force-conflicts", "--kustomize", str(folder))
    for pod in pods_of(kube.kustomize(folder)):
        for what, change in PLANTED.items():
            other = copy.deepcopy(pod)
            other["metadata"]["name"] = "planted"
            change(other["spec"])
            said = api.kubectl("create", "--filename", "-", text=yaml.safe_dump(other), fails=True)
            assert 'violates PodSecurity "restricted:latest"' in said and what in said, said


def test_a_word_that_it_does_not_know_is_refused(api: Cluster, stacks: dict[tuple[str, str], Stack]) -> None:
    """`make k8s-check` shows what the cluster says, and changes nothing."""
    stack = stacks["solo", "dev"]
    k8s(api, stack, "secrets", "dev")
    path = stack.folder / "k8s" / "base" / "deployment.yaml"
    kept = path.read_text()
    try:
        path.write_text(kept.replace("enableServiceLinks:", "enableServiceLink:"))
        said = k8s(api, stack, "check", "dev", fails=True)
        assert "enableServiceLink" in said and "the cluster refuses k8s/overlays/dev" in said
    finally:
        path.write_text(kept)


@pytest.mark.parametrize("name", ["solo", "login"])
def test_migrate_and_apply(api: Cluster, stacks: dict[tuple[str, str], Stack], name: str) -> None:
    """The order of both commands, with hands that say what controllers would."""
    stack = moved(stacks[name, "dev"].folder, f"{name}-dev", f"{name}-order")
    assert "run 'make k8s-secrets' first" in k8s(api, stack, "migrate", "dev", fails=True)
    k8s(api, stack, "secrets", "dev")
    servers = ("get", "deployment", "mlflow", "--namespace", stack.name)
    with api.hands("Failed"):
        said = k8s(api, stack, "apply", "dev", fails=True)
        assert "failed; what it said is above" in said
    assert "NotFound" in api.kubectl(*servers, fails=True)
    with api.hands():
        assert "ready" in k8s(api, stack, "apply", "dev")
        before = versions(api, stack.name)
        assert "Deployment mlflow" in before
        # Again, as an upgrade would: the job is made anew, the rest is as it was.
        assert "ready" in k8s(api, stack, "apply", "dev")
        after = versions(api, stack.name)
    if name == "login":
        assert {k: v for k, v in after.items() if not k.startswith("Job ")} == {
            k: v for k, v in before.items() if not k.startswith("Job ")
        }
