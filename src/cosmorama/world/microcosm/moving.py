"""Clips of objects that go on from a moment of which all is known: objects are moved, and each frame is drawn."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cosmorama.diffusion.schedule import flow_schedule
from cosmorama.request import ResolvedRequest
from cosmorama.text.gist import scene_in
from cosmorama.text.reader import NamedObject
from cosmorama.world.base import Sampling
from cosmorama.world.microcosm.autoencoder import FRAMES_PER_LATENT, VideoAutoencoder
from cosmorama.world.microcosm.layout import SLOTS, Layout, meetings
from cosmorama.world.microcosm.mover import LOOKS, STEPS_S, Mover, moved, places_of, said_of, things_of
from cosmorama.world.microcosm.still_refiner import Recognised, StillRefiner

_SAME = 0.05  # of a range of 2: what is drawn alike, the picture has already
_MOVED_M = 0.01  # but not around what has moved on: something of its outline would stay
_LIKELY = 0.05, 0.95  # shares of velocities that are lower, of those that a clip from text may have
_DETERMINED = 0.15  # how much of that is left to chance where frames are given


def wanted(prompt: str) -> tuple[NamedObject, ...]:
    """The objects that a prompt names."""
    said = scene_in(prompt)
    return () if said is None else said.objects


def followed(refiner: StillRefiner, given: Tensor, prompt: str, text: Tensor) -> tuple[Recognised, Layout] | None:
    """What the last of given frames [K, 3, h, w] shows, and the layouts of the moments that are looked at, now first;
    None: something else.
    """
    scene = refiner.recognised(given[-1:], text, wanted(prompt), given=True)
    if scene is None or len(given) == 1:
        return None if scene is None else (scene, scene.layout)
    last = len(given) - 1
    before = refiner.before(scene, given[[last - round(last * look / (LOOKS - 1)) for look in range(1, LOOKS)]], text)
    return scene, Layout(torch.cat([scene.layout.objects, before.objects]), scene.layout.view)


class MovedSampling(Sampling):
    """The frames after known ones. Latents are those frames, `[1, 3, n, h, w]`; a step draws as many as belong to it.

    Args:
        networks: What moves and what draws.
        scene: The last of the known frames.
        looks: Layouts, see `followed`.
        known: Those frames, `[K, 3, h, w]`.
        prompt: What the clip shows.
        text: The prompt's first state, [1, D].
        request: Its size, rate, length, steps and seed.
        autoencoder: It makes frames larger.
        sampled: Whether the known frame was sampled: what goes on from it varies with the seed.
    """

    draws = True

    def __init__(
        self,
        networks: tuple[Mover, StillRefiner],
        scene: Recognised,
        looks: Layout,
        known: Tensor,
        prompt: str,
        text: Tensor,
        request: ResolvedRequest,
        autoencoder: VideoAutoencoder,
        *,
        sampled: bool,
    ) -> None:
        assert request.seed is not None
        self._mover, self._refiner = networks
        self._scene, self._text, self._request, self._autoencoder = scene, text, request, autoencoder
        self.first = known.transpose(0, 1)[None]
        self.schedule = flow_schedule(request.steps)
        chance = torch.rand(1, SLOTS, 4, generator=torch.Generator().manual_seed(request.seed))
        low, high = _LIKELY
        chance = low + (high - low) * chance if sampled else 0.5 + _DETERMINED * (chance - 0.5)
        ages = torch.arange(LOOKS) * (len(known) - 1) / ((LOOKS - 1) * request.fps)
        self._layouts = self._moved(looks, ages, said_of(scene_in(prompt), scene.layout), chance)
        self._same = self._refiner.moments(scene, scene.layout, text)
        self._missing = scene.still - self._same
        self._near = meetings(scene.layout, *scene.still.shape[2:])[0].unflatten(1, (SLOTS, 2)).any(2)
        self._made = 0

    def _moved(self, looks: Layout, ages: Tensor, said: Tensor, chance: Tensor) -> Layout:
        """The layouts of all frames to be drawn."""
        request, layout, now = self._request, self._scene.layout, places_of(self._scene.layout)
        count = request.frames - self.first.shape[2]
        seen = places_of(looks)
        if len(seen) == 1:
            seen, ages = seen.expand(LOOKS, -1, -1), torch.where(torch.arange(LOOKS) == 0, 0.0, -1.0)
        things = things_of(layout)
        velocities = self._mover.velocities(seen[None], ages[None], things, said, self._text, chance)
        at = torch.arange(1, count + 1) * (STEPS_S / request.fps)
        steps = self._mover(now, velocities, things, int(at[-1].ceil()))
        found = torch.cat([now, steps[0]])
        before, after = at.floor().long(), at.ceil().long()
        return moved(layout, torch.lerp(found[before], found[after], (at - before).view(-1, 1, 1)))

    def initial(self) -> Tensor:
        """Room for the frames."""
        return self.first.new_zeros(1, 3, len(self._layouts.objects), *self.first.shape[3:])

    def denoise(self, latents: Tensor, index: int, *, negative: bool = False) -> Tensor:
        """Nothing is noisy."""
        raise NotImplementedError

    @torch.inference_mode()
    def step(self, latents: Tensor, index: int) -> Tensor | None:
        """The clip with the frames of a step."""
        count, steps = latents.shape[2], self.schedule.steps
        made, until = count * index // steps, count * (index + 1) // steps
        latents = latents.clone()
        for first in range(made, until, FRAMES_PER_LATENT):
            some = slice(first, min(first + FRAMES_PER_LATENT, until))
            layouts = Layout(self._layouts.objects[some], self._layouts.view[some])
            drawn = self._refiner.moments(self._scene, layouts, self._text)
            same = torch.exp((drawn - self._same).square().sum(1, keepdim=True) / -(_SAME**2))
            gone = (places_of(layouts) - places_of(self._scene.layout)).abs().amax(-1) > _MOVED_M
            same = same * ~(self._near & gone[..., None, None]).any(1, keepdim=True)
            latents[0, :, some] = (drawn + same * self._missing).clamp(-1, 1).transpose(0, 1)
        self._made = until
        return latents

    @torch.inference_mode()  # while it runs, and not while its caller does: clips may be decoded in turns
    def decode(self, latents: Tensor, chunk: int = 0) -> Iterator[Tensor]:
        """All frames of the clip in pieces, uint8 `[t, height, width, 3]`."""
        for some in (self.first, *latents.split(FRAMES_PER_LATENT, dim=2)):
            yield self._large(some)

    @torch.inference_mode()  # as in `decode`
    def preview(self, latents: Tensor) -> Iterator[Tensor]:
        """The newest frame."""
        newest = latents[:, :, self._made - 1 : self._made] if self._made else self.first[:, :, -1:]
        yield self._large(newest)

    def _large(self, frames: Tensor) -> Tensor:
        large: Tensor = self._autoencoder.enlarge(frames[0].transpose(0, 1))
        return large[:, : self._request.height, : self._request.width]
