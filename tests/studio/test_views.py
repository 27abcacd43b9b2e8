"""Grid, compare, history, keys, and what holds for every view: axe, narrow screens, keys of the API, path prefixes."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.serving import Running, running_server
from tests.studio.conftest import SLOW_MS, Studio, open_page
from tests.studio.test_make import FINISHED_MS, describe, generate, job_id, make, number
from tests.tiny import save_tiny

VIEWS = ("#/make", "#/grid", "#/compare", "#/history")


def jobs(studio: Studio) -> list[dict[str, object]]:
    found: list[dict[str, object]] = httpx.get(f"{studio.url}/v1/jobs?limit=100").json()["data"]
    return found


def make_grid(page: Page, across: str, down: str) -> None:
    page.goto(f"{page.url.split('#')[0]}#/grid")
    page.get_by_label("Values across").fill(across)
    page.get_by_label("Values down").fill(down)
    page.get_by_role("button", name="Make the grid").click()


def test_a_grid_of_two_knobs_plays_in_step_and_shows_differences(studio: Studio) -> None:
    page = studio.page
    describe(page, "a red ball", steps=2, frames=9)
    make_grid(page, "1, 7", "1..2")
    expect(page).to_have_url(re.compile(r"#/grid/grid-\w+"))
    grid = page.url.rsplit("/", 1)[1]
    expect(page.locator(".cell video")).to_have_count(4, timeout=FINISHED_MS)
    expect(page.get_by_role("columnheader", name="Guidance 7")).to_be_visible()
    expect(page.get_by_role("rowheader", name="Seed 2")).to_be_visible()
    mine = [job for job in jobs(studio) if job["metadata"].get("grid") == grid]  # type: ignore[attr-defined]
    expect(page.locator(".page-head .hint").first).to_contain_text("2 × 2 = 4 clips, about")
    asked = {(job["request"]["guidance_scale"], job["request"]["seed"]) for job in mine}  # type: ignore[index]
    assert asked == {(1, 1), (1, 2), (7, 1), (7, 2)}
    for _ in range(4):
        expect(page.locator(".cell video").nth(_)).to_have_js_property("readyState", 4)
    page.get_by_role("button", name="Pause", exact=True).click()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".frame-count")).to_have_text("2 / 9")
    times = page.locator(".cell video").evaluate_all("all => all.map(video => video.currentTime)")
    assert len(set(times)) == 1
    page.get_by_role("button", name="Differences").click()
    expect(page.locator(".cell canvas:not([hidden])")).to_have_count(3)
    light = """all => all.map(canvas => canvas.getContext("2d").getImageData(0, 0, 320, 160).data
        .filter((_, index) => index % 4 < 3).reduce((sum, value) => sum + value, 0))"""
    page.wait_for_timeout(500)
    assert all(page.locator(".cell canvas:not([hidden])").evaluate_all(light))
    page.reload()
    expect(page.locator(".cell video")).to_have_count(4)


def test_a_server_that_is_not_ready_says_why(studio: Studio) -> None:
    """Someone who opens the page of a server whose checkpoint is wrong is not left to wait."""
    page, why = studio.page, "the checkpoint lacks world.json"
    page.route("**/v1/metadata", lambda route: route.fulfill(json={"unready": why}))
    page.goto("about:blank")
    page.goto(f"{studio.url}/")
    expect(page.get_by_text(why)).to_be_visible()
    page.unroute("**/v1/metadata")
    expect(page.get_by_label("Prompt", exact=True)).to_be_visible(timeout=SLOW_MS)


def test_a_model_that_takes_long_to_load_is_waited_for(studio: Studio) -> None:
    """Without an error in the console, which an answer that it is not there yet would be."""
    page, asked = studio.page, []

    def never_then_at_once(route: Route) -> None:
        asked.append(route.request.url)
        if len(asked) > 1:
            route.continue_()

    page.route("**/v1/capabilities*", never_then_at_once)
    page.add_init_script("AbortSignal.timeout = (set => () => set.call(AbortSignal, 500))(AbortSignal.timeout)")
    page.reload()
    expect(page.get_by_text("is being loaded")).to_be_visible()
    expect(page.get_by_label("Prompt", exact=True)).to_be_visible()
    assert len(asked) > 1
    page.unroute("**/v1/capabilities*")


def test_a_grid_of_the_command_line_opens_and_is_exported(studio: Studio, tmp_path: Path) -> None:
    words = ["grid", "a red ball", "--x", "guidance_scale=1,7", "--y", "seed=1,2", "-o", str(tmp_path / "out")]
    words += ["--size", "320x192", "--frames", "9", "--steps", "2", "--server", studio.url]
    command = [sys.executable, "-c", "from cosmorama.cli import main; main()", *words]
    subprocess.run(command, check=True, timeout=240)
    [grid] = {job["metadata"].get("grid") for job in jobs(studio)[:4]}  # type: ignore[attr-defined]
    page = studio.page
    page.goto(f"{studio.url}/#/grid/{grid}")
    expect(page.locator(".cell video")).to_have_count(4)
    expect(page.get_by_role("columnheader", name="Guidance 7")).to_be_visible()
    for name, start in (("PNG sheet", b"\x89PNG"), ("MP4", b"\x00\x00\x00")):
        with page.expect_download() as download:
            page.get_by_role("button", name=name, exact=True).click()
        assert Path(download.value.path()).read_bytes().startswith(start)
    refused = [[], [[]], [[None]], [["x"] * 65], "x", [["job_nobodys"]]]
    answers = [httpx.post(f"{studio.url}/v1/sheets", json={"rows": rows}).status_code for rows in refused]
    assert answers == [422] * 5 + [404]


def test_a_grid_says_what_is_wrong_with_its_axes_and_values(studio: Studio) -> None:
    studio.seen.allowed = ("422",)
    page = studio.page
    describe(page, "a red ball", steps=2, frames=9)
    page.goto(f"{studio.url}/#/grid")
    page.get_by_label("Values across").fill("1, x")
    expect(page.get_by_role("alert").filter(has_text="x is not a number")).to_be_visible()
    page.get_by_label("Across", exact=True).select_option("seed")  # what stood down goes where this was
    expect(page.get_by_label("Down", exact=True)).to_have_value("guidance_scale")
    expect(page.get_by_label("Values down")).to_have_value("1, x")
    page.get_by_label("Down", exact=True).select_option("seed")
    page.get_by_label("Values across").fill("500")
    page.get_by_label("Values down").fill("1")
    page.get_by_role("button", name="Make the grid").click()
    expect(page.locator("[data-field=guidance_scale]").get_by_role("alert")).to_contain_text("500")


def test_two_clips_are_compared_under_a_wipe(studio: Studio) -> None:
    page = studio.page
    first = make(studio, "a red ball", seed=1)
    second = make(studio, "a red ball", seed=2, guidance_scale=3)
    page.goto(f"{studio.url}/#/compare?a={first['id']}&b={second['id']}")
    expect(page.locator(".over video")).to_have_count(2)
    rows = page.locator(".differences tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.filter(has_text="Seed")).to_have_text(re.compile("Seed.*1.*2"))
    wipe = page.get_by_role("slider", name="Wipe between A and B")
    wipe.focus()
    page.keyboard.press("Home")
    assert page.locator(".over").evaluate("node => node.style.getPropertyValue('--wipe')") == "0%"
    page.get_by_role("button", name="Difference", exact=True).click()
    expect(page.locator(".over.difference video")).to_have_count(2)
    page.get_by_role("button", name="Side by side").click()
    expect(page.locator(".side-by-side video")).to_have_count(2)


def test_the_history_is_searched_starred_and_deleted_from(studio: Studio) -> None:
    page = studio.page
    kept = make(studio, "a green cylinder", seed=77)
    gone = make(studio, "a purple cone", seed=78)
    page.keyboard.press("4")
    page.goto(f"{studio.url}/#/history")
    card = page.locator(f"[data-job='{kept['id']}']")
    expect(card.locator("img")).to_have_js_property("naturalWidth", 320)
    card.get_by_role("button", name="Star").click()
    expect(card.get_by_role("button", name="Star")).to_have_attribute("aria-pressed", "true")
    assert httpx.get(f"{studio.url}/v1/jobs/{kept['id']}").json()["metadata"] == {"starred": "yes"}
    page.get_by_label("Search the history").fill("cylinder 77")
    expect(page.locator(".card")).to_have_count(1)
    page.reload()
    expect(page.get_by_label("Search the history")).to_have_value("cylinder 77")
    expect(page.locator(".card")).to_have_count(1)
    page.get_by_label("Search the history").fill("")
    page.get_by_role("button", name="Starred").click()
    expect(page.locator(".card")).to_have_count(1)
    page.get_by_role("button", name="All", exact=True).click()
    page.locator(f"[data-job='{gone['id']}']").get_by_role("button", name="Delete").click()
    expect(page.locator(f"[data-job='{gone['id']}']")).to_have_count(0)
    assert httpx.get(f"{studio.url}/v1/jobs/{gone['id']}").status_code == 404


def test_a_long_history_scrolls(studio: Studio) -> None:
    """Five hundred jobs, told by the test instead of the server: pages are asked for while scrolling."""
    page = studio.page
    model = make(studio, "a red ball", seed=1)
    asked: list[str] = []

    def answer(route: Route) -> None:
        query = parse_qs(urlsplit(route.request.url).query)
        start, limit = int(query.get("cursor", ["0"])[0]), int(query["limit"][0])
        asked.append(route.request.url)
        data = [
            {**model, "id": f"job_{number:026}", "created_at": model["created_at"] - number, "result": None}
            for number in range(start, min(start + limit, 500))
        ]
        following = str(start + limit) if start + limit < 500 else None
        route.fulfill(json={"object": "list", "data": data, "next_cursor": following})

    page.route("**/v1/jobs?*", answer)
    page.goto("about:blank")
    page.goto(f"{studio.url}/#/history")
    expect(page.locator(".card")).not_to_have_count(0)
    few = page.locator(".card").count()
    assert few < 300
    for _ in range(12):
        page.mouse.wheel(0, 20_000)
        page.wait_for_timeout(250)
    expect(page.locator(".card")).to_have_count(500)
    assert len(asked) == len(set(asked))
    page.get_by_label("Search the history").fill(f"job_{321:026}")
    expect(page.locator(".card")).to_have_count(1)
    page.unroute("**/v1/jobs?*")


def test_keys(studio: Studio) -> None:
    page = studio.page
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    for key, view in zip("2341", ("grid", "compare", "history", "make"), strict=True):
        page.keyboard.press(key)
        expect(page.locator(f"nav [data-view={view}]")).to_have_attribute("aria-current", "page")
    page.keyboard.press("/")
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    page.keyboard.type("a red ball 4")  # keys that are written are not commands
    number(page, "steps").fill("2")
    number(page, "frames").fill("9")
    page.keyboard.press("Control+Enter")
    job_id(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", [*VIEWS, "result", "matrix"])
def test_axe_finds_nothing_serious(view: str, scheme: str, studio: Studio) -> None:
    page = studio.page
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    if view == "result":
        make(studio, "a red ball", seed=1)
    elif view == "matrix":
        describe(page, "a red ball", steps=1, frames=9)
        make_grid(page, "1, 2", "1")
        expect(page.locator(".cell video")).to_have_count(2, timeout=FINISHED_MS)
    else:
        page.goto(f"{studio.url}/{view}")
    for group in page.locator("details").all():
        group.evaluate("node => node.open = true")
    page.wait_for_timeout(300)
    found = Axe().run(page).response["violations"]
    serious = [
        f"{one['id']}: {node['target']} {node['failureSummary']}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
    assert serious == []
    page.emulate_media(color_scheme="light")


def narrow(page: Page) -> None:
    # Not `set_viewport_size`, which makes the window itself narrow too: Chromium's own bars were seen to spin then.
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": False}
    page.context.new_cdp_session(page).send("Emulation.setDeviceMetricsOverride", metrics)


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_overflows_on_a_narrow_screen(view: str, studio: Studio) -> None:
    page = studio.page
    narrow(page)
    page.goto(f"{studio.url}/{view}")
    page.wait_for_timeout(300)
    assert page.evaluate("innerWidth") == 360
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_clip_is_seen_without_scrolling_on_a_narrow_screen(studio: Studio) -> None:
    page = studio.page
    made = make(studio, "a narrow ball", seed=5)
    narrow(page)
    page.goto(f"{studio.url}/#/history")
    page.locator(f"[data-job='{made['id']}'] a.thumb").click()
    expect(page.locator(".stage video")).to_be_in_viewport(ratio=1)
    page.get_by_role("button", name="Same seed, change…").click()
    expect(page.get_by_label("Prompt", exact=True)).to_be_in_viewport()
    generate(page)
    expect(page.locator(".stage .screen")).to_be_in_viewport(ratio=1)


def test_first_paint_and_weight(studio: Studio) -> None:
    page = studio.page
    page.goto("about:blank")
    page.goto(f"{studio.url}/#/history")
    expect(page.get_by_label("Search the history")).to_be_visible()
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    sizes = page.evaluate("performance.getEntriesByType('resource').map(one => [one.name, one.decodedBodySize])")
    assert sum(size for name, size in sizes if "/content" not in name) < 1_000_000
    assert paint < 15_000  # 1.5 s where nothing else runs; this bears a loaded machine


def test_the_history_has_the_jobs_of_another_server_too(
    browser: BrowserContext, studio: Studio, tmp_path: Path
) -> None:
    there = make(studio, "a gray ball", seed=991)
    model = tmp_path / "model"
    save_tiny(model, sizes=((320, 192),))
    away = "http://127.0.0.1:9"  # nobody listens there
    with running_server(model, tmp_path, COSMORAMA_STUDIO_SERVERS=f"{studio.url},{away}") as server:
        opened = open_page(browser, server.url)
        page, host = opened.page, studio.url.split("/")[2]
        page.goto(f"{server.url}/#/history?q=gray+ball+991")
        card = page.locator(f"[data-job='{there['id']}']")
        expect(card.locator("img")).to_have_js_property("naturalWidth", 320)
        expect(card).to_contain_text(host)
        expect(page.get_by_role("status").filter(has_text="servers")).to_contain_text(
            "1 clip of 3 servers · 127.0.0.1:9: "
        )
        card.get_by_role("button", name="Star").click()
        expect(card.get_by_role("button", name="Star")).to_have_attribute("aria-pressed", "true")
        assert httpx.get(f"{studio.url}/v1/jobs/{there['id']}").json()["metadata"] == {"starred": "yes"}
        card.locator("a.thumb").click()
        expect(page.locator("video").first).to_have_js_property("readyState", 4)
        page.reload()
        expect(page.locator("video").first).to_have_js_property("readyState", 4)
        page.goto(f"{server.url}/#/history?q=gray+ball+991")
        card.get_by_role("button", name="Delete").click()
        expect(card).to_have_count(0)
        assert httpx.get(f"{studio.url}/v1/jobs/{there['id']}").status_code == 404
        page.close()
        assert opened.seen.errors == [text for text in opened.seen.errors if "127.0.0.1:9/" in text]
        assert opened.seen.hosts == {server.url.split("/")[2], host, "127.0.0.1:9"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, studio_server: Running) -> Iterator[Running]:
    """A server with an API key; who generates is the other one, which shares its jobs."""
    folder = tmp_path_factory.mktemp("guarded")
    shared = studio_server.log.parent
    settings = {"COSMORAMA_ROLE": "api", "COSMORAMA_STATE_DIR": str(shared / "state")}
    with running_server(shared / "model", folder, COSMORAMA_API_KEYS="studio:right-key", **settings) as server:
        yield server


def test_with_api_keys_the_page_asks_once_and_again_for_a_wrong_one(browser: BrowserContext, guarded: Running) -> None:
    studio = open_page(browser, guarded.url)
    studio.seen.allowed = ("401",)
    page = studio.page
    page.get_by_role("textbox", name="API key").fill("wrong-key")
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_text("The server does not know this key.")).to_be_visible()
    page.get_by_role("textbox", name="API key").fill("right-key")
    page.get_by_role("button", name="Continue").click()
    describe(page, "a red ball", steps=2, frames=9)
    generate(page)
    job_id(page)
    expect(page.locator(".stage .transport")).to_be_visible(timeout=FINISHED_MS)
    expect(page.locator(".stage video")).to_have_js_property("readyState", 4)
    page.reload()
    expect(page.locator(".stage .transport")).to_be_visible()
    assert page.evaluate("JSON.stringify(localStorage)").count("right-key") == 0
    assert "right-key" not in page.get_by_role("tabpanel").text_content()  # type: ignore[operator]
    page.close()
    studio.seen.check(guarded.url.split("/")[2])


@pytest.fixture
def prefixed(studio_server: Running, tmp_path: Path) -> Iterator[str]:
    """The server behind a proxy that adds a path prefix."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def _pass(self) -> None:
            if not self.path.startswith("/worlds/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {
                name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")
            }
            url = studio_server.url + self.path.removeprefix("/worlds")
            with httpx.stream(self.command, url, content=body, headers=headers, timeout=120) as answer:
                self.send_response(answer.status_code)
                for name, value in answer.headers.items():
                    if name.lower() not in ("transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.end_headers()
                for piece in answer.iter_raw():
                    self.wfile.write(piece)
                    self.wfile.flush()

        do_GET = do_POST = do_DELETE = _pass  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = ThreadingHTTPServer(("127.0.0.1", port), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{port}/worlds"
    finally:
        server.shutdown()


def test_behind_a_path_prefix(browser: BrowserContext, prefixed: str) -> None:
    studio = open_page(browser, prefixed)
    page = studio.page
    describe(page, "a red ball", steps=2, frames=9)
    generate(page)
    job_id(page)
    expect(page.locator(".stage .transport")).to_be_visible(timeout=FINISHED_MS)
    expect(page.locator(".stage video")).to_have_js_property("readyState", 4)
    page.close()
    studio.seen.check(prefixed.split("/")[2])
