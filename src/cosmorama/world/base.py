"""The contract between the engine and a world model.

A `World` is a loaded model. It keeps no state between calls: whatever belongs to one request (conditioning latents,
cached keys and values, the random stream) lives in the `Sampling` that `begin` returns, which its rollout owns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from cosmorama.diffusion.schedule import Schedule
from cosmorama.errors import CosmoramaError
from cosmorama.request import Adapter, Capabilities, ResolvedRequest


class BrokenModelError(Exception):
    """The model cannot go on, for this request or another: its process has to end, and to be started again.

    Attributes:
        error: What the request ends with at which that came to light; None: it is made again, by another process.
    """

    def __init__(self, message: str, error: CosmoramaError | None = None) -> None:
        self.error = error
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class TextEmbedding:
    """One prompt as the denoiser reads it.

    Attributes:
        states: `[1, S, D]`.
        mask: bool `[1, S]`, True on real tokens; None where every row counts.
        repeats: How many equal rows the last one stands for.
        note: What of the prompt was not read, in a sentence for whoever sent it; None: all was.
        tokens: How many tokens the prompt has, with what the encoder puts around it; 0 where nobody counts.
        limit: How many of them are read; None for all.
    """

    states: Tensor
    mask: Tensor | None = None
    repeats: int = 1
    note: str | None = None
    tokens: int = 0
    limit: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return int(self.states.nbytes + (0 if self.mask is None else self.mask.nbytes))


ReadText = Callable[[str], TextEmbedding]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a request gives to a model, with its media at hand.

    Attributes:
        request: Resolved: seed, solver and conditioning frames are filled in.
        prompt: The text to use.
        frames: Conditioning frames, uint8 `[K, height, width, 3]`, K a count the model takes; None for text alone.
        controls: Control clips by kind, uint8 `[T, height, width, 3]`.
    """

    request: ResolvedRequest
    prompt: str
    frames: Tensor | None = None
    controls: dict[str, Tensor] = field(default_factory=dict)


class Sampling(Protocol):
    """One request on one model. Latents are float32; their shape is the family's own, usually `[1, C, T, H, W]`.

    The denoiser's contract is data prediction: whatever a network was trained to output, `denoise` returns its estimate
    of the clean latents, conditioning frames included, as its family samples them.
    """

    @property
    def schedule(self) -> Schedule:
        """The noise levels this request is sampled at."""
        ...

    @property
    def guidance_weight(self) -> float:
        """The weight `w` in `uncond + w * (cond - uncond)` that the request's guidance scale means to this family."""
        ...

    def initial(self) -> Tensor:
        """The latents at the first level, drawn from the request's seed. Called once, before `denoise`."""
        ...

    def denoise(self, latents: Tensor, index: int, *, negative: bool = False) -> Tensor:
        """Estimate the clean latents at level `index`; `negative` reads the negative prompt instead of the prompt.

        Per level it is called for the prompt first; the negative evaluation may be left out.
        """
        ...

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """Latents to frames, in order and in chunks: uint8 `[t, height, width, 3]`."""
        ...


@runtime_checkable
class Stepper(Protocol):
    """A sampling with a solver of its own: it is told to go on instead of asked for its estimate."""

    def step(self, latents: Tensor, index: int) -> Tensor:
        """The latents at level `index + 1`."""
        ...


@runtime_checkable
class Renoising(Protocol):
    """A sampling whose steps begin with fresh noise (stochastic, SDE): distilled models go so, whatever the solver."""

    def renoise(self, denoised: Tensor, index: int) -> Tensor:
        """The latents at level `index + 1` from the clean ones estimated at `index`; repeated, the same ones."""
        ...


@runtime_checkable
class Chunked(Protocol):
    """A sampling of several clips, one after another on the same levels, each from the end of the one before."""

    @property
    def shares(self) -> tuple[float, ...]:
        """Which part of the whole work each of them is, in order."""
        ...

    def next_chunk(self, latents: Tensor) -> Tensor:
        """The next one's latents at the first level, when the one before is clean."""
        ...


@runtime_checkable
class Previewing(Protocol):
    """A sampling of which the beginning is shown otherwise than by `decode`, which would do too much for that."""

    def preview(self, latents: Tensor) -> Iterator[Tensor]:
        """The first chunks of frames of what is being sampled now, uint8 `[t, height, width, 3]`."""
        ...


@runtime_checkable
class Acting(Protocol):
    """A sampling that may answer with actions."""

    def actions(self, latents: Tensor) -> Tensor | None:
        """The actions `[steps, numbers]` in clean latents; None where the request asks for none."""
        ...


@runtime_checkable
class Adaptable(Protocol):
    """A world model with adapters, which act on whatever it does until others are selected."""

    def select(self, adapters: tuple[Adapter, ...]) -> None:
        """Let these adapters act from now on, and no others."""
        ...


class World(Protocol):
    """A world model. Samplings of different requests may be advanced in any order."""

    @property
    def capabilities(self) -> Capabilities:
        """What requests this model takes."""
        ...

    def encode_text(self, prompt: str) -> TextEmbedding:
        """Read a prompt; the empty string is the unconditional one."""
        ...

    def begin(self, inputs: Inputs, read: ReadText) -> Sampling:
        """Read the conditions of a request.

        Args:
            inputs: The request.
            read: `encode_text`, perhaps behind a cache.
        """
        ...
