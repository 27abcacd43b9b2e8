"""What `POST /v1/infer` refuses, and how it says so."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.api.conftest import BODY, MAX_INPUT_BYTES, SMALL, Server


@pytest.fixture(scope="module", autouse=True)
def works_afterwards(server: Server) -> Iterator[None]:
    """Nothing below may harm what comes next."""
    yield
    assert server.infer(**BODY).status_code == 200


def message_of(answer: httpx.Response, status: int = 422) -> str:
    """The message of an answer that is an error in the one envelope."""
    assert answer.status_code == status, answer.text[:300]
    assert answer.json().keys() == {"error"}
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "code"}
    assert error["code"] == status
    assert isinstance(error["type"], str)
    message = error["message"]
    assert isinstance(message, str)
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("seed", -1, "0 to 4294967295"),
        ("seed", 4294967296, "0 to 4294967295"),
        ("guidance_scale", 0.99, "1 to 10"),
        ("guidance_scale", 10.01, "1 to 10"),
        ("steps", 0, "1 to 50"),
        ("steps", 51, "1 to 50"),
        ("steps", 10**4000, "1 to 50"),
        ("video_params.frames_count", 0, "1 to "),
        ("video_params.frames_count", 1000, "1 to "),
        ("video_params.frames_per_sec", 11.9, "12 to 40"),
        ("video_params.frames_per_sec", 41, "12 to 40"),
        ("video_params.width", 961, "960x960|960x704|704x960|1280x704|704x1280"),
        ("video_params.height", 720, "960x960|960x704|704x960|1280x704|704x1280"),
        ("prompt", "word " * 251, "at most 250 words"),
        ("prompt", " ", "only be left out when an image or a video is given"),
        ("prompt", None, "only be left out when an image or a video is given"),
        ("negative_prompt", "word " * 251, "at most 250 words"),
        ("solver", "ddim", "euler, unipc, dpmpp_2m"),
        ("guidance_rescale", 1.5, "0 to 1"),
        ("guidance_interval", [0.7, 0.2], "0 <= start <= end <= 1"),
        ("guidance_interval", [0.7], "Field required"),
        ("guidance_interval", [0.1, 0.2, 0.3], "at most 2"),
        ("conditioning_frames", 3, "video"),
        ("output.container", "avi", "mp4, webm, gif, png"),
        ("output.codec", "prores", "h264"),
        ("output.quality", 10, "1 to 9"),
    ],
)
def test_outside_the_range(field: str, value: Any, accepted: str, server: Server) -> None:
    message = message_of(server.infer(**with_field(field, value)))
    assert field in message
    for part in accepted.split("|"):
        assert part in message
    if isinstance(value, (int, float)) and value < 1e9:
        assert str(value) in message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[(field, wrong) for field in ("steps", "seed") for wrong in ("35", 35.0, True, [35], {"a": 1})],
        *[(f"video_params.{key}", wrong) for key in ("width", "height", "frames_count") for wrong in ("704", 704.0)],
        *[("guidance_scale", wrong) for wrong in ("7", True)],
        ("video_params.frames_per_sec", "24"),
        ("video_params", [704, 1280]),
        ("prompt", 5),
        ("prompt_upsampling", 1),
        ("prompt_upsampling", "true"),
        ("image", 5),
        ("output", "mp4"),
        ("output.quality", 7.0),
    ],
)
def test_wrong_type(field: str, value: Any, server: Server) -> None:
    assert field in message_of(server.infer(**with_field(field, value)))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("steps", "35", "a valid integer: 1 to 50"),
        ("seed", 1.5, "a valid integer: 0 to 4294967295; null draws one"),
        ("guidance_scale", "7", "a valid number: 1 to 10"),
        ("image", 5, "a valid string: URL, data URL or base64 of a picture to start from"),
        ("video_params", [704, 1280], "an object with height, width, frames_count, frames_per_sec"),
        ("video_params.frames_per_sec", "24", "a valid number: 12 to 40"),
        ("output", "mp4", "an object with container, codec, quality"),
        ("guidance_interval", [0.1, 0.2, 0.3], "at most 2 entries"),
    ],
)
def test_a_wrong_type_is_told_what_is_accepted(field: str, value: Any, expected: str, server: Server) -> None:
    assert (
        message_of(server.infer(**with_field(field, value)))
        == f"{field}: {value!r} is not accepted; expected {expected}"
    )


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            {"model_mode": "text2video", "prompt": "x" * 20_001},
            "(20001 characters) is not accepted; expected at most 20000",
        ),
        ({"prompt": "a", "resolution": 721}, "'721' is not accepted; expected one of 256, 256_16_9"),
        ({"resolution": "720"}, "prompt: Field required; a text"),
        ({"prompt": "a", "edge": {}}, "video: Field required; a text: URL, data URL or base64 of the clip to follow"),
        (
            {"prompt": "a", "resolution": "720", "steps": "2"},
            "'2' is not accepted; expected a valid integer: from 1 to 50",
        ),
        ({"model_mode": "text2video", "prompt": "a", "flow_shift": 0}, "0 is not accepted; expected a number above 0"),
    ],
)
def test_every_wire_format_says_what_is_accepted(body: dict[str, Any], expected: str, server: Server) -> None:
    answer = server.client.post("/v1/infer", json=body)
    assert answer.status_code == 422
    assert expected in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/health/live", "/v1/health/ready"])
def test_probes_may_ask_for_the_head_alone(path: str, server: Server) -> None:
    answer = server.client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(
    ("body", "unknown", "suggested"),
    [
        ({"guidence_scale": 7}, "'guidence_scale'", "'guidance_scale'"),
        ({"video_params": {"frame_count": 9}}, "'video_params.frame_count'", "'video_params.frames_count'"),
        ({"video_params": {"Width": 960}}, "'video_params.Width'", "'video_params.width'"),
        ({"video_params": {"seed": 1}}, "'video_params.seed'", "'seed'"),
        ({"output": {"contaner": "mp4"}}, "'output.contaner'", "'output.container'"),
        ({"zzz": 1}, "'zzz'", "known here: "),
    ],
)
def test_unknown_field(body: dict[str, Any], unknown: str, suggested: str, server: Server) -> None:
    message = message_of(server.infer(**BODY | body))
    assert f"unknown field {unknown}" in message
    assert suggested in message.partition(";")[2]


def test_what_clients_of_other_servers_call_a_field_is_that_field(server: Server) -> None:
    ours = BODY | {"steps": 2, "video_params": {**SMALL, "frames_count": 3}}
    theirs = {**BODY, "num_steps": 2, "frames_count": 3, "video_params": dict(SMALL)}
    theirs.pop("steps", None)
    theirs["video_params"].pop("frames_count", None)
    first, second = server.infer(**ours), server.infer(**theirs)
    assert first.status_code == second.status_code == 200, second.text
    assert first.json()["b64_video"] == second.json()["b64_video"]
    assert "two values" in message_of(server.infer(**BODY | {"num_steps": 2, "steps": 3}))


@pytest.mark.parametrize("field", ["guidance_scale", "video_params", "negative_prompt", "image", "seed"])
def test_null_is_not_set(field: str, server: Server) -> None:
    answer = server.infer(**BODY | {"steps": 1, "video_params": {**SMALL, "frames_count": 1}} | {field: None})
    assert answer.status_code == 200, answer.text


def test_every_problem_is_named_at_once(server: Server) -> None:
    message = message_of(server.infer(**BODY | {"steps": 0, "guidance_scale": 11}))
    assert "steps" in message
    assert "guidance_scale" in message


def with_field(field: str, value: Any) -> dict[str, Any]:
    """`BODY` with one field changed."""
    outer, _, inner = field.partition(".")
    return BODY | {outer: {**BODY.get(outer, {}), inner: value} if inner else value}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"prompt": "a',
        b"[]",
        b'"prompt"',
        b"null",
        b"\xff\xfe\x00",
        b'{"prompt": "\\ud800"}',
        b'{"guidance_scale": NaN, "prompt": "a"}',
        b'{"guidance_scale": 1e999, "prompt": "a"}',
        b'{"steps": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"prompt":' * 100_000,
    ],
    ids=range(13),
)
def test_malformed_json(content: bytes, server: Server) -> None:
    headers = {"Content-Type": "application/json"}
    message_of(server.client.post("/v1/infer", content=content, headers=headers))


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_other_content_types(content_type: str, server: Server) -> None:
    headers = {"Content-Type": content_type}
    message = message_of(server.client.post("/v1/infer", content=b"{}", headers=headers), 415)
    assert "application/json" in message


def test_charset_parameter_is_fine(server: Server) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert "prompt" in message_of(server.client.post("/v1/infer", content=b"{}", headers=headers))


@pytest.mark.parametrize("announced", [True, False], ids=["with length", "streamed"])
def test_body_too_large(announced: bool, server: Server) -> None:
    content = b"x" * (2 * MAX_INPUT_BYTES + 2_000_000)
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for start in range(0, len(content), 65536):
            sent += 65536
            yield content[start : start + 65536]

    body = content if announced else pieces()
    # A server that refuses early may close before all is sent; the answer must be readable all the same or, if the
    # client only notices the closing, the connection must have ended early.
    try:
        answer = server.client.post("/v1/infer", content=body, headers={"Content-Type": "application/json"})
    except httpx.WriteError:
        assert sent < len(content)
    else:
        message_of(answer, 413)


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size and has almost no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * (1 + 3 * width) * min(height, 2))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


HLS = b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:10,\nhttp://127.0.0.1:1/secret.ts\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("field", "media"),
    [
        ("image", "not base64!"),
        ("image", "/etc/passwd"),
        ("image", "file:///etc/passwd"),
        ("image", "http://127.0.0.1:1/nothing.png"),
        ("image", "http://[::bad/"),
        ("image", b"a text, not a picture"),
        ("image", png(1, 1)),
        ("image", png(25_000, 20_000)),
        ("video", b"a text file named .mp4"),
        ("video", HLS),
        ("video", "data:application/vnd.apple.mpegurl;base64," + base64.b64encode(HLS).decode()),
        ("video", "ftp://example.com/a.mp4"),
        ("image", b"\0" * (MAX_INPUT_BYTES + 10)),
    ],
    ids=lambda value: value if value in ("image", "video") else "",
)
def test_hostile_media(field: str, media: str | bytes, server: Server) -> None:
    source = media if isinstance(media, str) else base64.b64encode(media).decode()
    answer = server.infer(**BODY | {field: source})
    assert field in message_of(answer, 413 if answer.status_code == 413 else 422)


def test_truncated_clip(clip: bytes, server: Server) -> None:
    answer = server.infer(**BODY | {"video": base64.b64encode(clip[:600]).decode()})
    assert "video" in message_of(answer)


def test_image_and_video_together(server: Server) -> None:
    assert "not both" in message_of(server.infer(**BODY | {"image": "a", "video": "b"}))


def test_other_routes_and_methods(server: Server) -> None:
    assert "/v2/infer" in message_of(server.client.get("/v2/infer"), 404)
    refused = server.client.get("/v1/infer")
    assert "POST" in message_of(refused, 405)
    assert refused.headers["allow"] == "POST"
    assert message_of(server.client.delete("/v1/health/ready"), 405)


def test_defaults_come_from_the_source(server: Server) -> None:
    schema = server.client.get("/openapi.json").json()["components"]["schemas"]
    defaults = {name: field.get("default") for name, field in schema["InferBody"]["properties"].items()}
    assert defaults["steps"] == 35
    assert defaults["guidance_scale"] == 7.0
    assert defaults["negative_prompt"].startswith("The video captures a series of frames showing ugly scenes")
    params = {name: field["default"] for name, field in schema["VideoParams"]["properties"].items()}
    assert params == {"height": 704, "width": 1280, "frames_count": 121, "frames_per_sec": 24}
    assert SMALL.keys() <= params.keys()
