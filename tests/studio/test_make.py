"""Making clips in the page, as a person does, against a real server."""

from __future__ import annotations

import io
import json
import re
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import av
import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.studio.conftest import Studio

FINISHED_MS = 120_000


def field(page: Page, name: str) -> Locator:
    """The control of a knob."""
    return page.locator(f"[data-field='{name}']")


def number(page: Page, name: str) -> Locator:
    return field(page, name).locator("input[type=number]")


def describe(page: Page, prompt: str, **knobs: object) -> None:
    """Fill in the form."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    for name, value in knobs.items():
        number(page, name).fill(str(value))


def generate(page: Page) -> None:
    page.get_by_role("button", name="Generate", exact=True).click()


def job_id(page: Page) -> str:
    """The job on the stage, once there is one."""
    expect(page).to_have_url(re.compile(r"#/job/job_\w+"))
    return page.url.rsplit("/", 1)[1]


def finished(page: Page) -> None:
    expect(page.locator(".stage .transport, .stage .error")).to_be_visible(timeout=FINISHED_MS)
    expect(page.locator(".stage .error")).to_have_count(0)
    expect(page.locator(".stage video")).to_have_js_property("readyState", 4, timeout=FINISHED_MS)


def job(studio: Studio, name: str) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{studio.url}/v1/jobs/{name}").json()
    return answer


def generated(studio: Studio) -> str:
    """Press Generate; the new job."""
    before = studio.page.url
    generate(studio.page)
    expect(studio.page).not_to_have_url(before)
    return job_id(studio.page)


def make(studio: Studio, prompt: str = "a red ball", **knobs: object) -> dict[str, Any]:
    """Make a clip with the page; the job."""
    describe(studio.page, prompt, **{"steps": 2, "frames": 9, **knobs})
    name = generated(studio)
    finished(studio.page)
    return job(studio, name)


def test_a_prompt_becomes_a_clip_that_plays_and_steps(studio: Studio) -> None:
    page = studio.page
    made = make(studio, "a red ball falls", seed=11, steps=3, guidance_scale=4)
    asked = made["request"]
    assert (asked["prompt"], asked["seed"], asked["steps"], asked["guidance_scale"]) == ("a red ball falls", 11, 3, 4)
    assert (asked["frames"], asked["width"], asked["height"]) == (9, 320, 192)
    count = page.locator(".frame-count")
    page.get_by_role("button", name="Pause", exact=True).click()
    page.locator(".stage").focus()
    page.keyboard.press("Home")
    expect(count).to_have_text("1 / 9")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(count).to_have_text("3 / 9")
    page.get_by_role("button", name="Previous frame").click()
    expect(count).to_have_text("2 / 9")
    page.locator(".stage").focus()
    page.keyboard.press("End")
    expect(count).to_have_text("9 / 9")
    page.keyboard.press(" ")
    expect(page.get_by_role("button", name="Pause", exact=True)).to_be_visible()
    expect(page.locator(".facts")).to_contain_text("11")


def test_every_knob_of_the_model_is_there_with_its_range_and_sentence(studio: Studio) -> None:
    page = studio.page
    capabilities = httpx.get(f"{studio.url}/v1/capabilities").json()
    knobs = capabilities["knobs"]
    for name in knobs.keys() - {"negative_prompt", "width", "height"}:
        # They are there even where their group is closed, or a picture or clip is still missing.
        text = field(page, name).text_content() or ""
        assert knobs[name]["description"] in text, name
    assert page.get_by_role("radio").count() == len(capabilities["sizes"])
    assert f"1 to {knobs['steps']['maximum']:g}" in (field(page, "steps").text_content() or "")
    for absent in ("controls", "adapters", "action"):
        assert field(page, absent).count() == 0


def test_the_rewritten_prompt_is_shown_and_used_as_it_was_edited(studio: Studio, picture: Path) -> None:
    page = studio.page
    describe(page, "a red ball", steps=2, frames=9)
    page.get_by_role("button", name="Show the rewritten prompt").click()
    text = page.get_by_label("Rewritten prompt")
    expect(text).not_to_be_empty()
    text.fill("a red ball, as I want it")
    page.get_by_role("button", name="Use this text").click()
    made = job(studio, generated(studio))["request"]
    assert (made["prompt"], made["prompt_upsampling"]) == ("a red ball, as I want it", False)
    page.get_by_label("Prompt", exact=True).fill("")
    page.get_by_label("Picture or clip to start from: choose a file").set_input_files(picture)
    page.get_by_role("button", name="Describe what is seen").click()
    expect(page.get_by_label("Rewritten prompt")).not_to_be_empty()


def test_a_refused_field_is_told_where_it_stands(studio: Studio) -> None:
    studio.seen.allowed = ("422",)
    page = studio.page
    describe(page, "a red ball", steps=9000)
    generate(page)
    expect(field(page, "steps").get_by_role("alert")).to_contain_text("9000 is not accepted")
    expect(number(page, "steps")).to_be_focused()
    number(page, "steps").fill("2")
    expect(field(page, "steps").get_by_role("alert")).to_be_hidden()
    page.get_by_label("Prompt", exact=True).fill("")
    generate(page)
    expect(field(page, "prompt").get_by_role("alert")).to_be_visible()


def test_a_running_clip_shows_its_frames_and_can_be_cancelled(studio: Studio) -> None:
    page = studio.page
    describe(page, "a red ball", steps=50, frames=457)
    page.get_by_role("radio", name="960×704").check(force=True)  # long enough to be seen while it is made
    generate(page)
    name = job_id(page)
    expect(page.locator(".says")).to_contain_text("Denoising", timeout=FINISHED_MS)
    expect(page.get_by_role("img", name="The clip as it is estimated now")).to_be_visible(timeout=FINISHED_MS)
    expect(page.locator(".left")).to_have_text(re.compile("about .* left"))  # also before any clip was finished
    # What the browser draws meanwhile, it draws on the processors that make the clip.
    drawn = """() => new Promise((done) => {
        const ask = window.requestAnimationFrame;
        let asked = 0;
        window.requestAnimationFrame = (f) => { asked += 1; return ask(f); };
        setTimeout(() => done([asked, document.getAnimations().length]), 1000);
    })"""
    assert page.evaluate(drawn) == [0, 0]
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Cancelled before it was finished")).to_be_visible(timeout=FINISHED_MS)
    assert job(studio, name)["state"] == "cancelled"
    page.get_by_role("button", name="Edit and try again").click()
    expect(number(page, "frames")).to_have_value("457")


def test_a_reload_in_the_middle_goes_on_watching(studio: Studio) -> None:
    page = studio.page
    describe(page, "a blue cube", steps=50, frames=121)
    page.get_by_role("radio", name="960×704").check(force=True)
    generate(page)
    name = job_id(page)
    expect(page.locator(".says")).to_contain_text(re.compile("Denoising|Decoding"), timeout=FINISHED_MS)
    page.reload()
    assert job_id(page) == name
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a blue cube")
    expect(number(page, "steps")).to_have_value("50")
    finished(page)
    page.reload()
    finished(page)


def test_from_a_picture_and_again_with_it(studio: Studio, picture: Path) -> None:
    page = studio.page
    page.get_by_label("Picture or clip to start from: choose a file").set_input_files(picture)
    expect(page.get_by_alt_text("The given picture, red.png")).to_be_visible()
    first = make(studio, "it falls", seed=3)
    assert first["mode"] == "image2world"
    page.get_by_role("button", name="Remove").click()
    page.get_by_role("button", name="Again, new seed").click()
    expect(page).not_to_have_url(re.compile(first["id"]))
    second = job(studio, job_id(page))
    assert second["mode"] == "image2world"
    assert second["request"]["seed"] != 3
    given = [httpx.get(f"{studio.url}{one['request']['image']}").content for one in (first, second)]
    assert given[0] == given[1] == picture.read_bytes()


def test_from_the_webcam(studio: Studio) -> None:
    page = studio.page
    page.get_by_role("button", name="Webcam").click()
    video = page.locator("dialog video")
    expect(video).to_have_js_property("readyState", 4)
    page.get_by_role("button", name="Take a picture").click()
    expect(page.get_by_alt_text("The given picture, webcam.png")).to_be_visible()


def test_a_picture_that_is_pasted_or_dropped(studio: Studio) -> None:
    page = studio.page
    give = """async (kind) => {
        const canvas = new OffscreenCanvas(32, 32);
        canvas.getContext("2d").fillRect(0, 0, 16, 16);
        const data = new DataTransfer();
        data.items.add(new File([await canvas.convertToBlob()], `${kind}.png`, {type: "image/png"}));
        const event = kind === "paste"
            ? new ClipboardEvent("paste", {clipboardData: data, bubbles: true})
            : new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
        document.querySelector(kind === "paste" ? "body" : ".drop").dispatchEvent(event);
    }"""
    page.evaluate(give, "paste")
    expect(page.get_by_alt_text("The given picture, paste.png")).to_be_visible()
    page.get_by_role("button", name="Remove").click()
    page.evaluate(give, "drop")
    expect(page.get_by_alt_text("The given picture, drop.png")).to_be_visible()


def test_going_on_from_a_clip_and_from_a_frame_of_it(studio: Studio) -> None:
    page = studio.page
    make(studio, "a red ball", seed=5)
    page.get_by_role("button", name="Same seed, change…").click()  # says that nothing is continued
    page.get_by_role("button", name="Go on from the end").click()
    expect(page.get_by_text("the clip before", exact=True)).to_be_visible()
    expect(field(page, "conditioning_frames")).to_be_visible()
    on = make(studio, "it stops")
    assert on["mode"] == "video2world"
    page.get_by_role("button", name="Remove").click()
    page.get_by_role("button", name="Start from this frame").click()
    expect(page.get_by_text(re.compile(r"^frame \d$"))).to_be_visible()
    assert make(studio, "it stops")["mode"] == "image2world"


def test_the_same_seed_with_one_knob_changed(studio: Studio) -> None:
    page = studio.page
    first = make(studio, "a red ball", seed=21, guidance_scale=2)
    page.get_by_role("button", name="Draw a seed").click()
    page.get_by_role("button", name="Same seed, change…").click()
    expect(number(page, "seed")).to_have_value("21")
    number(page, "guidance_scale").fill("6")
    second = job(studio, generated(studio))
    changed = {name for name, value in second["request"].items() if first["request"][name] != value}
    assert changed == {"guidance_scale"}


def test_what_another_client_had_made_at_a_size_of_its_own_is_made_again(studio: Studio) -> None:
    page = studio.page
    body = {"prompt": "a ball", "width": 100, "height": 64, "fps": 60, "fit": True, "frames": 9, "steps": 2}
    video = {"dialect": "cosmorama", **body}
    name = httpx.post(f"{studio.url}/v1/jobs", json=video).raise_for_status().json()["id"]
    page.goto(f"{studio.url}/#/job/{name}")
    finished(page)
    page.get_by_role("button", name="Again, new seed").click()
    expect(page).not_to_have_url(re.compile(name))
    expect(field(page, "size").locator("legend")).to_have_text("Size: 100×64, made at the nearest")
    finished(page)
    again = job(studio, job_id(page))
    assert {key: again["request"][key] for key in body} == body


def test_a_file_that_was_delivered_is_said_to_be_gone(studio: Studio) -> None:
    small = {"width": 320, "height": 192, "frames_count": 9}
    httpx.post(
        f"{studio.url}/v1/infer", json={"prompt": "an answered ball", "steps": 2, "video_params": small}, timeout=120
    )
    newest = httpx.get(f"{studio.url}/v1/jobs?limit=1").json()["data"][0]
    studio.page.goto(f"{studio.url}/#/job/{newest['id']}")
    expect(studio.page.get_by_text("The file is not here any more")).to_be_visible()
    expect(studio.page.get_by_role("button", name="Download")).to_have_count(0)


def test_a_link_restores_the_form(studio: Studio) -> None:
    page = studio.page
    make(studio, "a red & blue ball = 100 %", seed=4, guidance_scale=3.5)
    page.get_by_role("button", name="Copy a link to these settings").click()
    expect(page.get_by_text("Link copied")).to_be_visible()
    link = page.evaluate("navigator.clipboard.readText()")
    assert "a red & blue ball" in unquote(link.replace("+", " "))
    assert "negative_prompt" not in link  # what is usual needs no words
    page.evaluate("localStorage.clear()")
    page.goto("about:blank")
    page.goto(link)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a red & blue ball = 100 %")
    expect(number(page, "seed")).to_have_value("4")
    expect(number(page, "guidance_scale")).to_have_value("3.5")


def test_a_file_that_was_made_here_brings_its_settings(studio: Studio, tmp_path: Path) -> None:
    page, made = studio.page, {}
    body = {
        "dialect": "cosmorama",
        "prompt": "a ball \u2014 'rouge', \"red\"",
        "prompt_upsampling": False,
        "width": 320,
    }
    body |= {"height": 192, "steps": 2, "seed": 91, "guidance_scale": 2.5}
    for container, suffix in (("mp4", "mp4"), ("webm", "webm"), ("jpeg", "jpg"), ("gif", "gif")):
        frames = {"frames": 1 if suffix == "jpg" else 9, "output": {"container": container}}
        made[suffix] = httpx.post(f"{studio.url}/v1/jobs", json=body | frames).raise_for_status().json()["id"]
    for suffix, name in made.items():
        page.goto(f"{studio.url}/#/job/{name}")
        expect(page.get_by_role("button", name="Download")).to_be_visible(timeout=FINISHED_MS)
        path = tmp_path / f"made.{suffix}"
        path.write_bytes(httpx.get(f"{studio.url}/v1/jobs/{name}/content").content)
        page.goto(f"{studio.url}/#/make?prompt=other")
        page.get_by_label(re.compile("to start from: choose a file")).set_input_files(path)
        page.get_by_role("button", name="Use its settings").click()
        expect(page.get_by_label("Prompt", exact=True)).to_have_value(body["prompt"])
        expect(number(page, "seed")).to_have_value("91")
        expect(number(page, "guidance_scale")).to_have_value("2.5")
        expect(page.get_by_role("button", name="Remove")).to_have_count(0)


def code(page: Page, tab: str) -> str:
    page.get_by_role("tab", name=tab).click()
    text = page.get_by_role("tabpanel").text_content()
    assert text is not None
    return text


@pytest.mark.parametrize("way", ["curl", "Python", "OpenAI SDK", "JSON"])
def test_the_request_as_code_makes_the_same_bytes(way: str, studio: Studio, tmp_path: Path) -> None:
    made = make(studio, 'it\'s a "red" ball & a $cube', seed=8, guidance_scale=3)
    text = code(studio.page, way)
    if way == "JSON":
        answer = httpx.post(f"{studio.url}/v1/jobs", json=json.loads(text))
        assert answer.status_code == 202, answer.text
        again = answer.json()["request"]
        assert again == made["request"]
        return
    if way == "curl":
        subprocess.run(["bash", "-ec", text], cwd=tmp_path, check=True, timeout=120)
    else:
        # In a process of its own, as a user runs it: the browser's event loop is in this one.
        import sys

        subprocess.run([sys.executable, "-c", text], cwd=tmp_path, check=True, timeout=120)
    clip = httpx.get(f"{studio.url}/v1/jobs/{made['id']}/content").content
    if way == "OpenAI SDK":  # the same frames; the file says that another dialect asked for them
        with av.open(str(tmp_path / "clip.mp4")) as ours, av.open(io.BytesIO(clip)) as theirs:
            pairs = list(zip(ours.decode(video=0), theirs.decode(video=0), strict=True))
        assert pairs
        assert all((one.to_ndarray() == other.to_ndarray()).all() for one, other in pairs)
    else:
        assert (tmp_path / "clip.mp4").read_bytes() == clip
