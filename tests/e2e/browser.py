"""A browser of a person: headless Chromium that knows the doors of a stack, and writes down what goes wrong."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from needs import chromium
from playwright.sync_api import ConsoleMessage, Error, Page, Request, Response, expect, sync_playwright
from stacks import ROOT, Stack

SCREENSHOTS = ROOT / "build" / "screenshots"
PATIENCE = 60_000  # milliseconds that a text may take to appear on a busy machine

HARMLESS = {
    r"404 GET \S+/ajax-api/2\.0/mlflow/users/current": "the page asks for MLflow's own user, and there is none",
    r"404 GET \S+/experiments/get-by-name\?": "the page asks whether the name of a new experiment is free",
    r"console: Failed to load resource: .* 404 .*/(users/current|get-by-name\?\S+)$": "the same two, in other words",
    r"console: .*ResizeObserver loop completed with undelivered notifications": "a layout that took two rounds",
    r"failed: .* net::ERR_ABORTED": "the page itself gave up a request, because its reader went on",
}
"""What is no trouble, and why. Everything else is."""


@dataclass
class Visit:
    """A page in a browser, and what happened in it."""

    page: Page
    name: str  # of the stack, for the screenshots
    troubles: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)  # of all requests

    def __post_init__(self) -> None:
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self._trouble(f"error: {error}"))
        self.page.on("request", lambda request: self.urls.append(request.url))
        self.page.on("requestfailed", lambda request: self._trouble(f"failed: {_words(request)} {request.failure}"))
        self.page.on("response", self._response)

    def _trouble(self, text: str) -> None:
        if not any(re.match(known, text) for known in HARMLESS):
            self.troubles.append(text)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self._trouble(f"console: {message.text} {message.location['url']}")

    def _response(self, response: Response) -> None:
        if response.status >= 400:
            self._trouble(f"{response.status} {_words(response.request)}")

    @property
    def disturbed(self) -> bool:
        """Whether the network of the machine changed meanwhile."""
        return any("net::ERR_NETWORK_CHANGED" in trouble for trouble in self.troubles)

    @property
    def hosts(self) -> set[str]:
        """Who was asked, as host:port."""
        return {urlsplit(url).netloc for url in self.urls if url.startswith("http")}

    def sees(self, text: str) -> None:
        """Wait until the text is visible, whole and not as a part of another."""
        expect(self.page.get_by_text(text, exact=True).filter(visible=True).first).to_be_visible()

    def keep(self, what: str) -> None:
        """Keep a screenshot as build/screenshots/STACK-WHAT.png."""
        self.page.screenshot(path=SCREENSHOTS / f"{self.name}-{what}.png")


def _words(request: Request) -> str:
    return f"{request.method} {request.url}"


@contextlib.contextmanager
def visit(stack: Stack, doors: Mapping[str, str] | None = None, signs_in: bool = True) -> Iterator[Visit]:
    """Open a browser that signs in as admin and knows the stack's doors, or `doors` instead, and no other host.

    Without `signs_in` it knows no password: where people log in on a page, they do.

    Nothing has to be trusted: a certificate may be self-signed. Skips where there is no Chromium.
    """
    rules = [f"MAP {name} {address}" for name, address in (doors or stack.doors).items()]
    login = stack.login() if signs_in else {}
    credentials = {
        "username": login["MLFLOW_TRACKING_USERNAME"],
        "password": login["MLFLOW_TRACKING_PASSWORD"],
    } if login else None  # fmt: skip
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=[f"--host-resolver-rules={','.join([*rules, 'MAP * ~NOTFOUND'])}"]
        )
        context = browser.new_context(
            http_credentials=credentials, ignore_https_errors=True, viewport={"width": 1400, "height": 900}
        )
        context.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        yield Visit(context.new_page(), stack.name)
        context.close()
        browser.close()


def undisturbed(
    stack: Stack,
    tour: Callable[[Visit, str], None],
    doors: Mapping[str, str] | None = None,
    tries: int = 4,
    signs_in: bool = True,
) -> Visit:
    """Open a browser as `visit` does, run `tour` in it, and return the visit.

    Chromium drops all connections when a network interface of the machine comes or goes, for instance that of
    somebody's container. Such a visit tells nothing about the stack, so another one is made; `tour` also gets a
    word that is new in each, for the names of what it makes.
    """
    for number in range(1, tries + 1):
        with visit(stack, doors, signs_in) as seen:
            try:
                tour(seen, f"visit-{number}")
            except (Error, AssertionError):
                if not seen.disturbed:
                    raise
        if not seen.disturbed:
            return seen
    raise AssertionError(f"the network of this machine changed during each of {tries} visits")
