"""The page as it is served: whole, small, from its own origin alone, and without a key."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

import cosmorama.studio
from cosmorama.api.app import create_app
from cosmorama.settings import Settings

STATIC = Path(cosmorama.studio.__file__).parent / "static"
FILES = sorted(path for path in STATIC.iterdir() if path.is_file())
MOST_BYTES = 1_000_000


def ask(*paths: str, method: str = "GET") -> list[httpx.Response]:
    async def answers() -> list[httpx.Response]:
        app = create_app(Settings(api_keys=(SecretStr("key"),)))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return [await client.request(method, path) for path in paths]

    # In a thread: the browser of other tests has an event loop in this one.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, answers()).result()


def test_the_page_and_its_files_need_no_key_and_come_under_a_strict_policy() -> None:
    for answer in ask("/", *(f"/studio/{path.name}" for path in FILES)):
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-cache"


def test_nothing_but_the_page_is_open_beside_it() -> None:
    paths = ("/studio/../v1/jobs", "/studio/%2e%2e/v1/jobs", "/studio/nothing.js", "/studio", "/v1/jobs", "//v1/jobs")
    for path, answer in zip(paths, ask(*paths), strict=True):
        assert answer.status_code in (401, 404), path
    [answer] = ask("/", method="HEAD")
    assert (answer.status_code, answer.content) == (200, b"")


def test_the_whole_page_is_below_a_megabyte() -> None:
    assert sum(path.stat().st_size for path in FILES) < MOST_BYTES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_address_in_the_files_is_relative(path: Path) -> None:
    """So the page works behind a path prefix, and asks no other host for anything."""
    text = path.read_text()
    others = [url for url in re.findall(r"https?://[^\s\"'`)]+", text) if not url.startswith("http://www.w3.org/")]
    assert not others
    assert not re.findall(r"(?:href|src|action)=[\"']/", text)
    assert not re.findall(r"(?:get|post|call|follow|fetch)\([`\"']/", text)


def test_what_the_page_loads_is_there() -> None:
    names = {path.name for path in FILES}
    loaded = set(re.findall(r"studio/([\w.-]+)", (STATIC / "index.html").read_text()))
    for path in STATIC.glob("*.js"):
        loaded |= set(re.findall(r"from \"\./([\w.-]+)\"", path.read_text()))
    assert loaded <= names
    assert names - loaded == {"index.html"}
