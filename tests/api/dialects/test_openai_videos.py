"""OpenAI's Videos API, through OpenAI's own client as it is published."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import httpx
import openai
import pytest
from PIL import Image

from cosmorama.api.dialects.openai_videos import parse
from cosmorama.api.videos import percent, video_object
from cosmorama.engine.outcome import Outcome
from cosmorama.errors import CosmoramaError
from cosmorama.jobs.model import Job, JobResult
from cosmorama.progress import Progress
from cosmorama.request import Capabilities, Defaults, Range
from cosmorama.resolve import resolve
from cosmorama.settings import Settings
from tests.api.dialects.conftest import SLOW_SEED, running
from tests.jobs.fake import REQUEST


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server with no videos of other tests."""
    with running(tmp_path_factory.mktemp("videos")) as client:
        yield client


@pytest.fixture(scope="module")
def client(server: httpx.Client) -> Iterator[openai.OpenAI]:
    """The official client, which only was given a base URL."""
    with openai.OpenAI(base_url=str(server.base_url.join("/v1")), api_key="none", max_retries=0) as client:
        yield client


def test_a_finished_video_is_as_long_and_large_as_its_clip_is() -> None:
    """Not as the request was resolved: a transfer may be as long as its controls."""
    known: dict[str, Any] = {"dialect": "openai", "model": "fake", "owner": "", "priority": "normal", "created_at": 0.0}
    asked = Job(id="one", state="running", request=REQUEST, **known)
    outcome = Outcome(Path("clip.mp4"), seed=1, prompt="p", width=640, height=352, frames=60, fps=24, timings={})
    made = replace(asked, state="succeeded", result=JobResult(outcome, "video/mp4", 9, "key"))
    assert (video_object(made)["seconds"], video_object(made)["size"]) == ("2.5", "640x352")
    length = f"{REQUEST.result.frames / REQUEST.result.fps:g}"
    assert video_object(asked)["seconds"] == length != "2.5"


pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")  # OpenAI's service, not this one


def make(client: openai.OpenAI, **options: Any) -> Any:
    small: dict[str, Any] = {"size": "96x64", "seconds": "0.5"}
    return client.videos.create_and_poll(prompt="a red ball", poll_interval_ms=20, **(small | options))


def size_of(clip: bytes) -> tuple[int, int, int]:
    with av.open(io.BytesIO(clip)) as container:
        stream = container.streams.video[0]
        return stream.width, stream.height, sum(1 for _ in container.decode(video=0))


def test_create_poll_and_download(client: openai.OpenAI, tmp_path: Path) -> None:
    video = make(client)
    assert (video.status, video.progress, video.object, video.model) == ("completed", 100, "video", "painter")
    assert (video.size, video.seconds, video.prompt, video.error) == ("96x64", "0.5", "a red ball", None)
    assert video.completed_at >= video.created_at
    content = client.videos.download_content(video.id)
    content.write_to_file(tmp_path / "clip.mp4")
    assert size_of((tmp_path / "clip.mp4").read_bytes()) == (96, 64, 12)


def test_thumbnail_and_spritesheet(client: openai.OpenAI) -> None:
    video = make(client)
    with Image.open(io.BytesIO(client.videos.download_content(video.id, variant="thumbnail").content)) as picture:
        assert (picture.format, picture.size) == ("WEBP", (96, 64))
    job = str(client.base_url).rstrip("/") + f"/jobs/{video.id}/content"
    of_the_job = httpx.get(job, params={"variant": "thumbnail"})
    assert of_the_job.content == client.videos.download_content(video.id, variant="thumbnail").content
    assert "immutable" in of_the_job.headers["cache-control"]
    assert httpx.get(job, params={"variant": "poster"}).status_code == 422
    with Image.open(io.BytesIO(client.videos.download_content(video.id, variant="spritesheet").content)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (4 * 96, 4 * 64))
        # The painter's clips get brighter, so the sheet does from its first cell to its last.
        assert sum(picture.getpixel((5, 5))) + 100 < sum(picture.getpixel((3 * 96 + 5, 3 * 64 + 5)))  # type: ignore[arg-type]


def test_any_size_is_fitted(client: openai.OpenAI) -> None:
    video = make(client, size="1024x1792", seconds="0.1")
    assert video.size == "1024x1792"
    assert size_of(client.videos.download_content(video.id).content)[:2] == (1024, 1792)


def test_the_knobs_travel_in_extra_body(client: openai.OpenAI, server: httpx.Client) -> None:
    knobs = {
        "seed": 5,
        "steps": 7,
        "guidance_scale": 3.5,
        "negative_prompt": "fog",
        "fps": 12,
        "frames": 6,
        "prompt_upsampling": False,
    }
    video = make(client, extra_body=knobs)
    asked = server.get(f"/v1/jobs/{video.id}").json()["request"]
    assert (asked["seed"], asked["steps"], asked["fps"], asked["frames"]) == (5, 7, 12, 6)
    with pytest.raises(openai.BadRequestError, match=r"guidence_scale.*did you mean 'guidance_scale'"):
        make(client, extra_body={"guidence_scale": 3})


def test_input_reference(client: openai.OpenAI, server: httpx.Client, jpeg: bytes, mp4: bytes) -> None:
    modes = []
    for reference in (("start.jpg", jpeg), ("clip.mp4", mp4)):
        video = make(client, input_reference=reference)
        assert video.status == "completed"
        modes.append(server.get(f"/v1/jobs/{video.id}").json()["mode"])
    # What the client's types allow besides, it cannot send itself.
    text = base64.b64encode(mp4).decode()
    for value in (
        {"image_url": f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"},
        {"video_url": text},
        text,
    ):
        begun = server.post("/v1/videos", json={"prompt": "a", "input_reference": value}).json()
        modes.append(server.get(f"/v1/jobs/{begun['id']}").json()["mode"])
    assert modes == ["image2world", "video2world", "image2world", "video2world", "video2world"]
    refused = server.post("/v1/videos", json={"prompt": "a", "input_reference": {"file_id": "file-1"}})
    assert refused.status_code == 400
    assert "file_id is not supported" in refused.json()["error"]["message"]


def test_list_pages_in_both_orders(tmp_path: Path) -> None:
    with running(tmp_path) as server, openai.OpenAI(
        base_url=str(server.base_url.join("/v1")), api_key="none"
    ) as client:  # fmt: skip
        server.post("/v1/infer", json={"prompt": "no video", "video_params": {"width": 64, "height": 64}})
        made = [make(client).id for _ in range(5)]
        page = client.videos.list(limit=2)
        assert [video.id for video in page.data] == made[:-3:-1]
        assert page.has_more
        assert [video.id for video in client.videos.list(limit=2)] == made[::-1]  # the client turns the pages
        assert [video.id for video in client.videos.list(order="asc", limit=3)] == made
        assert [video.id for video in client.videos.list(order="asc", after=made[2]).data] == made[3:]


def test_delete(client: openai.OpenAI) -> None:
    video = make(client)
    deleted = client.videos.delete(video.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (video.id, True, "video.deleted")
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)


def test_remix_keeps_everything_but_the_prompt(client: openai.OpenAI, server: httpx.Client, jpeg: bytes) -> None:
    first = make(client, input_reference=("start.jpg", jpeg), extra_body={"seed": 11, "steps": 9})
    again = client.videos.poll(client.videos.remix(first.id, prompt="a blue cube").id, poll_interval_ms=20)
    assert (again.status, again.prompt, again.remixed_from_video_id) == ("completed", "a blue cube", first.id)
    assert (again.size, again.seconds) == (first.size, first.seconds)
    job = server.get(f"/v1/jobs/{again.id}").json()
    assert (job["mode"], job["request"]["seed"], job["request"]["steps"]) == ("image2world", 11, 9)


def test_progress_grows_with_the_steps(client: openai.OpenAI) -> None:
    video = client.videos.create(prompt="a", size="96x64", seconds="0.1", extra_body={"seed": SLOW_SEED})  # type: ignore[arg-type]
    assert video.status in ("queued", "in_progress")
    seen = []
    while (now := client.videos.retrieve(video.id)).status != "completed":
        assert now.status in ("queued", "in_progress")
        seen.append(now.progress)
    assert seen == sorted(seen)
    assert len({progress for progress in seen if 0 < progress < 100}) >= 3
    slow = client.videos.create(prompt="a", seconds="0.1", extra_body={"seed": SLOW_SEED})  # type: ignore[arg-type]
    with pytest.raises(openai.ConflictError):
        client.videos.download_content(slow.id)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"size": "large"}, ["size: 'large'", "1280x720"]),
        ({"size": "95x64"}, ["size: '95x64'", "even numbers"]),
        ({"size": "9999x9999"}, ["size", "16 to 4096"]),
        ({"seconds": "long"}, ["seconds: 'long'", "above 0"]),
        ({"seconds": "60"}, ["seconds: 60", "1 to 121 frames: 1440 at 24 fps"]),
        ({"seconds": "3600", "extra_body": {"fps": 1e308}}, ["fps: ", "a number from 1 to 120"]),
        ({"extra_body": {"frames": 0}}, ["frames: '0'", "an integer of at least 1"]),
        ({"extra_body": {"steps": 0}}, ["steps: 0", "1 to 100"]),
        ({"extra_body": {"seed": "x"}}, ["seed: 'x'", "valid integer"]),
        ({"extra_body": {"solver": "ddim"}}, ["solver: 'ddim'", "euler"]),
    ],
)
def test_refusals(options: dict[str, Any], parts: list[str], client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        make(client, **options)
    error = caught.value
    assert error.body is not None
    assert error.type == "invalid_request_error"
    for part in parts:
        assert part in error.message


def test_errors_are_in_openais_envelope(client: openai.OpenAI, server: httpx.Client) -> None:
    error = server.post("/v1/videos", json={"prompt": "a", "size": "95x64"})
    assert error.status_code == 400
    assert error.json()["error"].keys() == {"message", "type", "param", "code"}
    assert error.json()["error"]["param"] == "size"
    error = server.post("/v1/videos", json={"size": "96x64"}).json()["error"]
    assert (error["message"], error["param"]) == ("prompt: Field required; a text", "prompt")
    error = server.post("/v1/videos", json={"prompt": "a", "colour": 1}).json()["error"]
    assert error["param"] == "colour"
    assert server.get("/v1/videos/nothing").json()["error"]["message"] == "there is no video nothing"
    with pytest.raises(openai.NotFoundError, match="sora-2"):
        make(client, model="sora-2")
    with pytest.raises(openai.NotFoundError):
        client.videos.download_content("video_nothing")
    with pytest.raises(openai.BadRequestError, match="limit"):
        client.videos.list(limit=1000)
    with pytest.raises(openai.BadRequestError, match="order"):
        client.videos.list(order="up")  # type: ignore[arg-type]
    assert server.get("/v1/videos?after=nothing").status_code == 400
    assert server.post("/v1/videos", data={"prompt": "a"}).status_code == 415


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (Progress("queued"), 0),
        (Progress("prepare"), 0),
        (Progress("encode"), 1),
        (Progress("denoise", 0, 35), 2),
        (Progress("denoise", 35, 35), 90),
        (Progress("decode", 121, 121), 99),
    ],
)
def test_percent(progress: Progress, expected: int) -> None:
    assert percent(progress, "running") == expected
    assert percent(progress, "succeeded") == 100


def test_defaults_are_openais() -> None:
    request = resolve(parse({"prompt": "a"}, Settings()), Capabilities(model="microcosm"))
    assert (request.result.width, request.result.height, request.frames, request.fps) == (720, 1280, 96, 24)
    # A model with a rate of its own makes four seconds at it.
    slow = Capabilities(model="predict2.5", fps=Range(1, 60), defaults=Defaults(fps=16, frames=93))
    request = resolve(parse({"prompt": "a"}, Settings()), slow)
    assert (request.frames, request.fps) == (64, 16)


@pytest.mark.parametrize("reference", [5, [], {"x": 1}, {}, {"image_url": "a", "video_url": "b"}, ""])
def test_references_that_are_none(reference: Any) -> None:
    try:
        parse({"prompt": "a", "input_reference": reference}, Settings())
    except CosmoramaError as error:
        assert error.status == 422  # noqa: PT017
        assert "input_reference" in str(error)  # noqa: PT017
    else:
        raise AssertionError("was taken")


@pytest.mark.parametrize("route", ["/v1/videos", "/v1/videos/sync", "/v1/videos/extensions"])
def test_a_body_of_another_type_is_told_both_that_are_taken(painter: httpx.Client, route: str) -> None:
    answer = painter.post(route, data={"prompt": "a red ball"})
    assert answer.status_code == 415
    wanted = "application/json or multipart/form-data, not application/x-www-form-urlencoded"
    assert wanted in answer.json()["error"]["message"]


def test_a_field_that_a_form_has_twice_is_refused_unless_both_say_the_same(painter: httpx.Client) -> None:
    for second, status in (("a blue ball", 400), ("a red ball", 200)):
        parts = [("prompt", (None, "a red ball")), ("prompt", (None, second)), ("size", (None, "64x64"))]
        answer = painter.post("/v1/videos", files=parts)
        assert answer.status_code == status, answer.text
        if status == 400:
            assert answer.json()["error"]["message"] == "the form has two fields 'prompt'; send one of them"
