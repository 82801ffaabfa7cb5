"""The application as it is made, before the first request."""

import json
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


PAGES = """
import gzip, json, shutil, sys
import brotli
from mlflow.server import app as flask_app
from stackops import app
from werkzeug.test import Client
from whitenoise.compress import Compressor

sys.path.insert(0, sys.argv[1])
from test_shortcuts import ask

pages = sys.argv[2]
shutil.copytree(flask_app.static_folder, pages)
flask_app.static_folder = pages
names = list(json.load(open(f"{pages}/asset-manifest.json"))["files"].values())[::-1]
names = [next(name for name in names if name.endswith(kind)) for kind in (".css", ".js", ".svg", ".png")]
for name in names[:-1]:
    Compressor(quiet=True).compress(pages + name.removeprefix("/static-files"))
made, seen = app.create_app(), []
assert type(made.router.routes[0].app).__name__ == "Bridge", "MLflow's own way to Flask"
mlflows_own = Client(flask_app.wsgi_app.application)
theirs = {name: mlflows_own.get(name, headers={"Host": "localhost"}) for name in names}
unpack = {b"": bytes, b"gzip": gzip.decompress, b"br": brotli.decompress}

for name, their in theirs.items():
    for taken in ("identity", "gzip", "gzip, deflate, br"):
        status, headers, body = ask(made, name, accept_encoding=taken, host="localhost")
        encoding = headers.get(b"content-encoding", b"")
        assert (status, unpack[encoding](body)) == (200, their.data), (name, taken)
        assert int(headers[b"content-length"]) == len(body)
        assert headers[b"x-content-type-options"] == b"nosniff"
        assert headers[b"content-type"].split(b";")[0].decode() == their.mimetype
        assert f"max-age={their.cache_control.max_age}".encode() in headers[b"cache-control"]
        again = ask(made, name, accept_encoding=taken, host="localhost", if_none_match=headers[b"etag"].decode())
        assert again[0] == 304 and not again[2], (name, again)
        seen.append([name.rpartition(".")[2], encoding.decode(), b"Accept-Encoding" in headers.get(b"vary", b"")])
for name in ("nothing.js", "../__init__.py"):
    assert ask(made, f"/static-files/{name}", host="localhost")[0] == 404, name
print(json.dumps(seen))
"""


def test_pages_leave_compressed(stack, tmp_path) -> None:
    """The user interface's files are MLflow's own, as the browser takes them, and can be asked for again at no cost."""
    env = {**os.environ, **stack(), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    words = [sys.executable, "-c", PAGES, os.path.dirname(__file__), str(tmp_path / "pages")]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    takes = [(kind, encoding, True) for kind in ("css", "js", "svg") for encoding in ("", "gzip", "br")]
    assert [*map(tuple, json.loads(done.stdout.splitlines()[-1]))] == [*takes, *[("png", "", False)] * 3]
