"""The packages under test are those in the template, as they are copied into every stack."""

import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2] / "template" / "stackops"
sys.path[:0] = [str(PROJECT), str(PROJECT.parent / "transfer")]
sys.dont_write_bytecode = True  # nothing may appear in the template


@pytest.fixture
def stack(tmp_path):
    """Return a function that makes a stack's environment: SQLite and local files unless told otherwise."""
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for name, value in {
        "crypto_kek_passphrase": "kek",
        "webhook_encryption_key": "hook",
        "db_password": "p@ss:w/o#rd%1[]\\",
        "admin_password": "long enough password",
        "flask_secret_key": "flask",
    }.items():
        (secrets / name).write_text(f"{value}\n")

    def make(**changes: str) -> dict[str, str]:
        postgres = {"DB_HOST": "db", "DB_NAME": "mlflow", "DB_USER": "mlflow"}
        return {
            "STACK_BACKEND": "sqlite",
            "STACK_STORE": "local",
            "ARTIFACT_URI": "/data/artifacts",
            "ARTIFACT_ACCESS": "proxied",
            "STACK_AUTH": "none",
            "SECRETS_DIR": str(secrets),
            "RUNTIME_DIR": str(tmp_path / "run"),
            **(postgres if changes.get("STACK_BACKEND") == "postgres" else {}),
            **changes,
        }

    make.secrets = secrets
    return make
