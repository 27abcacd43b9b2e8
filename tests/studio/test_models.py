"""The form of models that take more than a prompt: controls, actions, adapters, several models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import BrowserContext, Route, expect

from cosmorama.media.write import VideoWriter
from cosmorama.request import Output
from tests.serving import Running, running_server
from tests.studio.conftest import Studio, open_page
from tests.studio.test_make import describe, field, finished, generate, generated, job, number
from tests.world.cosmos.transfer_checkpoints import save_transfer
from tests.world.cosmos3_checkpoints import KARRAS, save_cosmos3

UMI = "umi (10 numbers)"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with a model that follows clips and one that knows robots."""
    folder = tmp_path_factory.mktemp("models")
    save_transfer(folder / "transfer")
    for part in ("transformer", "controlnet"):  # long enough for the chunks that the server makes
        config = folder / "transfer" / part / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"max_size": [32, 32, 32]}))
    save_cosmos3(folder / "robots", actions=True, scheduler=KARRAS)
    named = f"transfer={folder / 'transfer'},robots={folder / 'robots'}"
    with running_server(folder, folder, COSMORAMA_MODELS=named) as server:
        yield server


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five frames of 64x32."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with VideoWriter(path, width=64, height=32, fps=12, output=Output()) as writer:
        writer.write(np.random.default_rng(0).integers(0, 255, (5, 32, 64, 3), dtype=np.uint8))
    return path


@pytest.fixture
def page_of_models(browser: BrowserContext, models: Running) -> Iterator[Studio]:
    opened = open_page(browser, models.url)
    opened.page.evaluate("localStorage.clear()")
    opened.page.goto("about:blank")
    opened.page.goto(f"{models.url}/")
    opened.page.get_by_label("Prompt", exact=True).wait_for()
    yield opened
    opened.page.close()
    opened.seen.check(opened.url.split("/")[2])


def choose(studio: Studio, model: str) -> None:
    """Turn to a model, which may have to be loaded first."""
    models = studio.page.get_by_label("Model", exact=True)
    if models.input_value() != model:  # or the form would be built anew while it is filled in
        models.select_option(model)
    expect(studio.page.locator("#status")).to_have_text(model, timeout=240_000)


def small(studio: Studio, width: int, height: int) -> None:
    studio.page.get_by_label("Width", exact=True).fill(str(width))
    studio.page.get_by_label("Height", exact=True).fill(str(height))


def test_a_clip_is_followed_by_its_edges_for_as_long_as_it_is(page_of_models: Studio, clip: Path) -> None:
    studio, page = page_of_models, page_of_models.page
    choose(studio, "transfer")
    describe(page, "a red ball", steps=1, seed=1)
    small(studio, 64, 32)
    page.get_by_label("Clip to follow: choose a file").set_input_files(clip)
    page.get_by_label("Edges", exact=True).check()
    page.get_by_label("Weight of edge").fill("0.7")
    page.get_by_label("Preset of edge").select_option("low")
    expect(number(page, "frames")).to_have_value("")
    made = job(studio, generated(studio))
    finished(page)
    asked = made["request"]
    assert [asked["controls"][0][name] for name in ("kind", "weight", "preset")] == ["edge", 0.7, "low"]
    done = job(studio, made["id"])
    assert (done["state"], done["mode"], done["result"]["frames"]) == ("succeeded", "transfer", 5)
    expect(page.locator(".frame-count")).to_have_text(re.compile("/ 5$"))
    page.get_by_role("button", name="Same seed, change…").click()
    expect(page.get_by_label("Edges", exact=True)).to_be_checked()
    expect(page.get_by_label("Weight of edge")).to_have_value("0.7")
    expect(page.get_by_text("the job's clip")).to_be_visible()


def test_a_control_that_lacks_its_clip_is_told_at_the_control(page_of_models: Studio, clip: Path) -> None:
    studio, page = page_of_models, page_of_models.page
    choose(studio, "transfer")
    studio.seen.allowed = ("422",)
    describe(page, "a red ball", steps=1)
    generate(page)
    expect(page.locator("[data-field=controls]").last.get_by_role("alert").last).to_contain_text("control clip")
    page.get_by_label("Clip to follow: choose a file").set_input_files(clip)
    page.get_by_label("Depth", exact=True).check()
    generate(page)
    expect(page.locator("[data-field='controls.depth']").first.get_by_role("alert")).not_to_be_empty()


def test_a_policy_shows_the_actions_that_it_predicts(page_of_models: Studio, picture: Path) -> None:
    studio, page = page_of_models, page_of_models.page
    choose(studio, "robots")
    expect(page.get_by_role("heading", name="Action")).to_be_hidden()
    page.get_by_label("Task").select_option("policy")
    describe(page, "the arm lifts a cup", steps=1, guidance_scale=1)
    page.locator("details").filter(has_text="more sizes").evaluate("node => node.open = true")
    small(studio, 256, 256)
    page.get_by_label("Picture or clip to start from: choose a file").set_input_files(picture)
    page.get_by_label("Robot").select_option(label=UMI)
    page.get_by_label("Number of actions").fill("4")
    made = job(studio, generated(studio))
    finished(page)
    assert (made["request"]["action"]["domain"], made["request"]["frames"]) == (6, 5)
    shown = page.get_by_role("region", name="Predicted actions")
    expect(shown).to_contain_text("4 actions of 10 numbers")
    with page.expect_download() as download:
        shown.get_by_role("button", name="CSV").click()
    rows = Path(download.value.path()).read_text().splitlines()
    assert [len(row.split(",")) for row in rows] == [10] * 4
    answer = httpx.get(f"{studio.url}/v1/jobs/{made['id']}/actions", timeout=60)
    assert answer.json()["shape"] == [4, 10]


def test_actions_are_pasted_as_lines_and_checked_where_they_stand(page_of_models: Studio, picture: Path) -> None:
    studio, page = page_of_models, page_of_models.page
    choose(studio, "robots")
    page.get_by_label("Task").select_option("forward_dynamics")
    page.get_by_label("Robot").select_option(label=UMI)
    rows = page.get_by_label("Actions", exact=True)
    told = page.locator("[data-field=action]").get_by_role("alert")
    rows.fill("0.1, zero")
    expect(told).to_contain_text("Only numbers")
    rows.fill("0.1, 0.2")
    expect(told).to_contain_text("umi has 10")
    rows.fill("\n".join(", ".join(["0.5"] * 10) for _ in range(3)))
    expect(told).to_be_hidden()
    expect(page.get_by_label("Number of actions")).to_have_value("4")
    page.get_by_label("Picture or clip to start from: choose a file").set_input_files(picture)
    bodies: list[dict[str, Any]] = []

    def refuse(route: Route) -> None:
        bodies.append(json.loads(route.request.post_data or "{}"))
        error = {"message": "action.values: 3 is not accepted; expected 4 rows", "type": "invalid_request", "code": 422}
        route.fulfill(status=422, json={"error": error})

    studio.seen.allowed = ("422",)
    page.route("**/v1/jobs", refuse)
    generate(page)
    expect(told).to_contain_text("expected 4 rows")
    [body] = bodies
    assert (body["task"], body["action"]["steps"], len(body["action"]["values"])) == ("forward_dynamics", 4, 3)
    assert "frames" not in body
    page.unroute("**/v1/jobs")


def test_adapters_are_chosen_with_their_scale(page_of_models: Studio) -> None:
    """The answer about the model is given two adapters, which no tiny checkpoint of this server has."""
    studio, page = page_of_models, page_of_models.page

    def with_adapters(route: Route) -> None:
        told = route.fetch().json()
        knob = {**told["knobs"]["output.container"], "choices": ["night", "rain"], "description": "A LoRA adapter."}
        route.fulfill(json={**told, "adapters": ["night", "rain"], "knobs": {**told["knobs"], "adapters.name": knob}})

    page.route("**/v1/capabilities*", with_adapters)
    studio.seen.allowed = ("422",)
    page.goto("about:blank")
    page.goto(f"{studio.url}/")
    describe(page, "a red ball", steps=1)
    page.get_by_label("night", exact=True).check()
    page.get_by_label("Scale of night").fill("0.6")
    with page.expect_request("**/v1/jobs") as sent:
        generate(page)
    assert json.loads(sent.value.post_data or "{}")["adapters"] == [{"name": "night", "scale": 0.6}]
    expect(field(page, "adapters").get_by_role("alert")).to_contain_text("night")
    page.unroute("**/v1/capabilities*")
