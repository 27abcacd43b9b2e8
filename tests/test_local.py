"""World models in the caller's own process."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import cosmorama
from cosmorama.progress import Progress

SMALL = {"steps": 2, "frames": 9, "width": 960, "height": 704}


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path):
    return cosmorama.load(str(tiny_checkpoint))


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
