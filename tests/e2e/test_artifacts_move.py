"""`make artifacts-move`: every artifact from one store to another, and all that was ever logged still loads."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import outside
import pytest
from history import History
from needs import engine
from stacks import PREFIX, ROOT, Stack, run, stack

pytestmark = pytest.mark.docker

# Many files beside those of the history, so that a copy can be interrupted; made inside the server's container.
MANY = """
import os, pathlib
for number in range(1000):
    path = pathlib.Path(f"/data/artifacts/0/many/{number % 50}/{number}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(5_000))
"""
BUCKET = """
import os, sys
from stackops.stores import s3
bucket = os.environ["ARTIFACT_URI"].removeprefix("s3://")
client = s3.client(os.environ)
pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
names = [one["Key"] for page in pages for one in page.get("Contents", ())]
if sys.argv[1:]:
    client.put_object(Bucket=bucket, Key=sys.argv[1], Body=b"altered")
print(len(names))
"""


def inside(one: Stack, script: str, *arguments: str) -> str:
    """Run a Python program in the server's container and return what it prints."""
    return one.compose("exec", "-T", "mlflow", "python", "-c", script, *arguments).strip()


def numbers(said: str) -> tuple[int, int]:
    """Return how many objects were copied, and how many were there already."""
    match = re.search(r"copied ([\d,]+) objects?.*; ([\d,]+) were there already; all were compared", said)
    assert match, said
    return int(match[1].replace(",", "")), int(match[2].replace(",", ""))


def kill_the_copy(one: Stack, enough: int) -> None:
    """Start the move, and kill -9 its container when at least `enough` objects are in the bucket."""
    command = ["make", "artifacts-move", "FROM=local", "JOBS=1"]
    started = subprocess.Popen(command, cwd=one.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while int(inside(one, BUCKET)) < enough:
        assert started.poll() is None, "it ended before it was killed"
        assert time.monotonic() < until
    names = run("docker", "ps", "--format", "{{.Names}}", "--filter", f"name={one.name}-artifacts-move").stdout.split()
    assert len(names) == 1
    run("docker", "kill", "--signal", "KILL", *names)
    assert started.wait() != 0


def test_local_to_seaweedfs_and_back(tmp_path: Path) -> None:
    with stack(tmp_path, "e-move", {}) as one:
        one.up()
        history = History(one)
        history.write("laptop")
        inside(one, MANY)
        assert "give either TO or FROM" in one.make("artifacts-move", fails=True)

        one.answer(artifact_store="seaweedfs")
        one.up()
        dry = one.make("artifacts-move", "FROM=local", "DRY_RUN=1")
        total = int(re.search(r"would copy ([\d,]+) objects", dry)[1].replace(",", ""))
        assert total > 1000
        assert int(inside(one, BUCKET)) == 0
        history.write("while-it-moves")  # the new store is in use before the old artifacts are there
        kill_the_copy(one, 100)
        copied, same = numbers(one.make("artifacts-move", "FROM=local"))
        assert copied + same == total and same >= 80 and copied > 0

        altered = "0/many/7/7"
        inside(one, BUCKET, altered)
        said = one.make("artifacts-move", "FROM=local", fails=True)
        assert f"1 object in s3://{one.answers['bucket']}" in said and altered in said and "KEEP=" in said
        assert numbers(one.make("artifacts-move", "FROM=local", "KEEP=source")) == (1, total - 1)
        assert numbers(one.make("artifacts-move", "FROM=local", "DISTRUST=1")) == (0, total)
        inside(one, "import shutil; shutil.rmtree('/data/artifacts')")
        history.read()

        # Back again: what is to be moved is not written to meanwhile.
        one.compose("stop", "mlflow")
        numbers(one.make("artifacts-move", "TO=local"))
        one.make("down")
        run("docker", "volume", "rm", f"{one.name}_object-store-data")
        one.answer(artifact_store="local")
        one.up()
        history.read()
        inside(one, "import shutil; shutil.rmtree('/data/artifacts/0/many')")

        # To Azure and back.
        azurite = f"{PREFIX}-e-azurite"
        image = "mcr.microsoft.com/azure-storage/azurite:latest"
        network = ("--network", f"{one.name}_edge", "--network-alias", "azurite")
        server = ("azurite-blob", "--blobHost", "0.0.0.0", "--skipApiVersionCheck")
        run("docker", "run", "--detach", "--name", azurite, *network, image, *server)
        try:
            there_and_back(one, history)
        finally:
            run("docker", "rm", "--force", "--volumes", azurite)


ACCOUNT = "devstoreaccount1"
KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # public: Azurite's own
)
CONNECTION = (
    f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint=http://azurite:10000/{ACCOUNT};"
)
MAKE_CONTAINER = """
import sys
from azure.storage.blob import BlobServiceClient
BlobServiceClient.from_connection_string(sys.argv[1]).create_container("moved")
"""


def there_and_back(one: Stack, history: History) -> None:
    """Move a stack with local artifacts to Azurite, lose them here, and get them back."""
    other = one.folder / "secrets" / "other"
    other.mkdir()
    (other / "azure_connection_string").write_text(CONNECTION + "\n")
    one.compose(
        "run", "--rm", "-T", "--no-deps", "--entrypoint", "python", "artifacts-move", "-c", MAKE_CONTAINER, CONNECTION
    )
    place = f"wasbs://moved@{ACCOUNT}.blob.core.windows.net/some/prefix"
    copied, _ = numbers(one.make("artifacts-move", f"TO={place}"))
    inside(one, "import shutil; shutil.rmtree('/data/artifacts')")
    assert numbers(one.make("artifacts-move", f"FROM={place}")) == (copied, 0)
    history.read()
    (other / "azure_connection_string").write_text("nonsense\n")
    said = one.make("artifacts-move", f"FROM={place}", fails=True)
    assert said.count("artifacts-move: error:") == 1 and KEY not in said


COPY = """
import json, pathlib, sys
from artifacts_move import copying, stores
source, target, journal, distrust = sys.argv[1:]
ends = [stores.open_store(uri, uri, "/nowhere", {}) for uri in (source, target)]
done = copying.move(*ends, copying.Journal(pathlib.Path(journal)), lambda text: None, distrust=bool(distrust))
print(json.dumps([done.found, done.copied, done.same, done.different]))
"""
ALTER = """
import sys
from google.cloud import storage
bucket, _, name = sys.argv[1].removeprefix("gs://").partition("/")
blob = storage.Client().bucket(bucket).blob(name)
content = blob.download_as_bytes()
blob.upload_from_string(content[:-1] + bytes([content[-1] ^ 1]))
"""


def test_google_and_back(tmp_path: Path) -> None:
    """Google's own library against an emulator, since there is no server of its kind to run: no stack around it."""
    engine()
    files = {
        "1/run/artifacts/empty": b"",
        "1/run/artifacts/with space/é #1%?&=+🦜": b"name",
        "1/run/artifacts/packed.gz": b"\x1f\x8b" + bytes(range(256)),
        "1/models/m-1/artifacts/data.bin": os.urandom((17 << 20) + 1),
    }
    for name, data in files.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with outside.gcs() as google:
        place = f"gs://{google.answers['bucket']}/some/prefix"
        parts = os.pathsep.join(str(ROOT / "template" / part) for part in ("stackops", "transfer"))

        def script(text: str, *words: object) -> str:
            env = {"PATH": os.environ["PATH"], "PYTHONPATH": parts, "PYTHONDONTWRITEBYTECODE": "1", **google.client}
            command = [sys.executable, "-c", text, *map(str, words)]
            done = subprocess.run(command, env=env, text=True, capture_output=True)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        there = (tmp_path / "source", place, tmp_path / "there.db")
        assert script(COPY, *there, "") == "[4, 4, 0, []]"
        assert script(COPY, *there, "") == "[4, 0, 4, []]"
        assert script(COPY, place, tmp_path / "back", tmp_path / "back.db", "") == "[4, 4, 0, []]"
        assert {
            p.relative_to(tmp_path / "back").as_posix(): p.read_bytes()
            for p in (tmp_path / "back").rglob("*")
            if p.is_file()
        } == files
        script(ALTER, f"{place}/1/models/m-1/artifacts/data.bin")
        assert script(COPY, *there, "") == '[4, 0, 3, ["1/models/m-1/artifacts/data.bin"]]'
