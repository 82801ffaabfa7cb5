"""The application as it is made, before the first request."""

import os
import subprocess
import sys

MADE = """
import sys
from stackops import app
before = "mlflow.server.jobs.utils" in sys.modules
app.create_app()
print(before, "mlflow.server.jobs.utils" in sys.modules)
"""


def test_jobs_are_imported_before_the_first_request(stack) -> None:
    """MLflow's import of its jobs and any other import at the same time can wait for each other for ever."""
    env = {
        **os.environ,
        **stack(),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "_MLFLOW_SGI_NAME": "uvicorn",
    }
    done = subprocess.run([sys.executable, "-c", MADE], env=env, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["False True"], done.stdout + done.stderr
