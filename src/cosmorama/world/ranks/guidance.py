"""One request in several processes, and the simplest way: on two devices, one prompt on each at the same time.

Guidance asks the same network twice at every level. `GuidanceParallel` has a second process with the same model, the
follower, which begins every request too and evaluates the negative half while the first evaluates the other. They meet
once per level, over a pipe; nothing is exchanged inside of the network, so it works for every family that is asked for
its estimate, and the numbers are those of one process, bit for bit on the same kind of device.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import count

from torch import Tensor

from cosmorama.diffusion.guidance import Guidance
from cosmorama.request import Adapter
from cosmorama.world.base import Inputs, ReadText, Relayed, Sampling, TextEmbedding, World
from cosmorama.world.ranks.process import Begin, Command, Do, Follower


class Parallel(World):
    """A world model that begins every request in other processes as well. It has every adapter that the model has."""

    def __init__(self, world: World, followers: Sequence[Follower]) -> None:
        self.world, self.capabilities, self.device = world, world.capabilities, world.device
        self._followers = tuple(followers)
        self._numbers = count()

    def select(self, adapters: tuple[Adapter, ...]) -> None:
        """Select them here; a follower selects those of the request it is asked about."""
        self.world.select(adapters)

    def encode_text(self, prompt: str) -> TextEmbedding:
        return self.world.encode_text(prompt)

    def begin(self, inputs: Inputs, read: ReadText) -> Sampling:
        """Begin the request in all processes.

        Raises:
            BrokenModelError: one of them is gone.
        """
        number = next(self._numbers)
        try:
            tell(self._followers, Begin(number, inputs))
            sampling = self.world.begin(inputs, read)
            hear(self._followers)
        except Exception:
            forget(self._followers, number)
            raise
        return self._shared(sampling, inputs, number)

    def _shared(self, sampling: Sampling, inputs: Inputs, number: int) -> Sampling:
        raise NotImplementedError


class Shared(Relayed):
    """A request that several processes work on."""

    def __init__(self, sampling: Sampling, inputs: Inputs, followers: Sequence[Follower], number: int) -> None:
        self.inner, self._followers, self._number = sampling, followers, number
        self._request = inputs.request
        self._follow()
        weakref.finalize(self, forget, followers, number).atexit = False

    def _follow(self) -> None:
        inner = self.inner
        self.schedule, self.guidance_weight, self.shares = inner.schedule, inner.guidance_weight, inner.shares

    def renoise(self, denoised: Tensor, index: int) -> Tensor | None:
        renoised = self.inner.renoise(denoised, index)
        self._follow()  # there may be a chunk more
        return renoised

    def next_chunk(self, latents: Tensor) -> Tensor:
        tell(self._followers, Do(self._number, "next_chunk", latents.cpu()))
        first = self.inner.next_chunk(latents)
        hear(self._followers)
        self._follow()
        return first


class GuidanceParallel(Parallel):
    """A world model whose negative evaluations happen in another process."""

    def __init__(self, world: World, follower: Follower) -> None:
        super().__init__(world, (follower,))

    def _shared(self, sampling: Sampling, inputs: Inputs, number: int) -> Sampling:
        """What has no guidance, or does it by itself, is made in this process alone."""
        if sampling.guidance_weight == 1 and len(sampling.shares) == 1:
            forget(self._followers, number)
            return sampling
        return _Guided(sampling, inputs, self._followers, number)


class _Guided(Shared):
    _asked: int | None = None

    def denoise(self, latents: Tensor, index: int, *, negative: bool = False) -> Tensor:
        """Estimate the clean latents; the follower begins with the negative half as soon as the other is asked for."""
        if negative:
            if self._asked != index:
                return self.inner.denoise(latents, index, negative=True)
            self._asked = None
            answer: Tensor = self._followers[0].receive()
            return answer.to(latents.device)
        if Guidance.of(self.guidance_weight, self._request).acts_at(index, self.schedule.steps):
            # Some remember at the negative evaluation what they saw at the other; both belong to a level.
            negated = {"index": index, "negative": True}
            tell(self._followers, Do(self._number, "denoise", latents.cpu(), negated, told=True))
            self._asked = index
        return self.inner.denoise(latents, index)


def tell(followers: Sequence[Follower], command: Command) -> None:
    """Give all of them a command."""
    for follower in followers:
        follower.send(command)


def hear(followers: Sequence[Follower]) -> None:
    """Wait until all of them have done the last command.

    Raises:
        WorkerError: one of them failed.
        BrokenModelError: one of them is gone.
    """
    for follower in followers:
        follower.receive()


def forget(followers: Sequence[Follower], number: int) -> None:
    """Let all of them drop a request before their next command."""
    for follower in followers:
        follower.forget(number)
