"""The contract between the engine and a world model: four verbs, and the facts the engine needs around them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from cosmorama.diffusion.schedule import Schedule
from cosmorama.request import Capabilities, Solver


@dataclass(frozen=True, slots=True)
class TextEmbedding:
    """One prompt as the denoiser reads it: `states` `[1, S, D]`, `mask` `[1, S]` bool (True = a real token) or None."""

    states: Tensor
    mask: Tensor | None = None


class World(Protocol):
    """A world model. It keeps no state between calls, so calls for different requests may be interleaved freely.

    Latents are `[1, C, T, H, W]` float32. The denoiser's contract is data prediction: whatever a network was trained to
    output, `denoise` returns its estimate of the clean latents.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What requests this model takes."""
        ...

    def latents_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        """Shape of the latents of `frames` (a count the model can make) frames of `height` x `width` pixels."""
        ...

    def schedule(self, steps: int, solver: Solver) -> Schedule:
        """The noise levels this model is sampled at."""
        ...

    def guidance_weight(self, scale: float) -> float:
        """The weight `w` in `uncond + w * (cond - uncond)` that a request's guidance scale means to this family."""
        ...

    def encode_text(self, prompt: str) -> TextEmbedding:
        """Read a prompt; the empty string is the unconditional one."""
        ...

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Conditioning frames, uint8 `[T, H, W, 3]` with a count the model can make, to clean latents."""
        ...

    def denoise(
        self, latents: Tensor, sigma: float, text: TextEmbedding, conditioning: Tensor | None, fps: float
    ) -> Tensor:
        """Estimate the clean latents from noisy ones at level `sigma`.

        `conditioning` `[1, C, K, H, W]` holds the clean latents of the first K latent frames, which come back as given.
        """
        ...

    def decode(self, latents: Tensor, height: int, width: int) -> Iterator[Tensor]:
        """Latents to frames, in order and in chunks: uint8 `[t, height, width, 3]`."""
        ...
