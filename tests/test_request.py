"""The request: defaults of the source, ranges, and errors that say what to change."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmorama.errors import InvalidRequestError
from cosmorama.request import Capabilities, FrameRule, GenerationRequest, Output
from cosmorama.resolve import resolve

CAPABILITIES = Capabilities(model="test")
PLAIN = GenerationRequest(prompt="a ball")


def refused(**changes: object) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        resolve(replace(PLAIN, **changes), CAPABILITIES)
    return str(caught.value)


def test_defaults_are_those_of_the_source() -> None:
    request = GenerationRequest(prompt="a ball")
    assert (request.width, request.height, request.frames, request.fps) == (1280, 704, 121, 24)
    assert (request.guidance_scale, request.steps, request.seed) == (7.0, 35, None)
    assert request.negative_prompt.startswith("The video captures a series of frames showing ugly scenes")
    assert request.negative_prompt.endswith("Overall, the video is of poor quality.")
    assert resolve(request, CAPABILITIES).prompt_upsampling is True


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"guidance_scale": 0.99}, ["guidance_scale", "0.99", "1 to 10"]),
        ({"guidance_scale": 10.1}, ["guidance_scale", "10.1", "1 to 10"]),
        ({"guidance_scale": float("nan")}, ["guidance_scale", "nan", "1 to 10"]),
        ({"steps": 0}, ["steps", "0", "1 to 50"]),
        ({"steps": 51}, ["steps", "51", "1 to 50"]),
        ({"steps": True}, ["steps", "True", "1 to 50"]),
        ({"seed": -1}, ["seed", "-1", "0 to 4294967295"]),
        ({"seed": 2**32}, ["seed", "4294967296", "0 to 4294967295"]),
        ({"fps": 11}, ["fps", "11", "12 to 40"]),
        ({"fps": 41}, ["fps", "41", "12 to 40"]),
        ({"frames": 0}, ["frames", "0", "1 to 121"]),
        ({"frames": 122}, ["frames", "122", "1 to 121"]),
        ({"width": 1280, "height": 720}, ["size", "1280x720", "960x960", "960x704", "704x960", "1280x704", "704x1280"]),
        ({"prompt": "  "}, ["prompt", "'  '"]),
        ({"prompt": "word " * 251}, ["prompt", "251 words", "at most 250 words"]),
        ({"negative_prompt": "word " * 251}, ["negative_prompt", "251 words", "at most 250 words"]),
        ({"image": b"x", "video": b"x"}, ["image", "video", "not both"]),
        ({"solver": "heun"}, ["solver", "heun", "euler, unipc"]),
        ({"guidance_interval": (0.5, 0.4)}, ["guidance_interval", "0.5", "start <= end"]),
        ({"guidance_rescale": 1.1}, ["guidance_rescale", "1.1", "0 to 1"]),
        ({"conditioning_frames": 9}, ["conditioning_frames", "9", "video"]),
        ({"video": b"x", "conditioning_frames": 5}, ["conditioning_frames", "5", "one of 9, 1"]),
        ({"video": b"x", "conditioning_frames": 9, "frames": 9}, ["conditioning_frames", "9", "less than frames"]),
        ({"output": Output("mkv")}, ["output.container", "mkv", "mp4, webm, gif, png"]),
        ({"output": Output("webm", "h264")}, ["output.codec", "h264", "vp9, av1"]),
        ({"output": Output(quality=10)}, ["output.quality", "10", "1 to 9"]),
    ],
)
def test_what_is_out_of_range_is_named_with_its_value_and_range(change: dict[str, object], said: list[str]) -> None:
    message = refused(**change)
    for part in said:
        assert part in message


def test_every_problem_is_reported_at_once() -> None:
    message = refused(steps=0, fps=3, guidance_scale=0)
    assert all(name in message for name in ("steps", "fps", "guidance_scale"))


def test_problems_take_the_names_of_another_wire_format() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        resolve(replace(PLAIN, frames=500), CAPABILITIES)
    assert str(caught.value.renamed({"frames": "video_params.frames_count"})).startswith(
        "video_params.frames_count: 500"
    )


def test_a_video_is_continued_from_as_many_frames_as_leave_something_to_make() -> None:
    assert resolve(replace(PLAIN, video=b"x"), CAPABILITIES).conditioning_frames == 9
    assert resolve(replace(PLAIN, video=b"x", frames=9), CAPABILITIES).conditioning_frames == 1
    assert resolve(replace(PLAIN, image=b"x"), CAPABILITIES).conditioning_frames == 1
    assert resolve(PLAIN, CAPABILITIES).conditioning_frames == 0


@pytest.mark.parametrize("inputs", [{}, {"image": b"x"}, {"video": b"x"}])
def test_resolving_twice_changes_nothing(inputs: dict[str, bytes]) -> None:
    resolved = resolve(replace(PLAIN, **inputs), CAPABILITIES)
    assert resolve(resolved, CAPABILITIES) == resolved


def test_a_drawn_seed_is_kept_and_differs_between_requests() -> None:
    seeds = {resolve(PLAIN, CAPABILITIES).seed for _ in range(8)}
    assert len(seeds) == 8
    assert resolve(replace(PLAIN, seed=0), CAPABILITIES).seed == 0


def test_upsampling_is_for_text_unless_asked_for() -> None:
    assert resolve(replace(PLAIN, image=b"x"), CAPABILITIES).prompt_upsampling is False
    assert resolve(replace(PLAIN, image=b"x", prompt_upsampling=True), CAPABILITIES).prompt_upsampling is True


@given(frames=st.integers(1, 121), multiple=st.integers(1, 8))
def test_frame_counts_are_rounded_up_to_what_the_model_can_make(frames: int, multiple: int) -> None:
    made = FrameRule(multiple, 121).next(frames)
    assert made >= frames
    assert made - frames < multiple
    assert (made - 1) % multiple == 0


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, cosmorama; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
