"""The request: defaults of the source, ranges, and errors that say what to change."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmorama.errors import InvalidRequestError
from cosmorama.request import (
    Action,
    ActionDomain,
    Adapter,
    Capabilities,
    Control,
    Defaults,
    FrameRule,
    GenerationRequest,
    Output,
    Range,
    Size,
    Usual,
)
from cosmorama.resolve import check, resolve

CAPABILITIES = Capabilities(model="test")
PLAIN = GenerationRequest(prompt="a ball")


def refused(**changes: object) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        resolve(replace(PLAIN, **changes), CAPABILITIES)
    return str(caught.value)


def test_defaults_are_those_of_the_source() -> None:
    request = resolve(GenerationRequest(prompt="a ball"), CAPABILITIES)
    assert (request.width, request.height, request.frames, request.fps) == (1280, 704, 121, 24)
    assert (request.guidance_scale, request.steps) == (7.0, 35)
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
        ({"steps": True}, ["steps", "true", "1 to 50"]),
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


PREDICT25 = Capabilities(
    model="predict2.5",
    sizes=(Size(1280, 704), Size(704, 1280), Size(832, 480)),
    frames=FrameRule(4, 93),
    fps=Range(1, 60),
    steps=Range(1, 100),
    defaults=Defaults(frames=93, fps=16, steps=36, negative_prompt="bad"),
)
STUDENT = replace(
    PREDICT25,
    model="student",
    steps=Range(4, 4),
    guidance_scale=Range(1, 1),
    negative_prompts=False,
    defaults=Defaults(frames=93, fps=16, steps=4, guidance_scale=1, negative_prompt=""),
)


def test_what_is_left_out_is_the_models_own() -> None:
    made = resolve(PLAIN, PREDICT25)
    assert (made.width, made.height, made.frames, made.fps) == (1280, 704, 93, 16)
    assert (made.steps, made.guidance_scale, made.negative_prompt) == (36, 7.0, "bad")
    assert made.warnings == ()


def test_a_default_is_moved_to_what_the_model_makes() -> None:
    small = Capabilities(model="small", sizes=(Size(256, 128),), frames=FrameRule(8, 17), steps=Range(1, 10))
    made = resolve(PLAIN, small)
    assert (made.width, made.height, made.frames, made.steps) == (256, 128, 17, 10)


def test_what_is_usual_on_a_wire_goes_before_the_models_own_where_the_model_takes_it() -> None:
    usual = Usual(frames=189, fps=24, steps=50, negative_prompt="")
    made = resolve(replace(PLAIN, usual=usual), PREDICT25)
    assert (made.frames, made.fps, made.steps, made.negative_prompt) == (93, 24, 50, "")
    asked = resolve(replace(PLAIN, usual=usual, steps=7), PREDICT25)
    assert asked.steps == 7


@pytest.mark.parametrize(
    ("side", "size"), [({"width": 832}, (832, 480)), ({"height": 1280}, (704, 1280)), ({"width": 1280}, (1280, 704))]
)
def test_one_side_brings_the_other(side: dict[str, int], size: tuple[int, int]) -> None:
    made = resolve(replace(PLAIN, **side), PREDICT25)
    assert (made.width, made.height) == size


def test_seconds_are_frames_at_the_rate_that_is_made() -> None:
    assert resolve(replace(PLAIN, seconds=2), PREDICT25).frames == 32
    assert resolve(replace(PLAIN, seconds=2, fps=24), PREDICT25).frames == 48
    assert resolve(replace(PLAIN, seconds=2, frames=5), PREDICT25).frames == 5


def test_a_model_owns_what_it_has_one_value_of() -> None:
    made = resolve(replace(PLAIN, usual=Usual(steps=35, guidance_scale=6, negative_prompt="x")), STUDENT)
    assert (made.steps, made.guidance_scale, made.negative_prompt) == (4, 1, "")
    with pytest.raises(InvalidRequestError) as caught:
        resolve(replace(PLAIN, steps=35, guidance_scale=6.0, negative_prompt="x"), STUDENT)
    message = str(caught.value)
    assert "steps: 35 is not accepted; expected no value: the model has its own, 4" in message
    assert "guidance_scale: 6.0 is not accepted; expected no value: the model has its own, 1" in message
    assert "negative_prompt: 'x' is not accepted; expected no value: student owns it" in message


def test_what_was_fitted_or_not_used_is_said() -> None:
    made = resolve(replace(PLAIN, width=640, height=360, fps=60, frames=13, fit=True), CAPABILITIES)
    assert made.warnings == ("640x360 was made at 1280x704 and resampled, 60 fps was made at 40 fps and resampled",)
    assert resolve(made, CAPABILITIES) == made
    ignoring = replace(CAPABILITIES, ignores=("flow_shift",))
    made = resolve(replace(PLAIN, flow_shift=5.0), ignoring)
    assert (made.flow_shift, made.warnings) == (None, ("flow_shift was not used: test has its own",))
    assert resolve(made, ignoring) == made


def test_texts_and_lists_are_bounded_in_every_language() -> None:
    for name in ("prompt", "negative_prompt"):
        for text in ("x" * 20_001, "\u7403" * 20_001):
            assert f"{name}: '20001 characters'" in refused(**{name: text})
    assert "controls: '9 entries'" in refused(controls=(Control("edge"),) * 9)
    assert "every kind of control once" in refused(controls=(Control("edge"),) * 2)
    assert "adapters: '17 entries'" in refused(adapters=(Adapter("a"),) * 17)
    assert "action.values" in refused(action=Action(1, ((0.0,) * 1001,) * 100))
    assert "conditioning_indexes: '257 entries'" in refused(conditioning_indexes=tuple(range(257)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": "x" * 20_001}, "20001 characters"),
        ({"seed": -1}, "seed: -1"),
        ({"steps": 0}, "steps: 0"),
        ({"fps": float("nan")}, "fps: nan"),
        ({"seconds": 0}, "seconds: 0"),
        ({"output": Output("mkv")}, "output.container"),
        ({"image": b"x", "video": b"x"}, "not both"),
        ({"image": Path("/there/is/no.png")}, "image: '/there/is/no.png' is not accepted; expected a file that exists"),
    ],
)
def test_mistakes_that_need_no_model(change: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check(replace(PLAIN, **change))
    assert said in str(caught.value)


IMAGE, CLIP, EDGE = {"image": b"x"}, {"video": b"x"}, {"controls": (Control("edge", source=b"x"),)}
ACTS = {"action": Action(8, None, 4)}
ROBOT = Capabilities(
    model="robot",
    family="cosmos3",
    modes=("text2world", "image2world", "video2world", "transfer", "forward_dynamics", "inverse_dynamics", "policy"),
    controls=("edge",),
    control_guidance=Range(0, 10),
    action_domains=(ActionDomain(8, "droid", 2),),
    adapters=("crayon",),
)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "text2world"} | IMAGE, "image: 'given' is not accepted; expected none: text2world"),
        ({"task": "text2world"} | CLIP, "video: 'given' is not accepted"),
        ({"task": "image2world"}, "image: null is not accepted; expected given for image2world"),
        ({"task": "video2world"} | IMAGE, "video: null is not accepted"),
        ({"task": "transfer"} | CLIP, "controls: 'none' is not accepted; expected one or more of edge"),
        (IMAGE | EDGE, "image: 'given' is not accepted; expected none: transfer"),
        ({"task": "image2world"} | IMAGE | EDGE, "controls: 'given' is not accepted"),
        (IMAGE | ACTS, "action: 'given' is not accepted; expected none: image2world"),
        ({"task": "policy"} | ACTS, "image: null is not accepted; expected given for policy"),
        ({"task": "policy"} | IMAGE, "action: null is not accepted; expected a domain and steps"),
        ({"task": "inverse_dynamics"} | IMAGE | ACTS, "video: null is not accepted"),
        ({"task": "policy", "action": Action(8, None, 3)} | IMAGE, "action.steps: 3 is not accepted"),
        ({"task": "policy", "frames": 9} | IMAGE | ACTS, r"frames: 9 is not accepted; expected action.steps \+ 1"),
        ({"task": "policy", "action": Action(8, ((1.0, 1.0),), 4)} | IMAGE, "none: policy answers with them"),
        ({"task": "forward_dynamics"} | IMAGE | ACTS, "rows of 2 numbers for droid"),
        (
            {"task": "forward_dynamics", "action": Action(8, ((1.0, float("nan")),), 4)} | IMAGE,
            "rows of finite numbers",
        ),
        ({"keep": "middle"} | CLIP, "keep: 'middle' is not accepted; expected first or last"),
        ({"guidance_interval": (0.5,)}, "guidance_interval"),
        ({"adapters": (Adapter("crayon", float("nan")),)}, "adapters.crayon.scale: nan is not accepted"),
        ({"adapters": (Adapter("crayon", 1e9),)}, "expected a number from -100 to 100"),
        ({"controls": (Control("edge", source=b"x", preset="x"),)}, "controls.edge.preset: 'x' is not accepted"),  # type: ignore[arg-type]
        (EDGE | {"chunk_frames": 10**9}, "chunk_frames: 1000000000 is not accepted; expected an integer from 1 to 121"),
        (EDGE | {"conditioning_frames": -1}, "conditioning_frames: -1 is not accepted"),
        (EDGE | CLIP | {"chunk_frames": 5, "first_conditioning_frames": 5}, "less than the 5 frames of a chunk"),
    ],
)
def test_what_does_not_go_together_is_refused_and_not_passed_over(change: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        resolve(replace(PLAIN, **change), ROBOT)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (EDGE | {"conditioning_indexes": (0, 3)}, "conditioning indexes were not used"),
        ({"guidance_scale": 1, "negative_prompt": "fog"}, "negative prompt was not used"),
        ({"guidance_scale": 1, "guidance_rescale": 0.5}, "guidance rescale was not used"),
        ({"guidance_scale": 1, "guidance_interval": (0.0, 0.9)}, "guidance interval was not used"),
        (
            {"task": "forward_dynamics", "action": Action(8, ((1.0, 1.0),) * 8, 4)} | IMAGE,
            "8 actions were given for 4 steps: those after the first 4 were not used",
        ),
        (
            {"task": "forward_dynamics", "action": Action(8, ((1.0, 1.0),), 4)} | IMAGE,
            "1 actions were given for 4 steps: the last one was repeated",
        ),
    ],
)
def test_what_is_not_used_is_said(change: dict[str, object], said: str) -> None:
    resolved = resolve(replace(PLAIN, **change), ROBOT)
    assert any(said in warning for warning in resolved.warnings), resolved.warnings
    assert resolve(resolved, ROBOT) == resolved
    assert not resolve(replace(PLAIN, guidance_scale=1), ROBOT).warnings
    chunks = replace(ROBOT, control_guidance=None, conditioning_frames=(1,))
    assert any(
        "a chunk repeats 1" in word for word in resolve(replace(PLAIN, **EDGE, conditioning_frames=2), chunks).warnings
    )


def test_any_latent_frames_can_be_given_to_a_model_that_takes_them() -> None:
    video = replace(PLAIN, video=b"x")
    assert resolve(replace(video, conditioning_indexes=(1, 0, 0)), CAPABILITIES).conditioning_frames == 9
    five = replace(PREDICT25, conditioning_frames=(5, 1))
    assert resolve(replace(video, conditioning_indexes=(0,)), five).conditioning_frames == 1
    free = replace(five, conditioning_indexes=True)
    assert resolve(replace(video, conditioning_indexes=(23, 0)), free).conditioning_indexes == (0, 23)
    for model, indexes, said in ((five, (0, 23), "[0, 1], [0]"), (free, (24,), "up to 23")):
        with pytest.raises(InvalidRequestError) as caught:
            resolve(replace(video, conditioning_indexes=indexes), model)
        assert said in str(caught.value)
