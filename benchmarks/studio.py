"""How quickly the studio is there, what it weighs, whether a long history scrolls, and how long a newcomer takes.

    python -m benchmarks.studio --out studio.json                       # a server of its own with Microcosm
    python -m benchmarks.studio --url http://localhost:8000 --out studio.json --pictures shots/

Chromium is that of `COSMORAMA_CHROMIUM`, else the one on the path; Playwright comes with the extra `test`. The jobs of
the history are told by the benchmark instead of the server. The walk has nothing but the page: type a prompt, generate,
wait for the clip; then the grid as it stands until all of its clips play. Between its steps it waits as people look.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
from playwright.sync_api import Page, Route, expect, sync_playwright

LOADS, JOBS, LOOK_MS, PATIENCE_MS = 5, 500, 1500, 600_000
PROMPT = "a red ball rolls to the right"


@contextmanager
def own_server(folder: Path) -> Iterator[str]:
    """A server as `cosmorama serve` starts it, on a port of its own."""
    port = 18_473
    command = [sys.executable, "-c", "from cosmorama.cli import main; main()", "serve", "--port", str(port)]
    server = subprocess.Popen([*command, "--state-dir", str(folder)], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{url}/v1/health/ready", timeout=30).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(60)


def loads(page: Page, url: str) -> dict[str, Any]:
    """First paints with an empty cache, and the bytes of everything but clips."""
    paints, weights = [], []
    for _ in range(LOADS):
        page.goto("about:blank")
        page.context.clear_cookies()
        page.goto(f"{url}/#/make")
        page.get_by_label("Prompt", exact=True).wait_for()
        paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000)
        sizes = page.evaluate("performance.getEntriesByType('resource').map(one => [one.name, one.decodedBodySize])")
        weights.append(sum(size for name, size in sizes if "/content" not in name))
    return {"first_paint_s": round(statistics.median(paints), 3), "paints_s": paints, "bytes": max(weights)}


def scrolls(page: Page, url: str) -> dict[str, Any]:
    """The history of 500 jobs from its top to its end."""
    job = {
        "object": "job", "id": "", "state": "succeeded", "stage": "done", "step": 20, "total": 20, "model": "microcosm",
        "mode": "text2world", "dialect": "cosmorama", "metadata": {}, "warnings": [], "result": None, "error": None,
        "request": {"prompt": PROMPT, "seed": 1, "width": 960, "height": 704, "frames": 33, "fps": 24, "steps": 20},
    }  # fmt: skip

    def answer(route: Route) -> None:
        query = parse_qs(urlsplit(route.request.url).query)
        start, limit = int(query.get("cursor", ["0"])[0]), int(query["limit"][0])
        data = [
            {**job, "id": f"job_{number:026}", "created_at": 1_750_000_000 - number}
            for number in range(start, min(start + limit, JOBS))
        ]
        route.fulfill(
            json={"object": "list", "data": data, "next_cursor": str(start + limit) if start + limit < JOBS else None}
        )

    page.route("**/v1/jobs?*", answer)
    page.goto("about:blank")
    begun = time.monotonic()
    page.goto(f"{url}/#/history")
    page.locator(".card").first.wait_for()
    first = time.monotonic() - begun
    while page.locator(".card").count() < JOBS:
        page.mouse.wheel(0, 20_000)
        page.wait_for_timeout(50)
    whole = time.monotonic() - begun
    frames = page.evaluate(
        "new Promise(done => { const times = []; let at = 0; window.scrollTo(0, 0);"
        " const step = now => { times.push(now); window.scrollBy(0, 400);"
        " ++at < 60 ? requestAnimationFrame(step) : done(times); }; requestAnimationFrame(step); })"
    )
    gaps = [after - before for before, after in itertools.pairwise(frames)]
    page.unroute("**/v1/jobs?*")
    return {
        "jobs": JOBS,
        "first_card_s": round(first, 3),
        "all_cards_s": round(whole, 3),
        "frame_ms_median": round(statistics.median(gaps), 1),
        "frame_ms_worst": round(max(gaps), 1),
    }


def walk(page: Page, url: str, pictures: Path | None) -> dict[str, Any]:
    """A newcomer's way to a clip, and to what the seed does."""

    def look(name: str) -> None:
        page.wait_for_timeout(LOOK_MS)
        if pictures is not None:
            page.screenshot(path=pictures / f"walk-{name}.png")

    begun = time.monotonic()
    page.goto(f"{url}/")
    page.get_by_label("Prompt", exact=True).wait_for()
    look("1-opened")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    look("2-typed")
    page.get_by_role("button", name="Generate", exact=True).click()
    look("3-waiting")
    expect(page.locator(".stage video")).to_have_js_property("readyState", 4, timeout=PATIENCE_MS)
    clip = time.monotonic() - begun
    look("4-clip")
    page.get_by_role("navigation").get_by_role("link", name="Grid").click()
    look("5-grid")
    page.get_by_role("button", name="Make the grid").click()
    expect(page.locator(".cell video").first).to_be_visible(timeout=PATIENCE_MS)
    cells = page.locator(".cell").count()
    expect(page.locator(".cell video")).to_have_count(cells, timeout=PATIENCE_MS)
    look("6-grid-made")
    return {"clip_s": round(clip, 1), "grid_s": round(time.monotonic() - begun, 1), "cells": cells}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="A server that is there; none: one of its own.")
    parser.add_argument("--out", type=Path, required=True, help="JSON file.")
    parser.add_argument("--pictures", type=Path, help="Folder for pictures of the walk.")
    parser.add_argument("--no-walk", action="store_true", help="Make no clips.")
    given = parser.parse_args()
    chromium = os.environ.get("COSMORAMA_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if given.pictures is not None:
        given.pictures.mkdir(parents=True, exist_ok=True)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(PATIENCE_MS)

        def measured(url: str) -> dict[str, Any]:
            found = {"page": loads(page, url), "history": scrolls(page, url)}
            return found if given.no_walk else found | {"walk": walk(page, url, given.pictures)}

        if given.url is None:
            with own_server(Path(folder)) as url:
                found = measured(url)
        else:
            found = measured(given.url.rstrip("/"))
        version = browser.version
        browser.close()
    found |= {
        "chromium": version,
        "cores": os.cpu_count(),
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
    }
    given.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
