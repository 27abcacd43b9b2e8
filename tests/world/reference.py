"""What diffusers' own pipelines make, without torchvision, and before pixels are rounded to levels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from diffusers.models.transformers import transformer_cosmos
from diffusers.pipelines.cosmos import pipeline_cosmos2_5_predict
from torch import Tensor
from torch.nn.functional import interpolate


@dataclass(frozen=True)
class Made:
    """Final latents `[1, C, T, h, w]`, and pixels `[1, 3, T, H, W]` as the tokenizer decodes them."""

    latents: Tensor
    pixels: Tensor


def run_pipeline(pipeline: Any, *, seed: int, **arguments: Any) -> Made:
    """Run a pipeline of diffusers with a seed."""
    latents: list[Tensor] = []
    pixels: list[Tensor] = []

    def keep_latents(_pipeline: Any, _step: int, _timestep: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        latents.append(values["latents"])
        return {}

    postprocess = pipeline.video_processor.postprocess_video

    def keep_pixels(video: Tensor, **options: Any) -> Any:
        pixels.append(video)
        return postprocess(video, **options)

    with without_torchvision(), mock.patch.object(pipeline.video_processor, "postprocess_video", keep_pixels):
        pipeline(
            generator=torch.Generator().manual_seed(seed),
            callback_on_step_end=keep_latents,
            output_type="np",
            **arguments,
        )
    return Made(latents[-1], pixels[0])


@contextmanager
def without_torchvision() -> Iterator[None]:
    """Stand-ins for the two functions of torchvision that the pipelines use: nearest resizing, picture to tensor."""

    def resize(mask: Tensor, size: list[int], interpolation: object) -> Tensor:
        return interpolate(mask, size=tuple(size), mode="nearest")

    def to_tensor(picture: Any) -> Tensor:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255

    transforms = SimpleNamespace(
        functional=SimpleNamespace(resize=resize), InterpolationMode=SimpleNamespace(NEAREST="nearest")
    )
    torchvision = SimpleNamespace(transforms=SimpleNamespace(functional=SimpleNamespace(to_tensor=to_tensor)))
    with (
        mock.patch.object(transformer_cosmos, "transforms", transforms, create=True),
        mock.patch.object(pipeline_cosmos2_5_predict, "torchvision", torchvision, create=True),
    ):
        yield
