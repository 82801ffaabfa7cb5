"""Prints the routes of the application that this stack serves, as JSON: a sorted list of [path, method].

test_attacks.py runs this text inside the server's container. Parameters are written {name}, or {name:path} where
slashes may be in them; the mounted Flask application's come with the others.
"""

import contextlib
import io
import json
import os
import re

os.environ["_MLFLOW_SGI_NAME"] = "uvicorn"  # which application MLflow's factory gives back
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    from stackops import settings

    settings.adopt()
    from mlflow.server import app as flask_app
    from stackops.app import create_app

    app = create_app()
found = set()


def take(routes) -> None:
    """Add native routes, those of included routers too."""
    for route in routes:
        if hasattr(route, "effective_candidates"):
            take(route.effective_candidates())
        elif hasattr(route, "methods"):
            found.update((route.path, method) for method in route.methods)


take(app.routes)
for rule in flask_app.url_map.iter_rules():
    path = re.sub(r"<(?:(path):)?(\w+)>", lambda m: "{" + m[2] + (":path}" if m[1] else "}"), rule.rule)
    found.update((path, method) for method in rule.methods)
print(json.dumps(sorted((path, method) for path, method in found if method not in ("HEAD", "OPTIONS"))))
