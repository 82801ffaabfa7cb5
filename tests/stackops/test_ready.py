"""What the health check asks MLflow: the database, and no row of it, decides the answer."""

import os
import subprocess
import sys

from stackops import ready

# Asks as often as there are statements, each time after one of them.
ASK = """
import logging, sqlite3, sys
from mlflow.server import app
from mlflow.server.handlers import initialize_backend_stores
store, paths, statements = sys.argv[1], sys.argv[2:4], sys.argv[4:]
initialize_backend_stores(f"sqlite:///{store}", f"sqlite:///{store}", "artifacts")
logging.disable(logging.CRITICAL)
for statement in statements:
    with sqlite3.connect(store) as connection:
        connection.execute(statement)
    print(*(app.test_client().get(path).status_code for path in paths))
"""


def test_a_row_that_mlflow_cannot_show_does_not_make_the_server_unready(tmp_path):
    """MLflow itself always writes a location; a row of another program's makes it fail over the whole list."""
    question = dict(ready.PARTS)["database"]
    listing = question.split("&filter")[0]
    statements = (
        "SELECT 1",
        "UPDATE experiments SET artifact_location = NULL",
        "ALTER TABLE experiments RENAME COLUMN lifecycle_stage TO stage",
    )
    command = [sys.executable, "-c", ASK, str(tmp_path / "mlflow.db"), question, listing, *statements]
    env = {"PATH": os.environ["PATH"], "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["200 200", "200 500", "503 503"], done.stdout + done.stderr
