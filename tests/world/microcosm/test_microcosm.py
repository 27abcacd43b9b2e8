"""The weights that ship: they load, follow the prompt, start from the given picture and continue the given clip.

Bars are well below what `python -m microcosm.evaluate` measures; they catch a broken checkpoint, not a weaker one.
"""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import cosmorama
from cosmorama.local import Generation, Model
from cosmorama.world.registry import MICROCOSM

START = Path(__file__).parents[3] / "docs" / "images" / "start.png"
Frame = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def microcosm() -> Model:
    return cosmorama.load("microcosm")


def frames_of(clip: Generation) -> Frame:
    return np.stack(list(clip.frames))


def psnr(a: Frame, b: Frame) -> float:
    return -10 * math.log10(float(((a.astype(float) - b) ** 2).mean()) / 255**2 + 1e-12)


def reconstruction(model: Model, frames: Frame) -> Frame:
    """What the autoencoder makes of frames `[T, H, W, 3]`: the best that any continuation could show of them."""
    latents = model.world.encode_frames(torch.from_numpy(frames.copy()))
    return np.concatenate(
        [chunk.numpy() for chunk in model.world.autoencoder.decode_stream(latents, *frames.shape[1:3])]
    )


def test_the_weights_are_safetensors_and_small() -> None:
    files = [file for file in MICROCOSM.folder.rglob("*") if file.is_file()]
    assert not [file for file in files if file.suffix in {".bin", ".pt", ".pth", ".pkl"}]
    assert sum(file.stat().st_size for file in files) < 40e6


@pytest.mark.parametrize("size", ["960x960", "960x704", "704x960", "1280x704", "704x1280"])
def test_every_size_of_the_api_is_made(microcosm: Model, size: str) -> None:
    width, height = map(int, size.split("x"))
    clip = microcosm.generate("a red ball", seed=1, steps=2, frames=1, width=width, height=height)
    assert frames_of(clip).shape == (1, height, width, 3)


def test_every_knob_changes_the_frames(microcosm: Model) -> None:
    small = {"steps": 4, "frames": 9, "width": 960, "height": 704, "seed": 1}
    picture = np.asarray(Image.open(START).convert("RGB"))
    variants = [
        microcosm.generate("a red ball falls", **small),
        microcosm.generate("a red ball falls", **{**small, "seed": 2}),
        microcosm.generate("a blue cube falls", **small),
        microcosm.generate("a red ball falls", guidance_scale=2.0, **small),
        microcosm.generate("a red ball falls", **{**small, "steps": 5}),
        microcosm.generate("a red ball falls", image=picture, prompt_upsampling=True, **small),
        microcosm.generate("a red ball falls", image=picture[:, ::-1].copy(), prompt_upsampling=True, **small),
    ]
    clips = [frames_of(clip) for clip in variants]
    for i, clip in enumerate(clips):
        for other in clips[:i]:
            assert np.abs(clip.astype(np.int16) - other).mean() > 0.2


@pytest.mark.parametrize(
    ("prompt", "colors"),
    [
        ("two objects: a green ball next to an orange cylinder", {"green": 1, "orange": 1}),
        ("two red balls slide to the left", {"red": 2}),
    ],
)
def test_objects_that_the_denoiser_takes_for_others_are_drawn_as_they_were_named(
    microcosm: Model, prompt: str, colors: dict[str, int]
) -> None:
    """Things that stand beside orange ones were drawn as a corridor, two of one color as blobs."""
    (frame,) = frames_of(microcosm.generate(prompt, seed=11, frames=1, steps=12))
    hues, saturation, _ = np.moveaxis(cv2.cvtColor(frame, cv2.COLOR_RGB2HSV).astype(int), -1, 0)
    between = {"red": (0, 16), "orange": (18, 27), "green": (55, 85)}
    for color, count in colors.items():
        low, high = between[color]
        mask = (((hues + 10) % 180 >= low) & ((hues + 10) % 180 <= high) & (saturation > 170)).astype(np.uint8)
        areas = cv2.connectedComponentsWithStats(cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((9, 9))))[2][1:, 4]
        assert (areas > 2000).sum() == count, (color, areas)
    assert frame[:8].std() < 30  # sky, and no shelves


def test_the_first_frame_is_the_given_image_as_far_as_the_autoencoder_carries_it(microcosm: Model) -> None:
    picture = np.asarray(Image.open(START).convert("RGB"))
    clip = microcosm.generate(image=START, seed=1, steps=8, frames=9)
    first = frames_of(clip)[0]
    assert psnr(first, reconstruction(microcosm, picture[None])[0]) >= 30
    assert psnr(first, picture) >= 26


def test_a_clip_is_continued_from_its_last_frames(microcosm: Model, tmp_path: Path) -> None:
    source = microcosm.generate("a red ball rolls to the right on a green floor", seed=3, steps=12, frames=25)
    last = frames_of(source)[-9:]
    continued = frames_of(
        microcosm.generate(
            source.prompt, video=source.save(tmp_path / "clip.mp4", quality=9), seed=4, steps=12, frames=25
        )
    )
    assert psnr(continued[:9], reconstruction(microcosm, last)) >= 30
    # It goes on from there: the first new frame is closer to the last given one than to another scene.
    other = frames_of(microcosm.generate("a blue cube on a grey floor", seed=5, steps=4, frames=1))[0]
    assert psnr(continued[9], last[-1]) > psnr(continued[9], other) + 5
