"""What holds for every stack's k8s/, in what kustomize makes of it: each check takes manifests, returns its faults."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from invariants import SECRETS
from linters import tool

Manifest = dict[str, Any]

# Kinds that an operator or the Gateway API brings: no schema of Kubernetes knows them, so they have their own checks.
CUSTOM = {
    ("HTTPRoute", "gateway.networking.k8s.io/v1"),
    ("Cluster", "postgresql.cnpg.io/v1"),
    ("ExternalSecret", "external-secrets.io/v1"),
    ("ServiceMonitor", "monitoring.coreos.com/v1"),
}
WORKLOADS = ("Deployment", "StatefulSet", "Job", "CronJob")
# A name that sounds like a secret, and is the place of one, or none.
PLACES = re.compile(r".*_FILE|STACK_.*|OAUTH2_PROXY_SKIP_JWT_BEARER_TOKENS")


def kustomize(folder: Path) -> list[Manifest]:
    """Return what kustomize makes of a folder. Raises RuntimeError with its words."""
    done = subprocess.run([tool("kubectl"), "kustomize", str(folder)], capture_output=True, text=True)
    if done.returncode or done.stderr.strip():
        raise RuntimeError(done.stderr.strip())
    return [document for document in yaml.load_all(done.stdout, yaml.CSafeLoader) if document]


def where(manifest: Manifest) -> str:
    """Return the kind and the name of a manifest."""
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def pod_of(manifest: Manifest) -> Manifest | None:
    """Return the template of a workload's pods: metadata and spec."""
    if manifest["kind"] not in WORKLOADS:
        return None
    spec = manifest["spec"]
    return (spec["jobTemplate"]["spec"] if manifest["kind"] == "CronJob" else spec)["template"]


def pods(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """Yield each workload with its pods' template."""
    for manifest in manifests:
        if (pod := pod_of(manifest)) is not None:
            yield manifest, pod


def schema_faults(manifest: Manifest, version: str) -> list[str]:
    """The schemas of Kubernetes, without a word that they do not know."""
    if (manifest["kind"], manifest["apiVersion"]) in CUSTOM:
        return []
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{where(manifest)}: {version}: {error.message}"]
    except kubernetes_validate.SchemaNotFoundError:
        return [f"{where(manifest)}: Kubernetes {version} has no {manifest['apiVersion']} {manifest['kind']}"]
    return []


def restricted(manifests: list[Manifest]) -> list[str]:
    """The profile `restricted` of Pod Security, and a read-only root besides; the namespace enforces it."""
    found = []
    for manifest, pod in pods(manifests):
        spec, name = pod["spec"], where(manifest)
        secure = spec.get("securityContext", {})
        if secure.get("runAsNonRoot") is not True or not secure.get("runAsUser", 0) > 0:
            found.append(f"{name}: may run as root")
        if secure.get("seccompProfile") != {"type": "RuntimeDefault"}:
            found.append(f"{name}: has no seccomp profile")
        found += [f"{name}: shares {word}" for word in ("hostNetwork", "hostPID", "hostIPC") if spec.get(word)]
        kinds = {"configMap", "emptyDir", "persistentVolumeClaim", "secret", "projected"}
        for volume in spec.get("volumes", ()):
            found += [f"{name}: volume {volume['name']} is of a kind that is not allowed"] * (
                not (volume.keys() - {"name"}) <= kinds
            )
        for container in [*spec["containers"], *spec.get("initContainers", ())]:
            wanted = {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            if container.get("securityContext") != wanted:
                found.append(f"{name}: {container['name']} is not locked in")
    labels = [m["metadata"].get("labels", {}) for m in manifests if m["kind"] == "Namespace"]
    if [label.get("pod-security.kubernetes.io/enforce") for label in labels] != ["restricted"]:
        found.append("the namespace does not enforce the profile restricted")
    return found


def careful(manifests: list[Manifest]) -> list[str]:
    """No key to the cluster, no variables of Services, limits, probes, a roll-out that never has fewer servers."""
    found = []
    for manifest, pod in pods(manifests):
        spec, name = pod["spec"], where(manifest)
        if spec.get("automountServiceAccountToken") is not False or spec.get("serviceAccountName") != "mlflow":
            found.append(f"{name}: has a key to the cluster")
        # A Service called mlflow would set MLFLOW_PORT, which MLflow's server takes for its port.
        if spec.get("enableServiceLinks") is not False:
            found.append(f"{name}: sees variables of Services")
        for container in spec["containers"]:
            resources = container.get("resources", {})
            for kind in ("requests", "limits"):
                if set(resources.get(kind, {})) != {"cpu", "memory"}:
                    found.append(f"{name}: {container['name']} has no {kind} of cpu and memory")
            if manifest["kind"] in ("Deployment", "StatefulSet"):
                missing = {"livenessProbe", "readinessProbe"} - container.keys()
                found += [f"{name}: {container['name']} has no {probe}" for probe in sorted(missing)]
            mounted = {mount["mountPath"] for mount in container.get("volumeMounts", ())}
            found += [f"{name}: {container['name']} has nowhere to write temporary files"] * ("/tmp" not in mounted)
        if manifest["kind"] == "Deployment":
            strategy = manifest["spec"].get("strategy", {})
            if strategy.get("type") == "Recreate":
                if manifest["spec"].get("replicas") != 1:
                    found.append(f"{name}: several of what there can be one of")
            elif strategy.get("rollingUpdate", {}).get("maxUnavailable") != 0:
                found.append(f"{name}: a roll-out has fewer of them")
    return found


def matches(selector: Manifest, labels: Manifest) -> bool:
    """Whether a selector of labels selects; an empty one selects everything."""
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def pointers(manifests: list[Manifest], secrets: set[str]) -> list[str]:
    """Whatever names something names what is there: selectors, targets, ports, ConfigMaps, Secrets, volumes.

    `secrets` are the Secrets that 'make k8s-secrets' makes.
    """
    found = []
    names = {(m["kind"], m["metadata"]["name"]) for m in manifests}
    templates = [(manifest, pod) for manifest, pod in pods(manifests)]
    namespaces = {m["metadata"].get("namespace") for m in manifests if m["kind"] != "Namespace"}
    own = {m["metadata"]["name"] for m in manifests if m["kind"] == "Namespace"}
    found += [f"namespaces {namespaces} are used, and {own} is made"] * (namespaces != own)
    if len(names) != len(manifests):
        found.append("two manifests have one kind and name")
    for manifest in manifests:
        kind, spec, name = manifest["kind"], manifest.get("spec", {}), where(manifest)
        if kind in ("Deployment", "StatefulSet") and not matches(
            spec["selector"], spec["template"]["metadata"]["labels"]
        ):
            found.append(f"{name}: does not select its own pods")
        if kind == "StatefulSet" and ("Service", spec["serviceName"]) not in names:
            found.append(f"{name}: there is no Service {spec['serviceName']}")
        if kind == "Service":
            selected = [p for _, p in templates if matches({"matchLabels": spec["selector"]}, p["metadata"]["labels"])]
            found += [f"{name}: selects the pods of {len(selected)} workloads"] * (len(selected) != 1)
            ports = {port["name"] for pod in selected for c in pod["spec"]["containers"] for port in c.get("ports", ())}
            found += [
                f"{name}: no pod has a port {p['targetPort']}" for p in spec["ports"] if p["targetPort"] not in ports
            ]
        if kind in ("PodDisruptionBudget", "NetworkPolicy"):
            selector = spec["selector" if kind == "PodDisruptionBudget" else "podSelector"]
            chosen = [m for m, pod in templates if matches(selector, pod["metadata"]["labels"])]
            operator = "cnpg.io/cluster" in selector["matchLabels"]
            if not chosen and not operator:
                found.append(f"{name}: selects nothing")
            if kind == "PodDisruptionBudget" and [m["kind"] for m in chosen] != ["Deployment"]:
                found.append(f"{name}: is not about one Deployment")
        if kind == "HorizontalPodAutoscaler":
            target = spec["scaleTargetRef"]
            found += [f"{name}: scales what is not there"] * ((target["kind"], target["name"]) not in names)
            counted = [
                m for m in manifests if where(m) == f"{target['kind']} {target['name']}" and "replicas" in m["spec"]
            ]
            found += [f"{name}: the Deployment says a number of its own"] * bool(counted)
        for service, port in backends(manifest):
            there = [p for m in manifests if where(m) == f"Service {service}" for p in m["spec"]["ports"]]
            found += [f"{name}: leads to {service}:{port}, which is no Service's"] * (
                port not in {p["port"] for p in there} | {p["name"] for p in there}
            )
    for manifest, pod in templates:
        spec, name = pod["spec"], where(manifest)
        claims = {c["metadata"]["name"] for c in manifest["spec"].get("volumeClaimTemplates", ())}
        volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
        for container in spec["containers"]:
            for mount in container.get("volumeMounts", ()):
                found += [f"{name}: mounts {mount['name']}, which it does not have"] * (
                    mount["name"] not in {*volumes, *claims}
                )
            for source in container.get("envFrom", ()):
                found += [f"{name}: reads {source['configMapRef']['name']}, which is not there"] * (
                    ("ConfigMap", source["configMapRef"]["name"]) not in names
                )
        used = {mount["name"] for c in spec["containers"] for mount in c.get("volumeMounts", ())}
        found += [f"{name}: does not use its volume {volume}" for volume in sorted(volumes.keys() - used)]
        for volume in volumes.values():
            if "configMap" in volume and not volume["configMap"].get("optional"):
                found += [f"{name}: there is no ConfigMap {volume['configMap']['name']}"] * (
                    ("ConfigMap", volume["configMap"]["name"]) not in names
                )
            if "secret" in volume:
                secret = volume["secret"]
                if not secret.get("optional") and secret["secretName"] not in secrets:
                    found.append(f"{name}: nobody makes the Secret {secret['secretName']}")
                # Readable by the group that the pod's fsGroup is, and by nobody else; YAML has read 0440 as octal.
                if secret.get("defaultMode") != 0o440:
                    found.append(f"{name}: the Secret {secret['secretName']} has the mode {secret.get('defaultMode')}")
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                found += [f"{name}: there is no volume {claim}"] * (("PersistentVolumeClaim", claim) not in names)
    return found


def backends(manifest: Manifest) -> Iterator[tuple[str, Any]]:
    """Yield (Service, port) of each way in."""
    if manifest["kind"] == "HTTPRoute":
        for rule in manifest["spec"]["rules"]:
            yield from ((one["name"], one["port"]) for one in rule["backendRefs"])
    if manifest["kind"] == "Ingress":
        for rule in manifest["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                service = path["backend"]["service"]
                yield service["name"], service["port"].get("name") or service["port"]["number"]


def policies(manifests: list[Manifest]) -> list[str]:
    """Every pod is in a NetworkPolicy that lets nobody in, and databases and stores open to those who need them."""
    found = []
    rules = [m["spec"] for m in manifests if m["kind"] == "NetworkPolicy"]
    for manifest, pod in pods(manifests):
        labels = pod["metadata"]["labels"]
        about = [rule for rule in rules if matches(rule["podSelector"], labels)]
        if not any({"Ingress", "Egress"} <= set(rule["policyTypes"]) for rule in about):
            found.append(f"{where(manifest)}: no NetworkPolicy is about it")
        ways = [way for rule in about for way in rule.get("ingress", ()) or ()]
        found += [f"{where(manifest)}: anybody may come in"] * any(not way.get("from") for way in ways)
        if labels["app.kubernetes.io/name"] in ("postgres", "object-store"):
            who = [source for way in ways for source in way.get("from", ())]
            wanted = [{"podSelector": {"matchLabels": {"reaches-data": "yes"}}}]
            found += [f"{where(manifest)}: {who} may come in"] * (who != wanted)
    return found


def secrets_in_the_open(manifests: list[Manifest]) -> list[str]:
    """No secret is in a ConfigMap, an environment or an argument, and no Secret is among the manifests."""
    found = [f"{where(m)}: a secret would be in the repository" for m in manifests if m["kind"] == "Secret"]
    values: list[tuple[str, str, str]] = []
    for manifest in manifests:
        if manifest["kind"] == "ConfigMap":
            values += [(where(manifest), key, text) for key, text in manifest.get("data", {}).items()]
    for manifest, pod in pods(manifests):
        for container in pod["spec"]["containers"]:
            values += [(where(manifest), one["name"], one.get("value", "")) for one in container.get("env", ())]
            values += [(where(manifest), "args", word) for word in container.get("args", ())]
    for name, key, text in values:
        if re.search(r"PASSWORD|SECRET|TOKEN|PASSPHRASE|_KEY$", key) and text and not PLACES.fullmatch(key):
            found.append(f"{name}: {key} is a secret in the open")
        found += [f"{name}: {key} holds {what}" for what, pattern in SECRETS if pattern.search(f"{key}={text}")]
    return found


def images(manifests: list[Manifest]) -> list[tuple[str, str]]:
    """Return (where, image) of every container."""
    return [(where(m), c["image"]) for m, pod in pods(manifests) for c in pod["spec"]["containers"]] + [
        (where(m), m["spec"]["imageName"]) for m in manifests if m["kind"] == "Cluster"
    ]


def unpinned(manifests: list[Manifest]) -> list[str]:
    """Every image has a version."""
    return [
        f"{name}: {image} has no version"
        for name, image in images(manifests)
        if not re.search(r":v?[\w.-]*\d[\w.-]*(@sha256:[0-9a-f]{64})?$", image)
    ]


def faults(manifests: list[Manifest], secrets: set[str]) -> list[str]:
    """Every check but the schemas."""
    return [
        *restricted(manifests),
        *careful(manifests),
        *pointers(manifests, secrets),
        *policies(manifests),
        *secrets_in_the_open(manifests),
        *unpinned(manifests),
    ]
