"""A browser and a server for it. Where there is no Chromium, the tests that need it say how to get one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from tests import needs
from tests.serving import Running, running_server
from tests.tiny import save_tiny

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)
SLOW_MS = 60_000
"""For what a loaded machine may take long for."""


@dataclass
class Seen:
    """What a page did besides what it was told to: errors in its console, and requests to other hosts.

    Attributes:
        allowed: Parts of messages of the console that a test brings about on purpose.
    """

    errors: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)
    allowed: tuple[str, ...] = ()

    def check(self, home: str) -> None:
        assert [text for text in self.errors if not any(part in text for part in self.allowed)] == []
        assert self.hosts <= {home}


@dataclass
class Studio:
    """A page of the studio, freshly opened."""

    page: Page
    url: str
    seen: Seen


@pytest.fixture(scope="session")
def studio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server for all tests of the page; its model makes small clips of noise quickly."""
    folder = tmp_path_factory.mktemp("studio")
    model = save_tiny(folder / "model", sizes=((320, 192), (192, 320), (960, 704)))
    # Its jobs are shown by another server's page too.
    with running_server(model, folder, COSMORAMA_MAX_QUEUE="64", COSMORAMA_CORS_ORIGINS="*") as server:
        yield server


# Playwright's loop runs in this thread until it is stopped; tests of other files have loops of their own.
@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    """Headless Chromium with a profile of its own."""
    program = needs.chromium()
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=program,
            args=list(ARGUMENTS),
            viewport={"width": 1440, "height": 900},
            reduced_motion="no-preference",
        )
        context.grant_permissions(["clipboard-read", "clipboard-write", "camera"])
        context.set_default_timeout(SLOW_MS)
        expect.set_options(timeout=SLOW_MS // 2)
        yield context
        context.close()


def open_page(context: BrowserContext, url: str) -> Studio:
    page = context.new_page()
    seen = Seen()

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            seen.errors.append(f"{message.text} {message.location.get('url', '')}")

    page.on("console", note)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("request", lambda request: seen.hosts.add(request.url.split("/")[2]) if "//" in request.url[:8] else None)
    page.goto(f"{url}/")
    return Studio(page, url, seen)


@pytest.fixture
def studio(browser: BrowserContext, studio_server: Running) -> Iterator[Studio]:
    """A page with an empty form; at the end its console holds no error, and it asked no other host."""
    opened = open_page(browser, studio_server.url)
    # Before the page's own code runs, and once: it keeps its form when it is left.
    once = "try { sessionStorage.begun ??= localStorage.clear() || 1 } catch { }"
    opened.page.add_init_script(once)
    opened.page.goto("about:blank")
    opened.page.goto(f"{studio_server.url}/")
    opened.page.get_by_label("Prompt", exact=True).wait_for()
    yield opened
    opened.page.close()
    opened.seen.check(opened.url.split("/")[2])


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small PNG file."""
    from PIL import Image

    path = tmp_path_factory.mktemp("picture") / "red.png"
    Image.new("RGB", (320, 192), (190, 40, 40)).save(path)
    return path
