"""World models in the caller's own process."""

from __future__ import annotations

import math
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import cosmorama
from cosmorama.media.source import image_source, request_of
from cosmorama.progress import Progress
from cosmorama.request import Action, Adapter, Control, Knobs
from cosmorama.resolve import resolve

SMALL = {"steps": 2, "frames": 9, "width": 960, "height": 704}


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path):
    return cosmorama.load(str(tiny_checkpoint))


def test_python_is_told_how_a_prompt_was_read(model) -> None:
    told = model.generate("please show me a shiny red ball that glides left", **SMALL).warnings
    assert any("read as 'A red ball rolls to the left.'" in one for one in told)
    assert len(model.generate("a dragon", **SMALL).warnings) == 1


def test_generate_gives_frames_a_seed_and_a_file(model, tmp_path: Path) -> None:
    seen: list[Progress] = []
    clip = model.generate("a red ball falls", on_progress=seen.append, **SMALL)
    frames = list(clip.frames)
    assert len(frames) == 9
    assert all(frame.shape == (704, 960, 3) and frame.dtype == np.uint8 for frame in frames)
    assert 0 <= clip.seed < 2**32
    assert [p.step for p in seen if p.stage == "denoise"] == [0, 1, 2]
    path = clip.save(tmp_path / "clip.mp4")
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 9
    again = model.generate("a red ball falls", seed=clip.seed, **SMALL)
    assert all(np.array_equal(a, b) for a, b in zip(frames, again.frames, strict=True))
    assert "<video" in clip._repr_html_()


@pytest.mark.parametrize("suffix", [".webm", ".gif", ".zip"])
def test_the_suffix_chooses_the_format(model, tmp_path: Path, suffix: str) -> None:
    assert model.generate("a ball", seed=1, **SMALL).save(tmp_path / f"clip{suffix}").stat().st_size > 1000


def test_an_unknown_suffix_and_a_bad_quality_are_refused(model, tmp_path: Path) -> None:
    clip = model.generate("a ball", seed=1, **{**SMALL, "frames": 1})
    with pytest.raises(cosmorama.InvalidRequestError, match=r"\.mp4, \.webm, \.gif, \.zip"):
        clip.save(tmp_path / "clip.mov")
    assert clip.save(tmp_path / "still.jpg").stat().st_size > 1000
    with pytest.raises(cosmorama.InvalidRequestError, match=r"clip\.jpg.*9 frames"):
        model.generate("a ball", seed=1, **SMALL).save(tmp_path / "clip.jpg")
    with pytest.raises(cosmorama.InvalidRequestError, match="quality"):
        clip.save(tmp_path / "clip.mp4", quality=0)


def test_images_come_as_path_array_or_picture(model, tmp_path: Path) -> None:
    pixels = np.zeros((120, 200, 3), np.uint8)
    pixels[30:60, 50:90] = (220, 20, 20)
    Image.fromarray(pixels).save(tmp_path / "start.png")
    starts = [tmp_path / "start.png", str(tmp_path / "start.png"), pixels, Image.fromarray(pixels)]
    clips = [list(model.generate("a ball", image=start, seed=1, **SMALL).frames) for start in starts]
    assert all(np.array_equal(clips[0], clip) for clip in clips[1:])


def test_a_clip_is_continued_and_described_when_there_is_no_prompt(model, tmp_path: Path) -> None:
    clip = model.generate("a ball", seed=1, **SMALL).save(tmp_path / "clip.mp4")
    continued = model.generate(video=clip, seed=2, **{**SMALL, "frames": 17})
    assert continued.prompt
    assert len(list(continued.frames)) == 17
    assert continued.request.conditioning_frames == 9


def test_mistakes_are_typed_errors(model) -> None:
    with pytest.raises(cosmorama.InvalidRequestError, match="steps"):
        model.generate("a ball", steps=0)
    with pytest.raises(cosmorama.MediaError):
        model.generate("a ball", image="/no/such/picture.png")
    with pytest.raises(TypeError, match="guidence"):
        model.generate("a ball", guidence=3)
    with pytest.raises(cosmorama.ModelNotFoundError, match="microcosm"):
        cosmorama.load("no-such-model")


def test_decoding_in_turns_leaves_the_callers_torch_as_it_was(model) -> None:
    first, second = (iter(model.generate("a red ball", seed=seed, **SMALL).frames) for seed in (1, 2))
    for _ in zip(first, second, strict=True):
        assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


def test_a_fitted_clip_is_as_it_was_asked_for(model, tmp_path: Path) -> None:
    clip = model.generate("a ball", seed=1, steps=1, width=320, height=320, frames=5, fps=6, fit=True)
    assert any("320x320 was made at 960x704 and resampled" in warning for warning in clip.warnings)
    frames = list(clip.frames)
    assert [frame.shape for frame in frames] == [(320, 320, 3)] * 5
    with av.open(str(clip.save(tmp_path / "clip.mp4"))) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (320, 320, 6)
        assert sum(1 for _ in container.decode(stream)) == 5


ODD = ["x", -1, 1.5, math.nan, math.inf, 10**30, [1], ["x"], {"a": 1}, object(), b"\xff", ((1,),), np.zeros(3), [None]]


@pytest.mark.parametrize("knob", ["prompt", "image", "video", *Knobs.__annotations__])
def test_a_value_of_any_type_is_taken_or_refused_by_the_name_of_its_field(model, knob: str) -> None:
    words = {"width": "size", "height": "size", "image": "mode", "video": "mode"}
    for value in ODD:
        said = ""
        try:
            request = request_of(**{"prompt": "a ball", **SMALL, "image": None, "video": None, knob: value})
            model.preparer(resolve(request, model.capabilities), model.capabilities)
        except (cosmorama.InvalidRequestError, cosmorama.MediaError) as error:
            said = str(error)
        assert not said or knob in said or words.get(knob, knob) in said, (value, said)


def test_a_knob_that_does_not_exist_is_named(model) -> None:
    with pytest.raises(TypeError, match="there is no knob 'stepz'; did you mean 'steps'"):
        model.generate("a ball", stepz=2)


def test_numbers_of_numpy_mappings_and_names_are_taken(tmp_path: Path) -> None:
    control = tmp_path / "edge.mp4"
    control.write_bytes(b"a clip")
    request = request_of(
        "a ball",
        image=None,
        video=None,
        steps=np.int64(2),
        fps=np.float32(16),
        guidance_interval=[0, 0.5],
        controls=[{"kind": "edge", "source": str(control)}, Control("depth", source=control)],
        adapters=["style", {"name": "other", "scale": 0.5}, Adapter("third")],
        action={"domain": 1, "values": np.ones((4, 2))},
    )
    assert (request.steps, type(request.steps), request.fps, request.guidance_interval) == (2, int, 16, (0, 0.5))
    assert request.controls == (Control("edge", source=control), Control("depth", source=control))
    assert request.adapters == (Adapter("style"), Adapter("other", 0.5), Adapter("third"))
    assert request.action == Action(1, ((1, 1),) * 4)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "F", "LA", "I;16", "1"])
def test_a_picture_of_any_mode_is_taken(mode: str) -> None:
    assert isinstance(image_source(Image.new(mode, (8, 8))), bytes)


@pytest.mark.parametrize("array", [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((0, 8, 3), np.uint8)])
def test_an_array_that_is_no_picture_is_named(model, array: np.ndarray) -> None:
    with pytest.raises(cosmorama.InvalidRequestError, match=r"image: .*expected an array of uint8, \[H, W, 3\]"):
        model.generate(image=array)


@pytest.mark.parametrize("text", ["A" * 400, "~nobody-here/a", "a\0b"])
def test_a_text_that_no_file_can_be_called_is_no_path(text: str) -> None:
    assert image_source(text) == text
