"""What clients of OpenAI, SGLang and vLLM-Omni send and call besides OpenAI's own videos."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from safetensors.numpy import load

from cosmorama.api.dialects.openai_videos import DIALECT, parse, parse_form
from cosmorama.api.info import variant_of
from cosmorama.engine.pool import named
from cosmorama.errors import CosmoramaError
from cosmorama.settings import Settings
from tests.api.dialects.conftest import running
from tests.api.dialects.reading import MICROCOSM, resolve

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")  # OpenAI's service, not this one
SGLANG: dict[str, Any] = {
    "model": "painter",
    "prompt": "a red ball",
    "num_outputs_per_prompt": 1,
    "size": "96x64",
    "num_frames": 5,
    "fps": 24,
    "seed": 3,
    "num_inference_steps": 4,
    "guidance_scale": 5.0,
    "negative_prompt": None,
    "extra_body": {"flow_shift": None, "enable_teacache": True},
}
OMNI: dict[str, str] = {
    "prompt": "a red ball",
    "width": "96",
    "height": "64",
    "num_frames": "5",
    "fps": "24",
    "num_inference_steps": "4",
    "guidance_scale": "5.0",
    "max_sequence_length": "4096",
    "flow_shift": "null",
    "seed": "3",
    "extra_params": json.dumps({"guardrails": False, "use_resolution_template": False, "conditioning_frames": None}),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    settings: dict[str, Any] = {"model_aliases": {"sora-2": "painter"}, "model_variant": "nano"}
    with running(tmp_path_factory.mktemp("compatible"), **settings) as client:
        yield client


@pytest.fixture(scope="module")
def client(server: httpx.Client) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=str(server.base_url.join("/v1")), api_key="none", max_retries=0) as client:
        yield client


def finished(server: httpx.Client, video_id: str) -> dict[str, Any]:
    while (video := server.get(f"/v1/videos/{video_id}").json())["status"] in ("queued", "in_progress"):
        pass
    assert video["status"] == "completed", video
    return dict(video)


def test_sglangs_fields_are_the_fields_that_they_mean() -> None:
    made = resolve(parse({**SGLANG, "model": None}, Settings()), MICROCOSM)
    assert (made.frames, made.fps, made.steps, made.guidance_scale, made.seed) == (5, 24, 4, 5.0, 3)
    assert (made.result.width, made.result.height) == (96, 64)
    assert "extra_body.enable_teacache was not used" in made.warnings


def test_sound_is_not_made_which_is_said() -> None:
    """As the cells with sound of NVIDIA's notebook for vLLM-Omni ask for it."""
    fields = OMNI | {"generate_sound": "true", "sound_duration": "7.875", "size": "1280x720"}
    del fields["width"], fields["height"]
    made = parse_form(fields, Settings())
    assert {"generate_sound was not used", "sound_duration was not used"} <= set(made.warnings)
    assert (made.width, made.height, made.frames) == (1280, 720, 5)


def test_references_of_sglang() -> None:
    for name, field in (("reference_url", "image"), ("image_url", "image"), ("video_url", "video")):
        made = parse({"prompt": "a", name: "https://example.com/x", "output_quality": "default"}, Settings())
        assert (getattr(made, field), made.warnings) == ("https://example.com/x", ())
    made = parse({"prompt": "a", "enable_upscaling": True, "upscaling_scale": 2}, Settings())
    assert made.warnings == ("enable_upscaling was not used", "upscaling_scale was not used")


@pytest.mark.parametrize("name", ["input_reference", "image_reference", "reference_url", "image_url", "video_url"])
def test_a_reference_that_is_none_is_called_what_the_client_called_it(server: httpx.Client, name: str) -> None:
    """Also beside empty fields of the other names, as forms that were not filled in have them."""
    empty = dict.fromkeys(({"input_reference", "image_url"} - {name}), "")
    parts = {field: (None, text) for field, text in {"prompt": "a", **empty, name: "undefined"}.items()}
    answers = [
        server.post("/v1/videos", files=parts),
        server.post("/v1/videos", json={"prompt": "a", **dict.fromkeys(empty), name: "undefined"}),
    ]
    for answer in answers:
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith(f"{name}: is neither an http(s) URL"), answer.text


def test_what_clients_of_dynamo_send(server: httpx.Client) -> None:
    nvext = {"fps": 24, "num_frames": 5, "num_inference_steps": 4, "guidance_scale": 5.0, "negative_prompt": None}
    nvext |= {"seed": 3, "annotations": ["request_id"], "boundary_ratio": 0.9}
    body = {"model": "painter", "prompt": "a red ball", "size": "96x64", "seconds": 4, "nvext": nvext}
    for route in ("/v1/videos", "/v1/videos/generations"):
        answer = server.post(route, json={**body, "response_format": "b64_json"}).raise_for_status()
        if route == "/v1/videos":
            job = server.get(f"/v1/jobs/{answer.json()['id']}").json()
            asked = [job["request"][name] for name in ("frames", "fps", "steps", "guidance_scale", "seed")]
            assert asked == [5, 24, 4, 5.0, 3]
            unused = ["response_format was not used: b64_json", "nvext.annotations was not used"]
            assert answer.json()["warnings"] == [*unused, "nvext.boundary_ratio was not used"]
        else:
            assert answer.content[4:8] == b"ftyp"


def test_a_bench_of_sglang(server: httpx.Client) -> None:
    assert server.get("/health").status_code == 200
    video = server.post("/v1/videos", json=SGLANG).raise_for_status().json()
    assert (video["size"], video["warnings"]) == ("96x64", ["extra_body.enable_teacache was not used"])
    assert finished(server, video["id"])["num_outputs"] == 1


def test_vllm_omnis_form_is_answered_with_the_clip(server: httpx.Client, jpeg: bytes) -> None:
    for files in ({"input_reference": ("a.jpg", jpeg, "image/jpeg")}, {"input_reference": ("", b"")}):
        answer = server.post("/v1/videos/sync", data=OMNI, files=files)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "video/mp4"
        assert answer.content[4:8] == b"ftyp"
        assert answer.headers["x-cosmorama-seed"] == "3"
        assert "use_resolution_template%20was%20not%20used" in answer.headers["x-cosmorama-warnings"]
        assert len(answer.headers["x-cosmorama-warnings"]) <= 1024


ACTIONS: dict[str, Any] = {"domain_name": "av", "image_size": 256, "view_point": "ego_view", "guardrails": False}


def test_vllm_omnis_actions(server: httpx.Client, jpeg: bytes, mp4: bytes) -> None:
    inverse = ACTIONS | {"action_mode": "inverse_dynamics", "action_chunk_size": 4, "raw_action_dim": 9}
    answer = server.post(
        "/v1/videos",
        data=OMNI | {"extra_params": json.dumps(inverse)},
        files={"input_reference": ("a.mp4", mp4, "video/mp4")},
    )
    video = answer.raise_for_status().json()
    assert video["warnings"] == [
        "max_sequence_length was not used",
        "extra_params.view_point was not used",
        "extra_params.guardrails was not used",
    ]
    action = finished(server, video["id"])["action"]
    assert (action["shape"], action["action_mode"], action["domain_id"]) == ([4, 9], "inverse_dynamics", 1)
    forward = ACTIONS | {"action_mode": "forward_dynamics", "action_chunk_size": 4, "action": [[0.0] * 9] * 4}
    picture = {"input_reference": ("a.jpg", jpeg, "image/jpeg")}
    answer = server.post("/v1/videos", data=OMNI | {"extra_params": json.dumps(forward)}, files=picture)
    video = finished(server, answer.raise_for_status().json()["id"])
    assert (video["action"], video["size"], video["seconds"]) == (None, "96x64", "0.208333")


CHUNKS: dict[str, Any] = {
    "control_guidance": 1.5,
    "num_video_frames_per_chunk": 9,
    "num_conditional_frames": 1,
    "num_first_chunk_conditional_frames": 0,
    "max_frames": 5,
    "use_resolution_template": False,
    "share_vision_temporal_positions": True,
}
CONTROL = "data:video/mp4;base64,AAAA"
PRESET = {"preset_edge_threshold": "medium"}


@pytest.mark.parametrize(
    ("extra", "kind"),
    [
        ({"edge": {"control_path": CONTROL, **PRESET}}, "edge"),  # vLLM-Omni
        ({"control_hint": "edge", "control_path": CONTROL, **PRESET}, "edge"),  # SGLang
        ({"edge": {"control": "AAAA", **PRESET}}, "edge"),  # TensorRT-LLM
        ({"depth": "AAAA"}, "depth"),  # its shorthand
        ({"blur": {"control": "AAAA", "weight": 0.5, "preset_blur_strength": "high"}}, "vis"),
        ({"wsm": {"control": "AAAA"}}, "wsm"),
    ],
)
def test_controls_among_the_extra_fields_are_followed(extra: dict[str, Any], kind: str) -> None:
    extra = CHUNKS | extra | {"sample_solver": "unipc"}  # vLLM-Omni's name, for other models
    request = parse({"prompt": "a", "num_frames": 5, "fps": 24, "extra_params": extra}, Settings())
    (control,) = request.controls
    assert request.solver == "unipc"
    assert (request.task, control.kind, control.source in (CONTROL, "AAAA")) == ("transfer", kind, True)
    assert control.weight == (0.5 if kind == "vis" else 1.0)
    assert (request.control_guidance, request.chunk_frames, request.frames) == (1.5, 9, 5)
    assert request.warnings == tuple(
        f"extra_params.{name} was not used" for name in ("use_resolution_template", "share_vision_temporal_positions")
    )


WSM = {"control_type": "wsm", "extra_params": '{"wsm": {"control_weight": 0.5}, "num_conditional_frames": 2}'}


def test_a_second_file_is_the_control_that_its_type_names(mp4: bytes) -> None:
    """As vLLM-Omni's clients upload one; in JSON it is a URL or base64."""
    for upload in (None, mp4):
        request = parse_form(OMNI | WSM, Settings(), upload, control=mp4)
        (control,) = request.controls
        assert (control.kind, control.weight, control.source) == ("wsm", 0.5, base64.b64encode(mp4).decode())
        assert (request.video, request.conditioning_frames) == (upload, 2)
    request = parse({"prompt": "a", "control_type": "edge", "control_reference": "AAAA"}, Settings())
    assert [(control.kind, control.source) for control in request.controls] == [("edge", "AAAA")]


@pytest.mark.parametrize(
    ("fields", "files", "said"),
    [
        ({}, ("control_reference",), "control_type: null is not accepted; expected what control_reference is"),
        ({"control_type": "pose"}, ("control_reference",), "control_type: 'pose' is not accepted"),
        ({"control_type": "wsm"}, (), "control_reference: null is not accepted; expected the clip of control_type wsm"),
        (
            {"control_type": "wsm", "extra_params": '{"wsm": {"control_path": "http://a/b"}}'},
            ("control_reference",),
            "control_reference: 'beside extra_params.wsm' is not accepted; expected one of the two",
        ),
        ({}, ("input_reference", "video_reference"), "the form has the files input_reference and video_reference"),
        ({}, ("video_noise_mask",), "unknown file 'video_noise_mask'; a file of this form is called input_reference"),
    ],
)
def test_files_that_do_not_go_together_are_told(
    server: httpx.Client, mp4: bytes, fields: dict[str, str], files: tuple[str, ...], said: str
) -> None:
    uploads = {name: (f"{name}.mp4", mp4, "video/mp4") for name in files} or {"user": (None, b"me")}
    answer = server.post("/v1/videos", data=OMNI | {"extra_params": ""} | fields, files=uploads)
    assert (answer.status_code, said in answer.json()["error"]["message"]) == (400, True), answer.text


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"edge": {"control_path": "assets/edge.mp4"}}, "extra_params.edge.control_path: 'assets/edge.mp4'"),
        ({"depth": {}}, "extra_params.depth.control: null is not accepted; expected a clip of depth"),
        ({"edge": True}, "extra_params.edge.control: null is not accepted; expected a clip of edge, or a clip in"),
        ({"edge": {"control": "AAAA", "colour": 1}}, "unknown field 'extra_params.edge.colour'"),
        ({"control_hint": "sound", "control": "AAAA", "seg": 3}, "extra_params.control_hint: 'sound'"),
    ],
)
def test_controls_that_are_wrong_are_told(extra: dict[str, Any], said: str) -> None:
    with pytest.raises(CosmoramaError) as refused:
        DIALECT.read({"prompt": "a", "extra_params": extra}, Settings())
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "extra", "found"),
    [
        ({}, {"action": [[0.0] * 9] * 8}, 8),
        ({"num_frames": 17}, {}, 16),
        ({"num_frames": 9}, {"action_chunk_size": 8}, 8),
        ({"num_frames": 9}, {"action_chunk_size": None, "num_frames": 5}, 8),
        ({}, {"frames": 5}, 4),
        ({}, {}, "extra_params.action_chunk_size: Field required; an integer from 4 to 396"),
        (
            {},
            {"action": [[0.0] * 9] * 3},
            "extra_params.action: '3 rows' is not accepted; expected 4, 8, ... or 396 rows",
        ),
        ({"num_frames": 18}, {}, "num_frames: 18 is not accepted; expected one more than there are actions: 5, 9, "),
        ({}, {"num_frames": 1}, "extra_params.num_frames: 1 is not accepted; expected one more than there are actions"),
        ({"frames": 6}, {"action_chunk_size": 4}, "frames: 6 is not accepted; expected action_chunk_size + 1 = 5"),
    ],
)
def test_how_many_actions_there_are_follows_from_rows_or_frames(
    fields: dict[str, Any], extra: dict[str, Any], found: int | str
) -> None:
    mode = "forward_dynamics" if "action" in extra else "policy"
    extra = {"action_mode": mode, "domain_name": "av", **extra}
    body = {"prompt": "a", "image_url": "data:,", "extra_params": extra, **fields}
    if isinstance(found, int):
        action = parse(body, Settings()).action
        assert action is not None
        assert action.steps == found
    else:
        with pytest.raises(CosmoramaError) as refused:
            parse(body, Settings())
        assert found in str(refused.value)


def test_both_ends_of_a_clip_are_kept() -> None:
    extra = {"condition_video_latent_indexes": [23, 0, 0], "condition_video_keep": "last"}
    body = {"prompt": "a", "video_reference": {"video_url": CONTROL}, "extra_params": extra}
    request = parse(body, Settings())
    assert (request.conditioning_indexes, request.keep, request.video) == ((0, 23), "last", CONTROL)


def test_the_route_of_tensorrt_llm_answers_with_the_clip(server: httpx.Client) -> None:
    body = {"prompt": "a red ball", "size": "96x64", "num_frames": 5, "fps": 24, "seconds": 5 / 24, "seed": 3}
    more = {"format": "auto", "response_format": "file", "extra_params": {"use_guardrails": True}}
    answer = server.post("/v1/videos/generations", json=body | more, headers={"Accept": "video/mp4, video/x-msvideo"})
    assert answer.status_code == 200, answer.text
    assert (answer.headers["content-type"], answer.content[4:8]) == ("video/mp4", b"ftyp")


@pytest.mark.parametrize("route", ["/v1/videos/sync", "/v1/videos/generations", "/v1/videos"])
def test_frames_as_numbers(server: httpx.Client, jpeg: bytes, mp4: bytes, route: str) -> None:
    """TensorRT-LLM's clients read actions out of them."""
    extra = {"action_mode": "inverse_dynamics", "domain_name": "av", "action_chunk_size": 4}
    body = {
        "prompt": "Recover the actions",
        "size": "96x64",
        "extra_params": json.dumps(extra),
        "format": "safetensors",
    }
    answer = server.post(route, data=body, files={"video_reference": ("a.mp4", mp4, "video/mp4")}).raise_for_status()
    if route == "/v1/videos":
        video = finished(server, answer.json()["id"])
        answer = server.get(f"/v1/videos/{video['id']}/content").raise_for_status()
    assert answer.headers["content-type"] == "application/octet-stream"
    assert float(answer.headers["server-timing"].partition("generation;dur=")[2].partition(",")[0]) > 0
    assert "denoise;dur=" in answer.headers["server-timing"]
    found = load(answer.content)
    assert (found["video"].shape, found["video"].dtype) == ((5, 64, 96, 3), np.uint8)
    for wrong in ("pt", "avi", "webp"):
        refused = server.post(route, data=body | {"format": wrong}, files={"image_reference": ("a.jpg", jpeg)})
        said = f"format: '{wrong}' is not accepted; expected 'auto', 'mp4' or 'safetensors'"
        assert said in refused.json()["error"]["message"]


def as_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("name", ["input_reference", "image_reference", "video_reference"])
@pytest.mark.parametrize("form", ["upload", "text", "object", "list"])
def test_references_by_their_names(server: httpx.Client, jpeg: bytes, mp4: bytes, name: str, form: str) -> None:
    data, mode = (mp4, "video2world") if name.startswith("video") else (jpeg, "image2world")
    body = {"prompt": "a", "size": "auto", "width": "96", "height": "64", "num_frames": "5", "frame_rate": "24"}
    item = {"content": as_text(data), "format": "base64"}
    if form == "upload":
        answer = server.post("/v1/videos", data=body, files={name: ("a", data, "application/octet-stream")})
    else:
        value: Any = {"text": as_text(data), "object": item, "list": [item]}[form]
        numbers = {"width": 96, "height": 64, "num_frames": 5, "frame_rate": 24.0, "seed": [7]}
        answer = server.post("/v1/videos", json={**body, **numbers, name: value})
    video = answer.raise_for_status().json()
    job = server.get(f"/v1/jobs/{video['id']}").json()
    assert (job["mode"], job["request"]["fps"]) == (mode, 24)
    other = {"image_reference": mp4, "video_reference": b"no clip", "input_reference": b"no picture"}[name]
    refused = server.post("/v1/videos", data=body, files={name: ("a", other, "application/octet-stream")})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, name), refused.text


def test_edges_of_a_clip_among_the_extra_fields(mp4: bytes) -> None:
    made = parse({"prompt": "a", "extra_params": {"video": as_text(mp4), "edge": True}}, Settings())
    assert (made.task, made.video) == ("transfer", as_text(mp4))


@pytest.mark.parametrize("call", ["create_character", "get_character", "create"])
def test_characters_are_refused_in_words(client: openai.OpenAI, mp4: bytes, call: str) -> None:
    given: dict[str, Any] = {
        "create_character": {"name": "x", "video": ("a.mp4", mp4)},
        "get_character": {"character_id": "char_1"},
        "create": {"prompt": "a", "extra_body": {"characters": [{"id": "char_1"}]}},
    }[call]
    with pytest.raises(openai.BadRequestError, match="no model here keeps a subject from clip to clip") as refused:
        getattr(client.videos, call)(**given)
    assert refused.value.param == "characters"


def test_a_video_says_what_was_made_of_it(server: httpx.Client, mp4: bytes) -> None:
    control = "data:video/mp4;base64," + base64.b64encode(mp4).decode()
    body = {"prompt": "a", "width": 96, "height": 64, "fps": 24, "extra_params": {"edge": {"control": control}}}
    video = finished(server, server.post("/v1/videos", json=body).raise_for_status().json()["id"])
    clip = server.get(f"/v1/videos/{video['id']}/content").content
    with av.open(io.BytesIO(clip)) as container:
        frames = [*container.decode(video=0)]
        rate = container.streams.video[0].average_rate
    assert rate is not None
    assert video["size"] == f"{frames[0].width}x{frames[0].height}"
    assert float(video["seconds"]) == pytest.approx(len(frames) / float(rate), abs=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"action_chunk_size": 5}, "extra_params.action_chunk_size: 5 is not accepted; expected a multiple of 4"),
        ({"domain_name": "dog"}, "extra_params.domain_name: 'dog' is not accepted; expected 'av'"),
        ({"action_mode": "dance"}, "extra_params.action_mode: 'dance' is not accepted"),
        ({"action_mode": "inverse_dynamics"}, "input_reference: 'a picture' is not accepted; expected a clip"),
        ({"raw_action_dim": 10}, "extra_params.raw_action_dim: 10 is not accepted; expected 9 for av"),
        ({"domain_name": "umi"}, "extra_params.domain_name: 'umi' is not accepted; expected av (1), droid_lerobot (8)"),
        ({"action_chunk_size": 8}, "num_frames: 5 is not accepted; expected action_chunk_size + 1 = 9"),
    ],
)
def test_wrong_actions_are_told_in_the_clients_words(
    server: httpx.Client, jpeg: bytes, change: dict[str, Any], said: str
) -> None:
    extra = ACTIONS | {"action_mode": "policy", "action_chunk_size": 4} | change
    answer = server.post(
        "/v1/videos",
        data=OMNI | {"extra_params": json.dumps(extra)},
        files={"input_reference": ("a.jpg", jpeg, "image/jpeg")},
    )
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["error"]["message"]


def test_a_policy_as_sglangs_notebook_asks_for_it(server: httpx.Client, jpeg: bytes) -> None:
    extra = {"action_mode": "policy", "domain_name": "av", "action_view_point": "concat_view"}
    picture = {"input_reference": ("a.png", jpeg, "image/jpeg")}
    body = OMNI | {"extra_params": json.dumps(extra)}
    answer = server.post("/v1/actions/generations", data=body, files=picture).raise_for_status().json()
    action = answer["data"][0]["action"]
    assert (action["shape"], action["dtype"], action["domain_id"]) == ([4, 9], "float32", 1)
    assert "extra_params.action_view_point was not used" in answer["warnings"]
    forward = extra | {"action_mode": "forward_dynamics", "action": action["data"]}
    body = OMNI | {"extra_params": json.dumps(forward)}
    video = server.post("/v1/videos", data=body, files=picture).raise_for_status().json()
    assert finished(server, video["id"])["size"] == "96x64"
    refused = server.post("/v1/actions/generations", data=body, files=picture)
    assert "action_mode: 'forward_dynamics' is not accepted" in refused.json()["error"]["message"]


def test_a_still_through_the_official_client(client: openai.OpenAI) -> None:
    for output_format, kind in (("png", "PNG"), ("jpeg", "JPEG")):
        made = client.images.generate(
            model="sora-2", prompt="a red ball", size="1024x1024", output_format=output_format, n=1, user="me"
        )
        assert made.data is not None
        picture = Image.open(io.BytesIO(base64.b64decode(made.data[0].b64_json or "")))
        assert (picture.format, picture.size) == (kind, (1024, 1024))
    with pytest.raises(
        openai.BadRequestError, match="n: 11 is not accepted; expected an integer from 1 to 10"
    ) as caught:
        client.images.generate(prompt="a", n=11)
    assert caught.value.param == "n"
    with pytest.raises(openai.BadRequestError, match="no model here changes a picture; a video begins with one"):
        client.images.edit(prompt="a", image=("a.png", b"a picture"))
    with pytest.raises(openai.BadRequestError, match="num_inference_steps: 500 is not accepted"):
        client.images.generate(prompt="a", extra_body={"num_inference_steps": 500, "generator_device": "cuda"})
    several = client.images.generate(prompt="a", n=3, size="64x64", extra_body={"seed": 2**32 - 2})
    assert [image.seed for image in several.data or ()] == [2**32 - 2, 2**32 - 1, 0]  # type: ignore[attr-defined]
    keyed = {"Idempotency-Key": "k" * 255}
    first, again = (client.images.generate(prompt="a", n=2, size="64x64", extra_headers=keyed) for _ in range(2))
    assert first.data == again.data != several.data
    linked = client.images.generate(prompt="a", response_format="url", size="64x64")
    [event] = client.images.generate(prompt="a", stream=True, partial_images=1, size="64x64")
    assert linked.data is not None
    assert event.type == "image_generation.completed"
    for encoded in ((linked.data[0].url or "").removeprefix("data:image/png;base64,"), event.b64_json):
        assert Image.open(io.BytesIO(base64.b64decode(encoded))).size == (64, 64)


def test_models_by_name_alias_and_hub_id(client: openai.OpenAI, server: httpx.Client) -> None:
    for name in ("painter", "sora-2", "nvidia/Painter", "nvidia/Painter@main"):
        assert client.models.retrieve(name).id == "painter"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.models.retrieve("other")
    assert server.get("/v1/metadata").json()["model_variant"] == "nano"


def test_a_video_is_extended(client: openai.OpenAI, server: httpx.Client) -> None:
    first = client.videos.create_and_poll(prompt="a ball", size="96x64", seconds="1", extra_body={"fps": 12})  # type: ignore[arg-type]
    further = {"prompt": "it rolls on", "seconds": "1", "video": {"id": first.id}}
    made = server.post("/v1/videos/extensions", json=further).raise_for_status().json()
    assert finished(server, made["id"])["prompt"] == "it rolls on"
    again = server.post(f"/v1/videos/{first.id}/extend", json={"frames": 10}).raise_for_status().json()
    made = finished(server, again["id"])
    assert (made["prompt"], made["size"], made["seconds"]) == ("a ball", "96x64", "0.833333")
    job = server.get(f"/v1/jobs/{again['id']}").json()
    assert (job["mode"], job["metadata"]) == ("video2world", {"extended_from_video_id": first.id})
    for path in ("/v1/videos/video_x/extend", f"/v1/videos/{'x' * 30}/extend"):
        assert server.post(path, json={}).status_code == 404
    assert server.post("/v1/videos/extensions", json={"prompt": "a"}).status_code == 400


def test_an_uploaded_clip_is_edited_and_extended(client: openai.OpenAI, server: httpx.Client, mp4: bytes) -> None:
    upload = ("a.mp4", mp4, "video/mp4")
    edited = client.videos.edit(prompt="in the snow", video=upload)
    job = server.get(f"/v1/jobs/{edited.id}").raise_for_status().json()
    assert (job["mode"], [each["kind"] for each in job["request"]["controls"]]) == ("transfer", ["edge"])
    small = {"size": "96x64", "frames": 5}
    extended = client.videos.extend(prompt="it rolls on", seconds="4", video=upload, extra_body=small)
    assert server.get(f"/v1/jobs/{extended.id}").json()["mode"] == "video2world"
    broken = ("a.mp4", b"no clip", "video/mp4")
    with pytest.raises(openai.BadRequestError, match="video: is not a picture or clip"):
        client.videos.extend(prompt="a", seconds="4", video=broken)
    with pytest.raises(openai.BadRequestError, match="video: is not a picture or clip"):
        client.videos.edit(prompt="a", video=broken)
    upright = client.videos.extend(prompt="it rolls on", seconds="4", video=upload)
    assert upright.size != "720x1280"  # what is usual for a clip of a prompt
    for video in (edited, upright):
        client.videos.delete(video.id)  # it would be large
    finished(server, extended.id)
    again = server.post("/v1/videos/edits", json={"prompt": "a cube", "video": {"id": extended.id}})
    assert again.raise_for_status().json()["remixed_from_video_id"] == extended.id


def form(*parts: tuple[str, bytes]) -> tuple[bytes, dict[str, str]]:
    body = b"".join(b"--X\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + data + b"\r\n"
                    for head, data in parts)  # fmt: skip
    return body + b"--X--\r\n", {"Content-Type": "multipart/form-data; boundary=X"}


TEXTS = (('name="prompt"', b"a ball"), ('name="size"', b"96x64"), ('name="frames"', b"5"))


@pytest.mark.parametrize(
    "head",
    [
        'name="input_reference"\r\nContent-Type: image/jpeg',
        "name=\"input_reference\"; filename*=UTF-8''a%20b.jpg\r\nContent-Type: image/jpeg",
        'name="input_reference"; filename=""\r\nContent-Type: application/octet-stream',
    ],
)
def test_a_file_part_needs_no_filename(server: httpx.Client, jpeg: bytes, head: str) -> None:
    body, headers = form(*TEXTS, (head, jpeg))
    answer = server.post("/v1/videos", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert server.get(f"/v1/jobs/{answer.json()['id']}").json()["mode"] == "image2world"


def test_an_empty_file_is_none(server: httpx.Client) -> None:
    body, headers = form(*TEXTS, ('name="input_reference"; filename=""\r\nContent-Type: application/octet-stream', b""))
    answer = server.post("/v1/videos", content=body, headers=headers)
    assert server.get(f"/v1/jobs/{answer.json()['id']}").json()["mode"] == "text2world"


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"num_frames": 0}, "num_frames", "num_frames: 0"),
        ({"num_inference_steps": 500}, "num_inference_steps", "num_inference_steps: 500"),
        ({"n": 2}, "n", "n: 2"),
        ({"num_outputs_per_prompt": 2}, "num_outputs_per_prompt", "num_outputs_per_prompt: 2"),
        ({"size": None, "width": 640}, "height", "height: null is not accepted; expected width and height, or neither"),
        ({"lora": {"name": "x"}}, "lora", "no adapter: none is loaded"),
        ({"lora": {"scale": 1}}, "lora.name", "Field required; a text: Name of an adapter that the server has loaded"),
        ({"num_frames": None, "extra_params": {"num_frames": 10**6}}, "extra_params.num_frames", "an integer from 1"),
        ({"extra_params": []}, "extra_params", "valid dictionary"),
        ({"unheard_of": 1}, "unheard_of", "unknown field 'unheard_of'"),
        ({"image_reference": {"file_id": "x"}}, "image_reference", "file_id is not supported"),
        ({"image_reference": {"content": "/a.png", "format": "path"}}, "image_reference.format", "'url' or 'base64'"),
        ({"image_reference": {"content": "aGk=", "role": "last_frame"}}, "image_reference.role", "'first_frame'"),
        ({"video_path": "/a.mp4"}, "video_path", "files of this server are not read"),
        ({"response_format": "path"}, "response_format", "expected 'auto' or 'file'"),
        ({"seed": [1, 2]}, "seed", "seed: [1, 2]"),
        ({"stream": True}, "stream", "stream: true is not accepted; expected no value: a video is one answer"),
        ({"output_format": "webm"}, "output_format", "output_format: 'webm' is not accepted; expected 'auto', 'mp4'"),
        ({"size": "640x480", "width": 96, "height": 64}, "size", "expected 96x64, as width and height say"),
        ({"lora": {"local_path": "/adapters/x"}}, "lora", "lora: 'x' is not accepted; expected no adapter"),
        ({"model_mode": "text2video"}, "model_mode", "POST /v1/infer reads the others"),
    ],
)
def test_refusals_name_what_the_client_wrote(
    server: httpx.Client, change: dict[str, Any], param: str, said: str
) -> None:
    body = {name: value for name, value in {**SGLANG, **change}.items() if name not in ("num_outputs_per_prompt",)}
    body |= {name: change[name] for name in change}
    answer = server.post("/v1/videos", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("nano", "nano"),
        ("/models/Cosmos3-Nano", "nano"),
        ("nvidia/Cosmos3-Nano", "nano"),
        ("nvidia/cosmos3-nano@fp8", "nano"),
        ("NANO", "nano"),
        ("sora-2", "nano"),
        ("gpt-9", None),
    ],
)
def test_how_a_model_is_found(asked: str, found: str | None) -> None:
    known = {"/models/Cosmos3-Nano": "nano", "nano": "nano"}
    assert named(asked, known, {"sora-2": "nano"}) == found
    assert named(asked, known, {"*": "nano"}) == "nano"


def test_variants_by_name() -> None:
    assert variant_of("Cosmos3-Nano") == "nano"
    assert variant_of("nvidia/Cosmos3-Super-Text2Image-4Step") == "super-t2i-4step"
    assert variant_of("Cosmos3-Super-Image2Video") == "super-i2v"
    assert variant_of("microcosm") == "microcosm"


def test_aliases_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COSMORAMA_MODEL_ALIASES", "sora-2=microcosm, *=microcosm")
    monkeypatch.setenv("NIM_MODEL_VARIANT", "super")
    settings = Settings()
    assert settings.model_aliases == {"sora-2": "microcosm", "*": "microcosm"}
    assert settings.model_variant == "super"
