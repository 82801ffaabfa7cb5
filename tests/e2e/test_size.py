"""`make size` on a running stack: its advice is taken, the stack starts with it, and then it fits."""

import re
from pathlib import Path

import pytest
from stacks import Stack, run, stack

pytestmark = pytest.mark.docker

RUN = """
import mlflow
mlflow.set_experiment("sized")
with mlflow.start_run():
    mlflow.log_metric("loss", 0.5)
    mlflow.log_text("x" * 100_000, "note.txt")
"""


def test_the_advice_is_taken(tmp_path: Path) -> None:
    """What `make size` prints goes into .env as it is printed."""
    answers = {"backend": "postgres", "artifact_store": "local", "reverse_proxy": "none", "auth": "none"}
    small = {"MLFLOW_MEMORY": "1g", "POSTGRES_MEMORY": "768m", "MLFLOW_WORKERS": "1"}
    with stack(tmp_path, "size", answers, small) as one:
        # The artifacts are on a disk of their own, which the engine makes; it is empty whenever nobody uses it.
        disk = {"type": "tmpfs", "device": "tmpfs", "o": "size=64m,mode=1777"}
        one.override({"volumes": {"mlflow-data": {"driver_opts": disk}}})
        assert "make up" in one.make("size", fails=True)
        one.up()
        one.client(RUN)
        before = (one.folder / ".env").read_text()
        said = one.make("size")
        assert (one.folder / ".env").read_text() == before, "it only advises"
        assert re.search(r"^rows .*\b1 runs, 1 metric points", said, re.MULTILINE), said
        size = re.search(r"^artifacts +([\d.]+) KiB, about", said, re.MULTILINE)
        assert size and 97 < float(size[1]) < 110, said
        # The database is on this machine's disk: how long it lasts is what is free, by what comes each day.
        grows = re.search(r"^database .*, about ([\d.]+) MiB more a day", said, re.MULTILINE)
        lasts = re.search(r"^disk +of the database: (\d+\.\d) GiB free, (.*) at this pace", said, re.MULTILINE)
        assert grows and lasts, said
        full = float(lasts[1]) * 1024 / float(grows[1])
        if lasts[2] == "lasts for more than ten years":
            assert full > 3650 * 0.98, said
        else:
            told = int(lasts[2].removeprefix("full in about ").removesuffix(" days").replace(",", ""))
            assert told == pytest.approx(full, rel=0.02) and told <= 3650, said
        # 100 KB a day fill 64 MiB in 670 days.
        days = re.search(r"^disk +of the artifacts: 63\.\d MiB free, full in about (\d+) days", said, re.MULTILINE)
        assert days and 600 < int(days[1]) < 700, said
        assert "1 workers with 2 pools of 10 + 5 connections: at most 30 of 100" in said
        advised = dict(line.split("=", 1) for line in said.splitlines() if re.match("[A-Z_]+=", line))
        assert {"MLFLOW_MEMORY", "POSTGRES_MEMORY", "POSTGRES_SHARED_BUFFERS"} <= advised.keys(), said
        for key, value in advised.items():
            one.setting(key, value)
        one.up()
        assert "ready" in one.make("status")
        for service, key in (("mlflow", "MLFLOW_MEMORY"), ("postgres", "POSTGRES_MEMORY")):
            limit = run("docker", "inspect", "--format", "{{.HostConfig.Memory}}", one.container(service)).stdout
            assert int(limit) == int(advised[key].removesuffix("m")) << 20, key
        assert shown(one, "shared_buffers") == advised["POSTGRES_SHARED_BUFFERS"]
        assert shown(one, "work_mem") == advised.get("POSTGRES_WORK_MEM", "4MB")
        again = one.make("size")
        assert "The settings in .env fit this machine." in again, again
        one.client(RUN)


def shown(one: Stack, name: str) -> str:
    """Return a setting of the running PostgreSQL."""
    sql = f"SELECT pg_size_bytes(current_setting('{name}')) >> 20"
    text = one.compose("exec", "-T", "postgres", "psql", "-U", "postgres", "-Atc", sql)
    return f"{text.strip()}MB"
