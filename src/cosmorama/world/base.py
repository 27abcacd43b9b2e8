"""The contract between the engine and a world model.

A `World` is a loaded model (its pipeline). It keeps no state between calls: whatever belongs to one request
(conditioning latents, cached keys and values, the random stream) lives in the `Sampling` that `begin` returns, which
its rollout owns. Both are base classes with defaults: a family writes what is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

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


class Sampling:
    """One request on one model. Latents are float32; their shape is the family's own, usually `[1, C, T, h, w]`.

    The denoiser's contract is data prediction: whatever a network was trained to output, `denoise` returns its estimate
    of the clean latents (x0), conditioning frames included, as its family samples them.

    A clip may be made in several chunks, one after another, each from the end of the one before: a still and then the
    clip, windows of a long clip, pieces that follow a control clip.

    Attributes:
        schedule: The noise levels (sigmas) that the chunk is sampled at, as many in every chunk.
        guidance_weight: The weight `w` in `uncond + w * (cond - uncond)` (CFG) that the request's guidance scale means
            to this family, in this chunk; 1: the negative prompt is not read.
        shares: Which part of the whole work each chunk is, in order; known chunks only, so it may grow.
    """

    schedule: Schedule
    guidance_weight: float = 1.0
    shares: tuple[float, ...] = (1.0,)

    @property
    def draws(self) -> bool:
        """Whether what `step` returns is clean as far as it goes, and can be looked at on the way."""
        return False

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever sent the request is to be told of how it was sampled."""
        return ()

    def initial(self) -> Tensor:
        """The latents at the first level, drawn from the request's seed. Called once, before `denoise`."""
        raise NotImplementedError

    def denoise(self, latents: Tensor, index: int, *, negative: bool = False) -> Tensor:
        """Estimate the clean latents at level `index`; `negative` reads the negative prompt instead of the prompt.

        Per level it is called for the prompt first; the negative evaluation may be left out.
        """
        raise NotImplementedError

    def step(self, latents: Tensor, index: int) -> Tensor | None:
        """The latents at level `index + 1`, of what has a solver of its own; None: it is asked for its estimate."""
        return None

    def renoise(self, denoised: Tensor, index: int) -> Tensor | None:
        """The latents at level `index + 1` from the clean ones estimated at `index`, where steps begin with fresh noise
        (stochastic, SDE) whatever the solver: distilled models go so. Repeated, the same ones. None: the solver does.
        """
        return None

    def next_chunk(self, latents: Tensor) -> Tensor:
        """The next chunk's latents at the first level, when those of the one before are clean.

        Where it fails, for want of memory perhaps, it may be called again.
        """
        raise NotImplementedError

    def decode(self, latents: Tensor, chunk: int = 0) -> Iterator[Tensor]:
        """Clean latents to the frames that a chunk adds to the clip, in order and piece by piece: uint8 `[t, H, W, 3]`.

        The last chunk may have more than were asked for. Nothing may come of the others; all is in the last one then.
        """
        raise NotImplementedError

    def preview(self, latents: Tensor) -> Iterator[Tensor]:
        """The first frames of what is being sampled now, from an estimate of it; as `decode`, perhaps for less."""
        return self.decode(latents)

    def actions(self, latents: Tensor) -> Tensor | None:
        """The actions `[steps, numbers]` in clean latents; None where the request asks for none."""
        return None


class Relayed(Sampling):
    """What another sampling of the same request does, but for what a subclass does otherwise.

    Attributes:
        inner: The other one, of the current chunk.
    """

    inner: Sampling

    @property
    def draws(self) -> bool:
        """See `Sampling`, as all below."""
        return self.inner.draws

    @property
    def notes(self) -> tuple[str, ...]:
        return self.inner.notes

    def initial(self) -> Tensor:
        return self.inner.initial()

    def denoise(self, latents: Tensor, index: int, *, negative: bool = False) -> Tensor:
        return self.inner.denoise(latents, index, negative=negative)

    def step(self, latents: Tensor, index: int) -> Tensor | None:
        return self.inner.step(latents, index)

    def renoise(self, denoised: Tensor, index: int) -> Tensor | None:
        return self.inner.renoise(denoised, index)

    def decode(self, latents: Tensor, chunk: int = 0) -> Iterator[Tensor]:
        return self.inner.decode(latents, chunk)

    def preview(self, latents: Tensor) -> Iterator[Tensor]:
        return self.inner.preview(latents)

    def actions(self, latents: Tensor) -> Tensor | None:
        return self.inner.actions(latents)


class World:
    """A world model. Samplings of different requests may be advanced in any order.

    Attributes:
        capabilities: What requests it takes.
        device: Where its networks run.
    """

    capabilities: Capabilities
    device: torch.device = torch.device("cpu")

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Those that evaluate a clip's tokens, which several processes can share out; the denoiser is the first."""
        return ()

    def select(self, adapters: tuple[Adapter, ...]) -> None:
        """Let these adapters (LoRA) act from now on, and no others, on whatever it does."""

    def encode_text(self, prompt: str) -> TextEmbedding:
        """Read a prompt; the empty string is the unconditional one."""
        raise NotImplementedError

    def begin(self, inputs: Inputs, read: ReadText) -> Sampling:
        """Read the conditions of a request.

        Args:
            inputs: The request.
            read: `encode_text`, perhaps behind a cache.
        """
        raise NotImplementedError
