"""Every kind of database and every family of stores: an upgrade with data; then all is destroyed, and comes back.

SQLite and a folder, and PostgreSQL and SeaweedFS, have it in more detail in test_upgrade.py and test_backup*.py.
"""

import contextlib
from pathlib import Path

import outside
import pytest
from saving import destroy, drilled
from stacks import Stack, stack
from test_upgrade import Older, forget_images

pytestmark = pytest.mark.docker

KINDS = {
    "minio": {"backend": "postgres", "artifact_store": "minio"},
    "s3": {"backend": "managed", "artifact_store": "s3"},
    "azure": {"backend": "managed", "artifact_store": "azure"},
    "gcs": {"backend": "sqlite", "artifact_store": "gcs"},
}
# What runs beside the server and reads the store.
READERS = ("mlflow", "migrate", "check", "backup")


def fill(one: Stack, services: list[outside.Outside]) -> None:
    """Let a stack know the services outside, as its owner would."""
    for service in services:
        service.fill(one)
        if service.server:  # an emulator that asks for no key: as on a machine that has a role
            one.override({"services": {reader: {"environment": service.server} for reader in READERS}})
            for name in service.secrets:
                (one.folder / "secrets" / name).write_text("")


def begun(kit: contextlib.ExitStack, answers: dict[str, str]) -> list[outside.Outside]:
    """Start the services outside that the answers need."""
    return [kit.enter_context(outside.FOR[kind]()) for kind in answers.items() if kind in outside.FOR]


@pytest.mark.parametrize("kind", KINDS)
def test_upgraded_destroyed_and_restored(tmp_path: Path, kind: str) -> None:
    """The services outside are gone as well: the backup is loaded into new ones."""
    given = {**KINDS[kind], "reverse_proxy": "none", "auth": "none"}
    with contextlib.ExitStack() as kit:
        lost = kit.enter_context(contextlib.ExitStack())
        services = begun(lost, KINDS[kind])
        answers = given | {key: value for service in services for key, value in service.answers.items()}
        one = kit.enter_context(stack(tmp_path, f"every-{kind}", answers))
        kit.callback(forget_images, one)
        fill(one, services)
        older = Older(one)
        one.make("upgrade")
        assert older.version() == "3.17.2"
        older.history.read()
        older.history.write("second")
        one.make("backup")
        if kind == "azure":
            drilled(one)
        destroy(one)
        lost.close()

        services = begun(kit, KINDS[kind])
        one.make("init")
        fill(one, services)
        said = one.make("restore")
        assert "counts and checksums are right" in said
        older.history.read()
        one.make("check")
