"""`make backup`, everything destroyed, `make restore`: the stock client finds all of it."""

import os
from pathlib import Path

import pytest
from history import History
from saving import destroy, pool, sets
from stacks import stack

pytestmark = pytest.mark.docker


def test_destroyed_and_restored(tmp_path: Path) -> None:
    with stack(tmp_path, "backup", {"purpose": "solo"}) as one:
        one.up()
        history = History(one)
        history.write("first")
        said = one.make("backup")
        assert "keep secrets/crypto_kek_passphrase" in said
        backups = one.folder / "backups"
        (name,), copied = sets(backups), pool(backups)
        assert backups.stat().st_mode & 0o77 == 0 or os.getuid()  # nobody else reads what users have logged
        # What is there already is not copied again.
        assert "; 0 of them new, 0 B" in one.make("backup") and pool(backups) == copied
        assert one.make("backups").splitlines()[-1].startswith(name)
        history.write("second")  # is in no backup

        destroy(one)
        # Into the new stack, which has not even been started.
        said = one.make("restore", f"AT={name}")
        assert "counts and checksums are right" in said and f"restored {name} from ./backups" in said
        lost = history.written.pop()
        history.read()
        assert lost["label"] not in one.client("import mlflow; print([e.name for e in mlflow.search_experiments()])")
        one.make("check")
        refused = one.make("restore", fails=True)
        assert "this stack has rows already" in refused and "REPLACE=1" in refused
        history.read()
