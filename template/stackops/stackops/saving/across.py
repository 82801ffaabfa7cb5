"""From a backup of SQLite into PostgreSQL, as `make migrate` does it: checked, and in one transaction."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from stackops import migrate, prepare, settings
from stackops.saving.manifest import Manifest


def load(env: Mapping[str, str], folder: Path, found: Manifest, fix: str, say: Callable[[str], None]) -> None:
    """Move the files in `folder` into the database; `fix` names repairs. Raises StackError."""
    prepare.prepare(dict(env), 45, say)
    for file in found.files:
        if file == "auth.db" and not settings.accounts(env):
            say("MLflow's users stay behind: this stack does not use them")
            continue
        parser = argparse.ArgumentParser()
        migrate.arguments(parser)
        words = [
            str((folder / file).resolve()),
            "--called",
            f"{found.name}/{file}",
            "--replace",
            "--fix",
            fix,
        ]
        migrate.run(parser.parse_args([*words, "--backups", str(folder / "before")]))
