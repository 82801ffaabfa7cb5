"""A browser on stacks that really run: it shows what the stock client logged, and what it changes is changed."""

import asyncio
import contextlib
import functools
import http.server
import json
import queue
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from browser import Visit, undisturbed
from needs import chromium
from playwright.sync_api import expect
from stacks import Stack, run, stack

# Chromium drops its connections whenever a container comes or goes.
pytestmark = pytest.mark.alone

STACKS: dict[str, dict[str, Any]] = {
    "prefix": {
        "backend": "postgres",
        "artifact_store": "seaweedfs",
        "reverse_proxy": "nginx",
        "auth": "basic",
        "url_prefix": "/mlflow",
        "domain": "mlflow.example.com",
    },
    "users": {"reverse_proxy": "nginx", "auth": "mlflow"},
    "laptop": {},
    "presigned": {
        "artifact_store": "seaweedfs",
        "artifact_access": "presigned",
        "reverse_proxy": "nginx",
        "auth": "basic",
        "domain": "mlflow.example.com",
        "store_domain": "s3.example.com",
    },
}

LOG = """
import json, sys
import mlflow, numpy
word = sys.argv[1]

class Doubles(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input):
        return model_input * 2

experiment = mlflow.set_experiment(f"experiment of {word}")
with mlflow.start_run(run_name=f"first name of {word}") as run:
    mlflow.log_params({"depth": 3, "optimizer": "adam"})
    for step in range(20):
        mlflow.log_metric("loss", 1 / (step + 1), step=step)
    mlflow.log_text("hello from the client", "notes/greeting.txt")
    mlflow.log_image(numpy.full((40, 60, 3), [200, 30, 30], dtype=numpy.uint8), "picture.png")
    mlflow.pyfunc.log_model(
        name="model", python_model=Doubles(), pip_requirements=[], registered_model_name=f"doubles-{word}")
with mlflow.start_span(name="asked-by-the-client") as span:
    span.set_inputs({"question": "how deep?"})
    span.set_outputs({"answer": "three"})
mlflow.flush_trace_async_logging()
print(json.dumps({"experiment": experiment.experiment_id, "run": run.info.run_id}))
"""

# Two always run; these when what a browser meets in them has changed.
WATCHED = pytest.mark.watches(
    *(f"template/stackops/stackops/{name}.py" for name in ("accounts", "answers", "app", "bridge", "guard", "screen")),
    *(f"template/stackops/stackops/{name}.py" for name in ("serve", "settings", "shortcuts")),
    "template/nginx/*",
    "extensions/compose/mlflow*",
    "extensions/compose/nginx*",
    "tests/e2e/browser.py",
)
PARAMS = [pytest.param(name, marks=WATCHED if name in ("users", "laptop") else []) for name in STACKS]


@pytest.fixture(scope="module", params=PARAMS, ids=str)
def started(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that runs."""
    chromium()
    with stack(tmp_path_factory.mktemp(request.param), f"browser-{request.param}", STACKS[request.param]) as made:
        made.up()
        yield made


def check_user_interface(started: Stack) -> None:
    """Log with the stock client, then look at all of it in a browser and rename the run there.

    Works on any stack that runs; what the stack publishes must be in its `doors`.
    """

    def tour(seen: Visit, word: str) -> None:
        logged = json.loads(started.client(LOG, word).splitlines()[-1])
        look_around(seen, started.url, word, **logged)
        rename_the_run(seen, started.url, word, **logged)

    seen = undisturbed(started, tour)
    assert seen.troubles == []
    host, prefix = urlsplit(started.url).netloc, started.answers["url_prefix"]
    if started.answers["artifact_access"] == "proxied":
        assert seen.hosts == {host}
    else:
        assert seen.hosts == set(started.doors), "downloads come from the store, and the rest does not"
    paths = {urlsplit(url).path for url in seen.urls if urlsplit(url).netloc == host}
    assert f"{prefix}/graphql" in paths
    assert all(path.startswith(f"{prefix}/") for path in paths), "nothing is asked for beside the prefix"


def look_around(seen: Visit, url: str, word: str, experiment: str, run: str) -> None:
    """Go through the pages of what LOG logged."""
    page = seen.page
    page.goto(f"{url}/#/experiments")
    seen.sees(f"experiment of {word}")
    seen.keep("experiments")

    page.goto(f"{url}/#/experiments/{experiment}/runs")
    seen.sees(f"first name of {word}")
    seen.sees("1 matching run")
    seen.keep("runs")

    page.goto(f"{url}/#/experiments/{experiment}/runs/{run}")
    for text in (f"first name of {word}", "depth", "optimizer", "adam", "loss", "0.05", "Finished"):
        seen.sees(text)
    seen.keep("run")

    page.get_by_role("tab", name="Model metrics").click()
    # The history is drawn: the one line of the chart goes through at least ten points.
    line = page.locator(".js-plotly-plot .scatterlayer path.js-line").first
    expect(line).to_be_visible()
    assert (line.get_attribute("d") or "").count("L") >= 10
    seen.keep("chart")

    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("notes", exact=True).click()
    page.get_by_text("greeting.txt", exact=True).click()
    seen.sees("hello from the client")
    seen.keep("artifact-text")
    # The button has no name, only the icon of a download.
    button = page.locator("[data-component-id*='artifactview.tsx']").last
    with page.expect_download() as download:
        button.click()
    assert download.value.suggested_filename == "greeting.txt"
    assert download.value.path().read_text() == "hello from the client"

    page.get_by_text("picture.png", exact=True).click()
    picture = page.locator("img[src^='blob:']").filter(visible=True).first
    expect(picture).to_be_visible()
    assert picture.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [60, 40]
    seen.keep("artifact-image")

    page.goto(f"{url}/#/models/doubles-{word}")
    page.get_by_text("Version 1", exact=True).click()
    seen.sees(f"first name of {word}")
    seen.sees("Schema")
    seen.keep("model")

    page.goto(f"{url}/#/experiments/{experiment}/traces")
    page.get_by_text("how deep?").first.click()
    # The tree of spans is an artifact of its own in the store.
    seen.sees("asked-by-the-client")
    seen.keep("trace")


def rename_the_run(seen: Visit, url: str, word: str, experiment: str, run: str) -> None:
    """Change the run's name; a fresh page shows the new one."""
    page = seen.page
    page.goto(f"{url}/#/experiments/{experiment}/runs/{run}")
    page.get_by_test_id("overflow-menu-trigger").click()
    page.get_by_role("menuitem", name="Rename").click()
    page.get_by_label("New run name").fill(f"second name of {word}")
    with page.expect_response("**/runs/update") as update:
        page.get_by_role("button", name="Save").click()
    assert update.value.status == 200
    page.reload()
    seen.sees(f"second name of {word}")
    seen.keep("renamed")


def test_the_user_interface(started: Stack) -> None:
    check_user_interface(started)


@contextlib.contextmanager
def https(port: int, folder: Path) -> Iterator[int]:
    """A proxy that speaks https, with a certificate of its own, in front of a port of this machine; its own port."""
    files = folder / "key.pem", folder / "certificate.pem"
    made = run(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=mlflow.example.com"),
        *("-keyout", str(files[0]), "-out", str(files[1])),
    )
    assert made.returncode == 0, made.stderr
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files[1], files[0])
    ready: queue.Queue[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = queue.Queue()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Browsers hang up as they like.
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, server_writer), copy(server_reader, writer))

    async def serve() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
        stop = asyncio.Event()
        ready.put((asyncio.get_running_loop(), stop, server.sockets[0].getsockname()[1]))
        await stop.wait()
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    loop, stop, own_port = ready.get(timeout=30)
    try:
        yield own_port
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


@contextlib.contextmanager
def other_site(folder: Path, page: str = "another site") -> Iterator[int]:
    """A web site of one page that has nothing to do with the stack; its port."""
    (folder / "site").mkdir()
    (folder / "site" / "index.html").write_text(f"<!DOCTYPE html><body>{page}</body>")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


CROSS_SITE_POST = """url => fetch(url, {
    method: "POST", mode: "no-cors", credentials: "include", body: JSON.stringify({name: "from-another-site"}),
})"""


@pytest.mark.parametrize("started", ["prefix", "laptop"], indirect=True)
def test_https_and_other_sites(started: Stack, tmp_path: Path) -> None:
    """Behind https, set up as documented, the pages' own POSTs work; those of another site are refused."""
    started.setting("PUBLIC_URL", f"https://mlflow.example.com{started.answers['url_prefix']}")
    if started.answers["domain"] == "localhost":
        # With the name as an answer these two are derived from it.
        started.setting("ALLOWED_HOSTS", "mlflow.example.com,localhost:*,127.0.0.1:*")
        started.setting("CORS_ALLOWED_ORIGINS", "https://mlflow.example.com")
    started.up()
    with (
        https(started.answers["http_port"], tmp_path) as port,
        other_site(tmp_path) as site,
        https(site, tmp_path) as other_port,
    ):
        doors = {
            "mlflow.example.com:443": f"127.0.0.1:{port}",
            "other.example.com:443": f"127.0.0.1:{other_port}",
        }
        undisturbed(started, functools.partial(write_from_two_sites, started.url), doors)


def write_from_two_sites(url: str, seen: Visit, word: str) -> None:
    """Make an experiment on the stack's own pages; try the same from another site's."""
    page = seen.page
    page.goto(f"{url}/#/experiments")
    page.get_by_test_id("create-experiment-button").click()
    page.get_by_label("Experiment Name").fill(f"made in {word}")
    with page.expect_response("**/experiments/create") as own:
        page.get_by_role("dialog").get_by_role("button", name="Create").click()
    assert own.value.status == 200
    assert own.value.request.all_headers()["origin"] == "https://mlflow.example.com"
    seen.sees(f"made in {word}")
    assert seen.troubles == []

    # Of the same domain, so the browser sends the login along.
    page.goto("https://other.example.com/index.html")
    with page.expect_response("**/experiments/create") as foreign:
        page.evaluate(CROSS_SITE_POST, f"{url}/ajax-api/2.0/mlflow/experiments/create")
    assert foreign.value.request.all_headers()["origin"] == "https://other.example.com"
    assert foreign.value.status == 403

    page.goto(f"{url}/#/experiments")
    seen.sees(f"made in {word}")
    expect(page.get_by_text("from-another-site")).to_have_count(0)
    seen.keep("https")


TROUBLES = """<script>
console.error("planted error");
setTimeout(() => { throw new Error("planted exception"); });
Promise.allSettled([fetch("/planted-404"), fetch("http://planted.example.net/")])
    .then(() => setTimeout(() => document.body.append("all done")));
</script>"""


def test_a_visit_notices_trouble(tmp_path: Path) -> None:
    """What goes wrong in a page is written down, and a host that is no door of the stack is not to be reached."""
    with other_site(tmp_path, TROUBLES) as port:
        nobody = SimpleNamespace(name="planted", doors={f"localhost:{port}": f"127.0.0.1:{port}"}, login=dict)

        def tour(seen: Visit, word: str) -> None:
            seen.page.goto(f"http://localhost:{port}/index.html")
            seen.sees("all done")

        found = "\n".join(undisturbed(nobody, tour).troubles)
    for trouble in (
        "console: planted error",
        "error: planted exception",
        f"404 GET http://localhost:{port}/planted-404",
        "failed: GET http://planted.example.net/ net::ERR_NAME_NOT_RESOLVED",
    ):
        assert trouble in found
