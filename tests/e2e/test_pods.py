"""The pods of k8s/overlays/dev really run: podman plays the manifests on the images that Compose built.

Podman is no cluster. It honours command, environment, user, read-only root, capabilities, volumes and Secrets. It has
no Services, policies, probes of readiness or roll-outs, and gives a Secret's files to root whatever fsGroup says. So
the test starts each workload's pod by itself, under its Service's name, and lets everybody read those files.
"""

import copy
import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_model as kube
import outside
import pytest
import yaml
from kubernetes_model import Manifest
from needs import engine
from stacks import HERE, PREFIX, ROOT, Stack, run, stack

pytestmark = pytest.mark.docker

PODMAN = ("podman", "--cgroup-manager", "cgroupfs")
NODE = f"""FROM {outside.NODE_BASE}
RUN apt-get -qq update && apt-get -qq install --yes --no-install-recommends podman crun netavark aardvark-dns conmon \\
  iptables nftables catatonit socat >/dev/null
VOLUME /var/lib/containers
"""
TEAM = {"purpose": "team", "backups": True, "kubernetes": "kustomize"}
SERVERS = ("mlflow-1", "mlflow-2")
PATIENCE = 150

# Logs one number after another with the stock client, and says which of them were acknowledged.
WRITER = """
import sys
import time
import mlflow
client = mlflow.MlflowClient()
run = client.create_run(client.create_experiment(sys.argv[1])).info.run_id
print("run", run, flush=True)
failed = 0
for number in range(int(sys.argv[2])):
    try:
        client.log_metric(run, "number", number, step=number)
        print("ack", number, flush=True)
    except Exception as error:
        failed += 1
        print("err", number, type(error).__name__, str(error)[:200].replace(chr(10), " "), flush=True)
print("end", failed, flush=True)
"""
READER = """
import json
import sys
import mlflow
found = mlflow.MlflowClient().get_metric_history(sys.argv[1], "number")
print(json.dumps(sorted(int(metric.value) for metric in found)))
"""


class Node:
    """A machine on which podman plays pods."""

    def __init__(self, name: str):
        self.name = name

    def do(self, *words: str, fails: bool | None = False, **more: Any) -> str:
        """Run a command in there, which must succeed (or fail, with `fails`; None: either). Return all that it says."""
        # It would say each time that this kind of control groups is going to go.
        quiet = ("--env", "PODMAN_IGNORE_CGROUPSV1_WARNING=1")
        done = run("docker", "exec", "--interactive", *quiet, self.name, *words, **more)
        said = done.stdout + done.stderr
        assert fails is None or (done.returncode != 0) == fails, f"{' '.join(words)}\n{said}"
        return said

    def podman(self, *words: str, **more: Any) -> str:
        """Run podman in there."""
        return self.do(*PODMAN, *words, **more)

    def load(self, image: str, called: str) -> None:
        """Bring an image of the engine in, as localhost/`called`."""
        saved = subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE)
        into = ["docker", "exec", "--interactive", self.name, *PODMAN, "load", "--quiet"]
        done = subprocess.run(into, stdin=saved.stdout, capture_output=True, text=True, timeout=600)
        assert saved.wait() == 0 and done.returncode == 0, done.stderr
        self.podman("tag", done.stdout.split()[-1], f"localhost/{called}")

    def play(self, *manifests: Manifest, alias: str = "", fails: bool | None = False) -> str:
        """Play manifests; `alias` is the name of the Service that leads to them."""
        network = f"stack:alias={alias}" if alias else "stack"
        text = yaml.safe_dump_all(manifests)
        return self.podman("kube", "play", "--quiet", "--network", network, "-", input=text, fails=fails)

    def gone(self, pod: str) -> None:
        """Remove a pod."""
        self.podman("pod", "rm", "--force", "--time", "2", "--ignore", pod)

    def ended(self, container: str) -> int:
        """Wait for the end of a container and return its code."""
        return int(self.podman("wait", container, timeout=PATIENCE).split()[-1])

    def inside(self, container: str, *words: str, **more: Any) -> str:
        """Run a command in a container of a pod."""
        return self.podman("exec", container, *words, **more)


class Cluster:
    """What k8s/overlays/dev gives, and the node on which it is played."""

    def __init__(self, node: Node, stack: Stack, manifests: list[Manifest], before: dict[str, str]):
        self.node, self.stack, self.manifests = node, stack, manifests
        self.before = before  # what was logged when Compose ran the stack
        self.configs = [manifest for manifest in manifests if manifest["kind"] == "ConfigMap"]

    def pod(self, workload: str, name: str = "", change: Callable[[Manifest], object] = lambda spec: None) -> Manifest:
        """Return a workload's pod as podman can play it; `change` is a fault to plant in its spec."""
        (found,) = [manifest for manifest in self.manifests if kube.where(manifest) == workload]
        template = copy.deepcopy(kube.pod_of(found))
        spec = template["spec"]
        for unknown in ("affinity", "topologySpreadConstraints", "serviceAccountName"):
            spec.pop(unknown, None)
        for container in spec["containers"]:
            container["image"] = f"localhost/{container['image'].rpartition('/')[2]}"
            for probe in ("livenessProbe", "readinessProbe", "startupProbe", "lifecycle"):
                container.pop(probe, None)
            # Podman has shared memory of its own there.
            container["volumeMounts"] = [row for row in container["volumeMounts"] if row["mountPath"] != "/dev/shm"]
        spec["volumes"] = [volume for volume in spec["volumes"] if volume["name"] != "shm"]
        for claim in found["spec"].get("volumeClaimTemplates", ()):
            name_of = claim["metadata"]["name"]
            spec["volumes"].append({"name": name_of, "persistentVolumeClaim": {"claimName": name_of}})
        for volume in spec["volumes"]:
            if "secret" in volume:
                volume["secret"]["defaultMode"] = 0o444
        change(spec)
        name = name or found["metadata"]["name"]
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"restartPolicy": "Never", **spec},
        }

    def play(self, workload: str, name: str = "", **more: Any) -> str:
        """Play a workload's pod under the name of its Service."""
        pod = self.pod(workload, name, **more)
        service = workload.split()[1]
        return self.node.play(*self.configs, pod, alias=service if service != pod["metadata"]["name"] else "")

    def job(self, workload: str, name: str = "", **more: Any) -> tuple[int, str]:
        """Play a job's pod, wait for its end, remove it; return its code and what it said."""
        pod = self.pod(workload, name, **more)
        pod["spec"]["restartPolicy"] = "Never"
        name, container = pod["metadata"]["name"], pod["spec"]["containers"][0]["name"]
        said = self.node.play(*self.configs, pod, fails=None)
        code = self.node.ended(f"{name}-{container}")
        said += self.node.podman("logs", f"{name}-{container}", fails=None)
        self.node.gone(name)
        return code, said

    def server(self, name: str, **more: Any) -> None:
        """Start a server, and wait until its own readiness probe is content."""
        self.play("Deployment mlflow", name, **more)
        (found,) = [m for m in self.manifests if kube.where(m) == "Deployment mlflow"]
        probe = found["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["exec"]["command"]
        until = time.monotonic() + PATIENCE
        while said := self.node.inside(f"{name}-mlflow", *probe, fails=None).strip():
            assert time.monotonic() < until, said + self.node.podman("logs", f"{name}-mlflow", fails=None)
            time.sleep(1)


@pytest.fixture(scope="module")
def node() -> Iterator[Callable[..., Node]]:
    """Start machines with podman; all are removed afterwards, with what is on them. Skips where they cannot be made."""
    engine()
    if all(
        run("docker", *words, outside.NODE_BASE).returncode for words in (("image", "inspect"), ("pull", "--quiet"))
    ):
        pytest.skip(f"needs the image {outside.NODE_BASE}, and there is none")
    image = f"{PREFIX}-node"
    built = run("docker", "build", "--quiet", "--tag", image, "-", input=NODE)
    assert built.returncode == 0, built.stderr
    names: list[str] = []

    def start(port: int, backups: Path) -> Node:
        names.append(f"{PREFIX}-node-{secrets.token_hex(3)}")
        door = f"127.0.0.1:{port}:8080"
        here = ("--privileged", "--init", "--name", names[-1], "--label", outside.OWNER, "--publish", door)
        here += ("--volume", f"{backups}:/brought:ro")
        done = run("docker", "run", "--detach", *here, image, "sleep", "infinity")
        assert done.returncode == 0, done.stderr
        made = Node(names[-1])
        # On machines with both hierarchies of control groups crun wants one.
        made.do("sh", "-c", "! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified")
        made.podman("network", "create", "stack")
        return made

    yield start
    for name in names:
        run("docker", "rm", "--force", "--volumes", name)


@pytest.fixture(scope="module")
def cluster(node: Callable[..., Node], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The team's stack as Compose runs it, saved and stopped; then its database and its store in pods, both new."""
    with stack(tmp_path_factory.mktemp("pods"), "pods", TEAM) as one:
        # The manifests name the image as Compose does when .env says nothing.
        one.setting("MLFLOW_IMAGE", "")
        one.up()
        before = json.loads(one.client((HERE / "stock_client.py").read_text(), "write").splitlines()[-1])
        one.make("backup")
        one.make("down")
        manifests = kube.kustomize(one.folder / "k8s" / "overlays" / "dev")
        made = Cluster(node(one.answers["http_port"], one.folder / "backups"), one, manifests, before["known"])
        for image in sorted({image for _, image in kube.images(manifests)}):
            made.node.load(image, image.rpartition("/")[2])
        path = f"{Path(kube.tool('kubectl')).parent}:{os.environ['PATH']}"
        printed = one.make("k8s-secrets", "PRINT=1", env={"PATH": path})
        documents = [d for d in yaml.safe_load_all(printed[printed.index("apiVersion") :]) if d]
        for secret in (d for d in documents if d["kind"] == "Secret"):
            made.node.play(secret)
        for workload in ("StatefulSet postgres", "StatefulSet object-store"):
            made.play(workload)
        _until(made, "postgres-postgres", "pg_isready", "-q", "-h", "127.0.0.1", "-U", "mlflow", "-d", "mlflow")
        _until(made, "object-store-object-store", "curl", "-fsS", "-o", "/dev/null", "http://127.0.0.1:8333/healthz")
        code, said = made.job("Job object-store-init")
        assert code == 0, said
        yield made


def _until(cluster: Cluster, container: str, *probe: str) -> None:
    """Wait for a container's probe."""
    until = time.monotonic() + PATIENCE
    while said := cluster.node.inside(container, "sh", "-c", f"{' '.join(probe)} 2>&1 || echo no", fails=None).strip():
        assert time.monotonic() < until, said + cluster.node.podman("logs", container, fails=None)
        time.sleep(1)


def frozen(name: str) -> Callable[[Manifest], None]:
    """Return the fault that a volume cannot be written to."""

    def change(spec: Manifest) -> None:
        for mount in spec["containers"][0]["volumeMounts"]:
            if mount["name"] == name:
                mount["readOnly"] = True

    return change


def closed(spec: Manifest) -> None:
    """The fault that a Secret's files are for root alone."""
    for volume in spec["volumes"]:
        if "secret" in volume:
            volume["secret"]["defaultMode"] = 0o400


def test_a_server_waits_for_the_job(cluster: Cluster) -> None:
    """Before the schema's job has run, a server says so and ends: no two of them race to make tables."""
    cluster.play("Deployment mlflow", "mlflow-0")
    assert cluster.node.ended("mlflow-0-mlflow") == 1
    said = cluster.node.podman("logs", "mlflow-0-mlflow")
    cluster.node.gone("mlflow-0")
    assert "stackops: error: " in said and "tables" in said, said


def test_a_wrong_job_is_found_out(cluster: Cluster) -> None:
    """What the manifests say about modes is needed: without it the job ends with a word about it."""
    code, said = cluster.job(_job(cluster), "wrong", change=closed)
    assert code != 0 and re.search("secret .* cannot be read", said), (code, said)


def _job(cluster: Cluster) -> str:
    return next(kube.where(m) for m in cluster.manifests if m["metadata"]["name"].startswith("migrate-"))


def test_the_journey_brings_the_data(cluster: Cluster) -> None:
    """docs/kubernetes.md: the backup of the Compose stack goes into the volume, and is loaded, with the words there."""
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    hold, restore = (json.loads(found) for found in re.findall(r"(?s)--type=json -p '(\[.*?\])'", page))

    def patched(patch: list[Manifest]) -> Callable[[Manifest], None]:
        def change(spec: Manifest) -> None:
            for one in patch:
                spec["containers"][0][one["path"].removeprefix("/spec/template/spec/containers/0/")] = one["value"]

        return change

    cluster.node.play(*cluster.configs, cluster.pod("CronJob backup", "hold", change=patched(hold)))
    # What `kubectl cp` does: tar, as the pod's user.
    into = f"{' '.join(PODMAN)} exec -i hold-backup tar -C /backups -xf -"
    cluster.node.do("sh", "-c", f"tar -C /brought -cf - . | {into}")
    cluster.node.gone("hold")
    code, said = cluster.job("CronJob backup", "restore", change=patched(restore))
    assert code == 0, said


def test_the_job_makes_the_schema(cluster: Cluster) -> None:
    """It ends well, a second time too."""
    for name in ("first", "second"):
        code, said = cluster.job(_job(cluster), name)
        assert code == 0 and "database: ok" in said and "artifact store: ok" in said, said


def test_two_servers_do_what_clients_ask(cluster: Cluster) -> None:
    """Two servers behind nginx, and MLflow's own client from outside: runs, artifacts, models, traces."""
    for name in SERVERS:
        cluster.server(name)
    cluster.play("Deployment nginx")
    _until(cluster, "nginx-nginx", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8080/healthz")
    # What a Gateway would do.
    node = cluster.node
    infra = node.podman("pod", "inspect", "nginx", "--format", "{{.InfraContainerID}}").strip()
    address = node.podman(
        "inspect", infra, "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    ).strip()
    door = ("socat", "TCP-LISTEN:8080,fork,reuseaddr", f"TCP:{address}:8080")
    assert run("docker", "exec", "--detach", node.name, *door).returncode == 0
    done = json.loads(cluster.stack.client((HERE / "stock_client.py").read_text(), "write").splitlines()[-1])
    assert done["errors"] and not any(done["errors"].values()), done["errors"]
    # And what was logged when Compose ran the stack.
    words = ("read", cluster.before["run"], cluster.before["trace"])
    cluster.stack.client((HERE / "stock_client.py").read_text(), *words)
    for name in SERVERS:
        said = cluster.node.inside(f"{name}-mlflow", "stackops", "ready")
        assert said == ""


@pytest.mark.parametrize(("workload", "volume"), [("Deployment mlflow", "spool"), ("Deployment nginx", "tmp")])
def test_a_missing_volume_is_found_out(cluster: Cluster, workload: str, volume: str) -> None:
    """Where nothing is mounted a cluster has the read-only root; podman would put something there, so this does."""
    code, said = cluster.job(workload, "wrong", change=frozen(volume))
    assert code != 0 and re.search("(?i)read-only file system", said), (code, said)


def test_the_pods_are_locked_in(cluster: Cluster) -> None:
    """As the manifests say: a user without a name, nothing to write to but volumes, no rights, no key to a cluster."""
    for name in SERVERS:
        container = f"{name}-mlflow"
        status = cluster.node.inside(container, "cat", "/proc/1/status")
        assert re.search(r"Uid:\t10001\t10001", status), status
        assert re.search(r"CapBnd:\t0{16}", status) and "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status
        said = cluster.node.inside(container, "sh", "-c", "touch /stackops/x", fails=True)
        assert "Read-only file system" in said
        passfile = cluster.node.inside(container, "stat", "-c", "%a %u", "/run/stackops/pgpass").split()
        assert passfile == ["600", "10001"]


def test_nothing_acknowledged_is_lost(cluster: Cluster) -> None:
    """One of two servers is killed while a client logs: it goes on, and each number that was acknowledged is there."""
    count = 300
    words = [sys.executable, "-c", WRITER, f"killed-{secrets.token_hex(3)}", str(count)]
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")} | cluster.stack.client_environment()
    writer = subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, text=True, cwd=cluster.stack.folder.parent
    )
    lines: list[str] = []
    try:
        for line in writer.stdout:
            lines.append(line.strip())
            if line.startswith("ack 60"):
                cluster.node.podman("kill", "--signal", "KILL", f"{SERVERS[0]}-mlflow")
        assert writer.wait(300) == 0, lines[-5:]
    finally:
        writer.kill()
    run_id = next(line.split()[1] for line in lines if line.startswith("run "))
    acknowledged = {int(line.split()[1]) for line in lines if line.startswith("ack ")}
    errors = [line for line in lines if line.startswith("err ")]
    there = json.loads(cluster.stack.client(READER, run_id).splitlines()[-1])
    print(f"{len(acknowledged)} of {count} acknowledged, {len(errors)} errors, {len(there)} there")
    assert acknowledged <= set(there), sorted(acknowledged - set(there))[:10]
    assert not errors and len(acknowledged) == count, errors[:5]
    running = cluster.node.podman("ps", "--format", "{{.Names}}").split()
    assert f"{SERVERS[0]}-mlflow" not in running and f"{SERVERS[1]}-mlflow" in running


def due(cluster: Cluster, *pods: str) -> list[str]:
    """Return the pods that start what is due at a time."""
    look = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"
    return [pod for pod in pods if "_periodic_tasks_consumer" in cluster.node.inside(f"{pod}-mlflow", "sh", "-c", look)]


def test_one_pod_alone_starts_what_is_due(cluster: Cluster) -> None:
    """components/jobs-singleton: servers take jobs, and one pod looks at the clock; a second one would be seen."""
    folder = cluster.stack.folder / "k8s" / "overlays" / "jobs"
    folder.mkdir()
    # As in the other overlays: without its namespace, what a component brings would not find the ConfigMap.
    namespace = yaml.safe_load((folder.parent / "dev" / "kustomization.yaml").read_text())["namespace"]
    overlay = {"namespace": namespace, "resources": ["../dev"], "components": ["../../components/jobs-singleton"]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    for name in (*SERVERS, "nginx"):
        cluster.node.gone(name)
    jobs = Cluster(cluster.node, cluster.stack, kube.kustomize(folder), cluster.before)
    jobs.server("web")
    jobs.play("Deployment mlflow-jobs", "jobs")
    until = time.monotonic() + PATIENCE
    while not (found := due(jobs, "web", "jobs")):
        assert time.monotonic() < until, jobs.node.podman("logs", "jobs-mlflow")
        time.sleep(1)
    assert found == ["jobs"]

    def second(spec: Manifest) -> None:
        spec["containers"][0]["env"] = [{"name": "MLFLOW_SERVER_JOB_ENABLE_PERIODIC_TASKS", "value": "true"}]

    jobs.server("wrong", change=second)
    until = time.monotonic() + PATIENCE
    while due(jobs, "wrong", "jobs") == ["jobs"]:
        assert time.monotonic() < until, jobs.node.podman("logs", "wrong-mlflow")
        time.sleep(1)
    assert due(jobs, "web", "wrong", "jobs") == ["wrong", "jobs"]
    for name in ("web", "wrong", "jobs"):
        jobs.node.gone(name)
