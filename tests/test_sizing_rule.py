"""scripts/sizing.sh: what fits a machine. More of it never gives less, and it is never more than there is."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from combinations import Answers
from rendering import Tree
from test_init import env_of, init

STACKS: dict[str, Answers] = {
    "sqlite": {"backend": "sqlite", "artifact_store": "local", "reverse_proxy": "none", "auth": "none"},
    "postgres": {"backend": "postgres", "artifact_store": "seaweedfs", "reverse_proxy": "nginx", "auth": "basic"},
    "users": {"backend": "postgres", "artifact_store": "minio", "reverse_proxy": "caddy", "auth": "mlflow"},
    "managed": {"backend": "managed", "artifact_store": "s3", "reverse_proxy": "nginx", "auth": "oidc"},
}
FIXED = {"sqlite": 0, "postgres": 256, "users": 256, "managed": 256 + 128}
POOLS = {"postgres": 2, "users": 3}
ASK = """
for cpus in 1 2 3 4 16; do
  for memory in %s; do
    echo "= $cpus $memory"
    scripts/sizing.sh $cpus $memory %s || :
  done
done
"""
MEMORY = [512, 1024, *range(1500, 6000, 97), 8192, 12000, 16384, 24000, 65536, 262144]
DOCKER = '#!/bin/sh\necho "$MACHINE"\n[ -n "$MACHINE" ]\n'


def sizes(stack: Path, jobs: str = "") -> dict[tuple[int, int], dict[str, int]]:
    """Return what sizing.sh says for many machines, as numbers; nothing for one that is too small."""
    script = ASK % (" ".join(map(str, MEMORY)), jobs)
    done = subprocess.run(["sh", "-c", script], cwd=stack, capture_output=True, text=True, check=True)
    assert all("sizing: error: this stack needs " in line for line in done.stderr.splitlines())
    found: dict[tuple[int, int], dict[str, int]] = {}
    for line in done.stdout.splitlines():
        if line.startswith("= "):
            machine = found[tuple(map(int, line.split()[1:]))] = {}
        elif not line.startswith("#"):
            key, _, value = line.partition("=")
            machine[key] = int(value.rstrip("mMiB"))
    return found


@pytest.mark.parametrize(
    ("name", "jobs", "servers"),
    [
        *((name, jobs, 1) for name in STACKS for jobs in ("", "1")),
        *((name, "", servers) for name in STACKS if name != "sqlite" for servers in (2, 3)),
    ],
)
def test_the_rule(make_tree: Callable[[Answers], Tree], name: str, jobs: str, servers: int) -> None:
    tree = make_tree({"project_name": "demo-stack", "purpose": "team"} | STACKS[name])
    found = sizes(tree.root, f"{jobs or 0} {servers}" if servers > 1 else jobs)
    fitting = {machine: said for machine, said in found.items() if said}
    assert len(found) == 5 * len(MEMORY) and len(fitting) > len(found) / 3
    assert not found[(1, 512)] and found[(16, 262144)]
    for (cpus, memory), said in fitting.items():
        limits = sum(value for key, value in said.items() if key.endswith("_MEMORY"))
        limits += (servers - 1) * said["MLFLOW_MEMORY"]
        assert limits + FIXED[name] <= memory, (cpus, memory, said)
        assert 1 <= said["MLFLOW_WORKERS"] <= min(-(-cpus // servers), 4)
        assert said["MLFLOW_MEMORY"] >= max(570, 320 + 180 * said["MLFLOW_WORKERS"]) + (1300 if jobs else 0)
        if name in POOLS:
            # Also while there is one server more.
            connections = (servers + 1) * said["MLFLOW_WORKERS"] * POOLS[name] * 15
            assert connections <= said["POSTGRES_MAX_CONNECTIONS"] - 10
            taken = said["POSTGRES_SHARED_BUFFERS"] + said["POSTGRES_MAX_CONNECTIONS"] * said["POSTGRES_WORK_MEM"]
            assert taken <= said["POSTGRES_MEMORY"] or said["POSTGRES_WORK_MEM"] == 4
            assert said["POSTGRES_EFFECTIVE_CACHE_SIZE"] < said["POSTGRES_MEMORY"]
        if "STORE_GOMEMLIMIT" in said:
            assert said["STORE_GOMEMLIMIT"] < said["STORE_MEMORY"]
    # More CPUs and more memory, one after the other, never give less; only work_mem pays for more connections.
    for (cpus, memory), said in fitting.items():
        for other in ((c, m) for c, m in fitting if c >= cpus and m >= memory):
            for key, value in said.items():
                assert fitting[other][key] >= value or key == "POSTGRES_WORK_MEM", (cpus, memory, other, key)
    assert {key for said in fitting.values() for key in said} <= set(named(tree)), ".env.example explains them"


def named(tree: Tree) -> list[str]:
    """Return the settings that .env.example has."""
    return [line.lstrip("#").partition("=")[0] for line in tree.files[".env.example"].splitlines()]


def test_the_server_agrees(make_tree: Callable[[Answers], Tree]) -> None:
    """Without MLFLOW_WORKERS the server counts for itself, by the memory limit it got: never fewer."""
    tree = make_tree({"project_name": "demo-stack", "purpose": "team"} | STACKS["users"])
    sys.path.insert(0, str(tree.root / "stackops"))
    try:
        from stackops import sizing
    finally:
        sys.path.pop(0)
    for (cpus, _), said in sizes(tree.root).items():
        if said:
            here = sizing.Machine(cpus, said["MLFLOW_MEMORY"] << 20)
            assert sizing.workers(None, here, 99) >= said["MLFLOW_WORKERS"]
            size, overflow = sizing.pool(said["POSTGRES_MAX_CONNECTIONS"], said["MLFLOW_WORKERS"], 3)
            assert (size, overflow) == (10, 5)


@pytest.mark.parametrize("words", [[], ["2"], ["two", "4000"], ["2", "-1"], ["2", "4000", "yes"], ["", "4000"]])
def test_no_numbers_is_one_sentence(make_tree: Callable[[Answers], Tree], words: list[str]) -> None:
    tree = make_tree({"project_name": "demo-stack", "purpose": "team"})
    done = subprocess.run(["scripts/sizing.sh", *words], cwd=tree.root, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == "sizing: error: say CPUs and MiB in whole numbers\n"


@pytest.fixture
def init_on(make_tree: Callable[[Answers], Tree]) -> Callable[..., tuple[Path, str]]:
    """Run `make init` on a machine that Docker describes; return the stack and what was said."""

    def run(machine: str, env: str | None = None) -> tuple[Path, str]:
        stack = make_tree({"project_name": "demo-stack", "purpose": "team"} | STACKS["postgres"]).root
        (bin_folder := stack / "bin").mkdir()
        (bin_folder / "docker").write_text(DOCKER)
        (bin_folder / "docker").chmod(0o755)
        if env is not None:
            (stack / ".env").write_text(env)
        done = init(stack, PATH=f"{bin_folder}:{os.environ['PATH']}", MACHINE=machine)
        assert done.returncode == 0
        return stack, done.stderr

    return run


def test_init_writes_what_fits_into_a_new_env(init_on: Callable[..., tuple[Path, str]]) -> None:
    stack, said = init_on(f"4 {16 << 30}")
    env = env_of(stack)
    assert (env["MLFLOW_WORKERS"], env["POSTGRES_MAX_CONNECTIONS"], said) == ("4", "250", "")
    assert env["POSTGRES_MEMORY"] == "3520m" and env["POSTGRES_SHARED_BUFFERS"] == "880MB"
    before = (stack / ".env").read_text()
    init(stack, PATH=f"{stack}/bin:{os.environ['PATH']}", MACHINE=f"2 {4 << 30}")
    assert (stack / ".env").read_text() == before


@pytest.mark.parametrize(
    ("machine", "env", "said"),
    [
        (f"4 {16 << 30}", "HTTP_PORT=9999\n", ""),
        (f"4 {16 << 30}", "", ""),
        ("", None, ""),
        (f"1 {1 << 30}", None, "sizing: error: this stack needs 2618 MiB of memory, and the machine has 1024\n"),
    ],
)
def test_init_leaves_the_defaults(init_on: Callable[..., tuple[Path, str]], machine: str, env: str, said: str) -> None:
    """An .env that is there stays as it is; without Docker, or on a machine that is too small, nothing is computed."""
    stack, told = init_on(machine, env)
    assert told == said and "MLFLOW_MEMORY" not in env_of(stack) and "STACK_UID" in env_of(stack)
