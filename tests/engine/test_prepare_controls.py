"""What reaches a model of a request with controls, actions, or a choice of the clip's end."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from cosmorama.engine.prepare import PreparedRequest, Preparer
from cosmorama.errors import InvalidRequestError, MediaError
from cosmorama.request import (
    Action,
    ActionDomain,
    Capabilities,
    Control,
    FrameRule,
    GenerationRequest,
    Range,
    ResolvedRequest,
    Size,
    Target,
)
from cosmorama.resolve import resolve
from tests.media.make import encode_clip, encode_picture

WIDTH, HEIGHT, LENGTH = 64, 48, 12
CAPABILITIES = Capabilities(
    model="anything",
    modes=("video2world", "transfer", "inverse_dynamics", "policy"),
    sizes=(Size(WIDTH, HEIGHT),),
    frames=FrameRule(1, 480),
    conditioning_frames=(5, 1),
    controls=("edge", "depth", "vis"),
    action_domains=(ActionDomain(6, "umi", 10),),
)
REQUEST = ResolvedRequest(prompt="a ramp", width=WIDTH, height=HEIGHT, frames=480, fps=24, seed=1)


def ramp(length: int = LENGTH, rate: Fraction = Fraction(24)) -> bytes:
    """A clip whose frames get brighter by 16 levels each."""
    frames = [np.full((HEIGHT, WIDTH, 3), 20 + 16 * index, np.uint8) for index in range(length)]
    return encode_clip(frames, rate=rate)


def prepared(request: ResolvedRequest) -> PreparedRequest:
    return Preparer()(resolve(request, CAPABILITIES), CAPABILITIES)


def brightness(frames: np.ndarray | None) -> list[int]:
    assert frames is not None
    return [round((float(frame.mean()) - 20) / 16) for frame in frames]


def test_controls_are_read_from_the_beginning_and_the_shortest_decides() -> None:
    controls = (Control("depth", source=ramp(12)), Control("edge", source=ramp(9)))
    made = prepared(replace(REQUEST, controls=controls))
    assert {kind: len(frames) for kind, frames in made.controls.items()} == {"depth": 9, "edge": 9}
    assert made.warnings == ("the control depth has 12 frames at 24 fps; cut to the 9 of the shortest",)
    assert brightness(made.controls["depth"]) == list(range(9))
    assert made.request.frames == 9
    assert made.frames is None


def test_no_more_frames_are_made_than_asked_for() -> None:
    made = prepared(replace(REQUEST, frames=5, controls=(Control("depth", source=ramp()),)))
    assert (made.request.frames, len(made.controls["depth"])) == (5, 5)


def test_a_fitted_request_is_shortened_at_its_own_rate() -> None:
    target = Target(WIDTH, HEIGHT, 960, 48)
    resolved = resolve(replace(REQUEST, controls=(Control("depth", source=ramp()),)), CAPABILITIES)
    made = Preparer()(replace(resolved, target=target), CAPABILITIES)
    assert (made.request.frames, made.request.result.frames) == (12, 24)


def test_edges_and_blur_are_computed_from_the_video() -> None:
    pytest.importorskip("cv2", reason="edges need OpenCV (pip install '.[cosmos]')")
    made = prepared(replace(REQUEST, video=ramp(), controls=(Control("edge"), Control("vis"))))
    assert not made.controls["edge"].any()
    assert brightness(made.controls["vis"]) == list(range(LENGTH))


def test_a_prompt_is_not_needed_where_there_is_a_video() -> None:
    made = prepared(replace(REQUEST, prompt=None, video=ramp(), controls=(Control("depth", source=ramp()),)))
    assert made.prompt


def test_a_control_that_cannot_be_read_is_named() -> None:
    with pytest.raises(MediaError, match=r"controls\.0\.source"):
        prepared(replace(REQUEST, controls=(Control("depth", source=b"no clip"),)))
    with pytest.raises(InvalidRequestError, match=r"controls\.depth\.source.*depth is not computed.*only edge and vis"):
        prepared(replace(REQUEST, video=ramp(), controls=(Control("depth"),)))


@pytest.mark.parametrize(("keep", "kept"), [("first", [0, 1, 2, 3, 4]), ("last", [7, 8, 9, 10, 11])])
def test_a_clip_is_continued_from_the_end_that_was_chosen(keep: str, kept: list[int]) -> None:
    made = prepared(replace(REQUEST, video=ramp(), frames=29, keep=keep))  # type: ignore[arg-type]
    assert brightness(made.frames) == kept


def test_inverse_dynamics_sees_the_whole_clip_and_a_policy_its_first_frame() -> None:
    action = Action(6, None, 16)
    whole = prepared(replace(REQUEST, task="inverse_dynamics", video=ramp(), frames=17, action=action))
    assert brightness(whole.frames) == [*range(12), *[11] * 5]
    assert whole.warnings == ("video has 12 of 17 frames at 24 fps; its last one stands still for the rest",)
    first = prepared(replace(REQUEST, task="policy", video=ramp(), frames=17, action=action))
    assert brightness(first.frames) == [0]
    assert first.warnings == ("of video only the first frame was used: policy starts from one",)


def test_a_short_clip_is_continued_from_what_the_model_can_take_of_it_with_a_word() -> None:
    made = prepared(replace(REQUEST, video=ramp(3), frames=29))
    assert brightness(made.frames) == [2]
    assert made.warnings == ("video has 3 of 5 frames at 24 fps; continued from 1 of them",)
    assert not prepared(replace(REQUEST, video=ramp(), frames=29)).warnings
    between = replace(CAPABILITIES, conditioning_indexes=True)
    asked = resolve(replace(REQUEST, video=ramp(3), frames=29, conditioning_indexes=(0, 2)), between)
    assert Preparer()(asked, between).warnings == (
        "video has 3 of 9 frames at 24 fps; its last one stands still for the rest",
    )


@pytest.mark.parametrize("rate", [10, 16, 24, 30])
def test_every_frame_of_a_control_is_followed_at_its_own_rate(rate: int) -> None:
    source = ramp(rate=Fraction(rate))
    request = GenerationRequest(prompt="a ramp", width=WIDTH, height=HEIGHT, frames=480, seed=1)
    wide = replace(CAPABILITIES, fps=Range(1, 60))
    made = Preparer()(resolve(replace(request, controls=(Control("depth", source=source),)), wide), wide)
    assert brightness(made.controls["depth"]) == list(range(LENGTH))
    assert (made.request.frames, made.request.result.fps) == (LENGTH, rate)
    asked = replace(request, fps=2 * rate, frames=480, controls=(Control("depth", source=source),))
    made = Preparer()(resolve(asked, replace(wide, fps=Range(1, 120))), wide)
    assert made.request.result.fps == 2 * rate
    assert len(made.controls["depth"]) == 2 * LENGTH - 1


def test_a_rate_that_is_not_made_is_resampled_with_a_word() -> None:
    request = GenerationRequest(
        prompt="a ramp", width=WIDTH, height=HEIGHT, frames=480, seed=1, controls=(Control("depth", source=ramp()),)
    )
    slow = replace(CAPABILITIES, fps=Range(10, 20))
    made = Preparer()(resolve(request, slow), slow)
    assert made.request.result.fps == 20
    assert made.warnings == ("controls.0.source has 24 fps, which is not made; it was resampled to 20 fps",)


def test_a_still_as_a_control_is_refused() -> None:
    still = encode_picture(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    with pytest.raises(MediaError, match="still picture"):
        prepared(replace(REQUEST, controls=(Control("depth", source=still),)))
