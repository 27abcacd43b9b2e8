"""What `POST /v1/infer` makes."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import pytest

from tests.api.conftest import BODY, SMALL, Server


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def assets(clip: bytes, picture: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The two files of the documented examples, on a server of our own."""
    folder = tmp_path_factory.mktemp("assets")
    (folder / "industry_01_prompt.jpg").write_bytes(picture)
    (folder / "ar_result_default_robot.mp4").write_bytes(clip)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def frames_of(mp4: bytes, folder: Path) -> tuple[int, int, int, float]:
    path = folder / "answer.mp4"
    path.write_bytes(mp4)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate is not None
        return sum(1 for _ in container.decode(video=0)), stream.width, stream.height, float(stream.average_rate)


@pytest.mark.parametrize("mode", ["text2world", "image2world", "video2world"])
def test_documented_example_in_small(mode: str, server: Server, assets: str, tmp_path: Path) -> None:
    examples = server.client.get("/openapi.json").json()["paths"]["/v1/infer"]["post"]["requestBody"]["content"][
        "application/json"
    ]["examples"]
    example = examples[mode]["value"]
    for field in ("image", "video"):
        if field in example:
            example[field] = f"{assets}/{example[field].rpartition('/')[2]}"
    params = {**SMALL, "frames_count": 3, "frames_per_sec": 12}

    answer = server.infer(**example | {"steps": 1, "video_params": params})

    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body.keys() - {"warnings"} == {"b64_video", "seed", "upsampled_prompt"}
    assert body["seed"] == 42
    assert body["upsampled_prompt"] == example["prompt"]
    assert frames_of(base64.b64decode(body["b64_video"], validate=True), tmp_path) == (3, 960, 704, 12)


def test_image_without_prompt_is_described(server: Server, picture: bytes) -> None:
    image = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
    answer = server.infer(image=image, steps=1, video_params=SMALL)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["upsampled_prompt"].split()) > 3


def test_same_request_gives_the_same_bytes_alone_and_beside_another(server: Server) -> None:
    body = BODY | {"steps": 2, "video_params": {**SMALL, "frames_count": 3}}
    alone = server.infer(**body)
    with ThreadPoolExecutor(2) as pool:
        beside = [pool.submit(server.infer, **body), pool.submit(server.infer, **body | {"seed": 8, "steps": 3})]
        again, other = (future.result() for future in beside)
    assert alone.status_code == 200, alone.text
    assert again.json() == alone.json()
    assert other.json()["b64_video"] != alone.json()["b64_video"]


def test_seed_is_drawn_and_returned(server: Server) -> None:
    drawn = server.infer(**BODY | {"seed": None}).json()
    assert 0 <= drawn["seed"] < 2**32
    assert server.infer(**BODY | {"seed": drawn["seed"]}).json() == drawn


def test_accept_video_gives_the_file_itself(server: Server) -> None:
    as_json = server.infer(**BODY).json()
    as_file = server.client.post("/v1/infer", json=BODY, headers={"Accept": "video/mp4"})
    assert as_file.headers["content-type"] == "video/mp4"
    assert as_file.headers["x-cosmorama-seed"] == "7"
    assert as_file.content == base64.b64decode(as_json["b64_video"])


@pytest.mark.parametrize(
    ("output", "starts_with"),
    [({"container": "webm"}, b"\x1aE\xdf\xa3"), ({"container": "gif"}, b"GIF89a"), ({"container": "png"}, b"PK")],
)
def test_other_containers(output: dict[str, str], starts_with: bytes, server: Server) -> None:
    answer = server.infer(**BODY | {"output": output})
    assert answer.status_code == 200, answer.text
    assert base64.b64decode(answer.json()["b64_video"]).startswith(starts_with)


def test_extra_knobs_are_taken(server: Server, clip: bytes) -> None:
    knobs = {
        "video": base64.b64encode(clip).decode(),
        "conditioning_frames": 1,
        "solver": "unipc",
        "guidance_interval": [0.0, 0.5],
        "guidance_rescale": 0.7,
        "prompt_upsampling": False,
        "output": {"container": "mp4", "codec": "h264", "quality": 3},
    }
    answer = server.infer(**BODY | knobs | {"steps": 2, "video_params": {**SMALL, "frames_count": 2}})
    assert answer.status_code == 200, answer.text


def test_nothing_is_left_on_the_disk(server: Server) -> None:
    assert server.infer(**BODY).status_code == 200
    assert server.infer(**BODY | {"steps": 0}).status_code == 422
    server.wait_until_clean()
