"""A clip in chunks of one length, each from the decoded last frames of the one before: what follows control clips."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.world.base import Sampling
from cosmorama.world.vae.pixels import to_frames


class Chunks(Sampling):
    """One request for such a clip; latents are those of one chunk. Mixed into what a family samples.

    Attributes:
        generator: Of the request; what a chunk draws from it is drawn when the chunk starts.
        stride: Frames from the beginning of one chunk to that of the next.
    """

    generator: torch.Generator

    def chunk(self, total: int, length: int, overlap: int) -> None:
        """Lay out a clip of `total` frames in chunks of `length`, each repeating the last `overlap` of the one before.

        Raises:
            InvalidRequestError: nothing of a chunk would be new.
        """
        if overlap >= length and total > length:
            raise InvalidRequestError(Problem("conditioning_frames", overlap, f"fewer than the chunk's {length}"))
        self._total, self._overlap, self.stride = total, overlap, length - overlap
        count = 1 if total <= length else 1 - (length - total) // self.stride
        self.shares = (1 / count,) * count
        self._number = 0
        self._ending: Tensor | None = None  # pixels of this chunk's last frames, once they are decoded

    def start(self, number: int, begins: Tensor | None) -> Tensor:
        """Noise for a chunk that begins with pixels `[1, 3, t, H, W]`, if any, and its conditions."""
        raise NotImplementedError

    def pixels(self, latents: Tensor) -> Iterator[Tensor]:
        """A chunk's latents to pixels `[1, 3, t, H, W]` in -1..1, piece by piece."""
        raise NotImplementedError

    @torch.inference_mode()
    def next_chunk(self, latents: Tensor) -> Tensor:
        """Start the next chunk from the end of a finished one."""
        if self._ending is None:
            for _ in self.decode(latents, self._number):
                pass
        state = self.generator.get_state()
        try:
            first = self.start(self._number + 1, self._ending)
        except BaseException:  # as if it had not been begun: where memory ran out it is tried again
            self.generator.set_state(state)
            raise
        self._number, self._ending = self._number + 1, None
        return first

    @torch.inference_mode()  # while it runs, and not while its caller does: clips may be decoded in turns
    def decode(self, latents: Tensor, chunk: int = 0) -> Iterator[Tensor]:
        """The frames of a chunk that the one before has not shown, uint8 `[t, height, width, 3]`."""
        position = chunk * self.stride
        shown = position + self._overlap if chunk else 0
        latest: list[Tensor] = []
        for pixels in self.pixels(latents):
            new = pixels[:, :, max(shown - position, 0) : max(self._total - position, 0)]
            position += pixels.shape[2]
            latest.append(pixels)
            while len(latest) > 1 and sum(piece.shape[2] for piece in latest[1:]) >= self._overlap:
                latest.pop(0)
            if new.shape[2]:
                yield to_frames(new)
        if chunk == self._number:
            ending = torch.cat(latest, dim=2)
            self._ending = ending[:, :, ending.shape[2] - self._overlap :]

    @torch.inference_mode()
    def preview(self, latents: Tensor) -> Iterator[Tensor]:
        """The beginning of the chunk that is being sampled."""
        for pixels in self.pixels(latents):
            yield to_frames(pixels)
