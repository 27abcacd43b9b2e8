"""Driving through Microcosm's corridor: frame by frame, each from the last two and from what the driver does.

The first frame is a given one, of which is read where it was taken and what it shows, or one that is drawn. What
stands elsewhere follows from the seed, and all that is seen from the prompt, the map and the actions. A drive costs the
same per frame however long it is, and is made in chunks of two seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from cosmorama.diffusion.schedule import flow_schedule
from cosmorama.request import ActionDomain, Range, ResolvedRequest, Size
from cosmorama.text.gist import corridor_in
from cosmorama.text.reader import NamedObject
from cosmorama.world.base import Inputs, ReadText, Relayed, Sampling
from cosmorama.world.cosmos3.forward import given_actions
from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from cosmorama.world.microcosm.corridor_map import REACH, CorridorMap, kind_of, plan, random_boxes
from cosmorama.world.microcosm.drive_net import CELL, DriveNet
from cosmorama.world.microcosm.finder import Finder, found
from cosmorama.world.microcosm.odometry import BAY_M, MOUNTED, SPEED_M_S, STOP_M, step_on
from cosmorama.world.vae.tiles import Autoencoder

FPS = 12
"""Frames per second of what was learned from; at other rates an action takes the camera less far."""
DRIVE = ActionDomain(
    100,
    "drive",
    3,
    numbers=("forward, m/s", "turn to the left, rad/s", "step to the left, m/s"),
    ranges=(Range(-0.5, 1.5), Range(-1, 1), Range(-0.5, 0.5)),
    fps=FPS,
    sizes=(Size(1280, 704), Size(640, 352)),
    longest=2881,
)
ROWS, COLUMNS = 88, 160
_FARTHEST = torch.tensor([accepted.high for accepted in DRIVE.ranges])
_CHUNK, _PIECE = 24, 8  # frames that are made, and that are decoded, at once
_STILL_SHARE = 0.25  # of the work for a clip from text
_HALF = any(torch.cpu.get_capabilities().get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def scaled(actions: Tensor, fps: float) -> Tensor:
    """Actions `[T, 3]` as the network reads them: the way that a frame takes the camera, in parts of the farthest."""
    return actions / _FARTHEST * (FPS / fps)


def _come_to(view: Tensor, action: Tensor) -> Tensor:
    """The view `[5]`, see `odometry`, that an action `[3]`, see `scaled`, leads to in a frame."""
    x, y, yaw = view[:3].tolist()
    return torch.tensor([*step_on((x, y, yaw), (action * _FARTHEST / FPS).tolist()), *view[3:]])


@dataclass(slots=True)
class Driver:
    """The world in front of one camera.

    Attributes:
        net: What drives.
        text: First state of the prompt, `[1, D]`; zeros for no prompt.
        frames: The last two, `[1, 2, 3, 88, 160]` in [-1, 1]; twice the first one as a drive begins.
        action: What was done between them, `[1, 3]`; see `scaled`.
        view: Where the camera is, `[5]`; see `odometry`.
        corridor: What is where.
    """

    net: DriveNet
    text: Tensor
    frames: Tensor
    action: Tensor
    view: Tensor
    corridor: CorridorMap

    @torch.inference_mode()
    def drive(self, action: Tensor) -> Tensor:
        """The frame `[1, 3, 88, 160]` that an action `[1, 3]` leads to."""
        actions = torch.stack([self.action, action], dim=1)
        self.view = _come_to(self.view, action[0])
        with torch.autocast("cpu", torch.bfloat16, enabled=_HALF):
            made = next_frame(self.net, self.frames, actions, seen(self.view[None], self.corridor), self.text)
        self.frames = torch.stack([self.frames[:, 1], made], dim=1)
        self.action = action
        return made


def seen(views: Tensor, corridor: CorridorMap) -> Tensor:
    """What of maps is seen from views `[B, 5]`, in the network's cells; see `plan`."""
    return plan(views, corridor, ROWS // CELL, COLUMNS // CELL)


def next_frame(net: DriveNet, frames: Tensor, actions: Tensor, plans: Tensor, text: Tensor) -> Tensor:
    """The next of frames `[B, 2, 3, h, w]`, given actions `[B, 2, 3]`, what is to be `seen`, and prompts `[B, D]`."""
    made: Tensor = net(*parts(net, frames, actions, plans, text))
    return made.clamp(-1, 1)


def parts(
    net: DriveNet, frames: Tensor, actions: Tensor, plans: Tensor, text: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `net` makes the next frame of: the last one moved, where that is known, a drawn one, its conditions."""
    context = net.context(actions, text)
    return (*net.move(frames, actions, plans, context), net.draw(plans, text), frames, actions, plans, context)


def imagined(prompt: str, seed: int) -> tuple[Tensor, CorridorMap]:
    """Where a drive from a prompt begins, `[5]`, and its map: by the prompt what is ahead, all else by the seed."""
    generator = torch.Generator().manual_seed(seed)
    x, y, yaw, aside, ahead = (torch.rand(5, generator=generator) * 2 - 1).tolist()
    thing = _ahead(prompt)
    place = torch.tensor([[1.0, 0.4 * aside, 5 + 1.5 * ahead]]) * (thing is not None)
    view = torch.tensor([0.2 * x, BAY_M / 2 * y, 0.04 * yaw, *MOUNTED])
    return view, CorridorMap(random_boxes(seed)[None], torch.tensor([REACH[0]]), place, kind_of(thing)[None])


def _ahead(prompt: str) -> NamedObject | None:
    """What a prompt says that stands in the way."""
    said = corridor_in(prompt)
    return None if said is None else said.ahead


@torch.inference_mode()
def start(driver: tuple[DriveNet, Finder], inputs: Inputs, read: ReadText) -> Driver:
    """A drive at its first frame: the first of the conditioning frames, or the prompt's corridor."""
    net, finder = driver
    prompt, seed, frames = inputs.prompt, inputs.request.seed, inputs.frames
    assert seed is not None
    text = read(prompt).states[:, 0].float() if prompt else torch.zeros(1, net.config.text_width)
    if frames is None:
        return _drawn(net, text, *imagined(prompt, seed))
    pixels = frames[:1].permute(0, 3, 1, 2).float() / 127.5 - 1
    first = F.avg_pool2d(pixels, pixels.shape[2] // ROWS)
    return _from(net, text, first, *found(finder, first, kind_of(_ahead(prompt)), seed))


def _drawn(net: DriveNet, text: Tensor, view: Tensor, corridor: CorridorMap) -> Driver:
    """A drive that begins with a frame of its own."""
    with torch.autocast("cpu", torch.bfloat16, enabled=_HALF):
        first = net.draw(seen(view[None], corridor), text).clamp(-1, 1)
    return _from(net, text, first, view, corridor)


def _from(net: DriveNet, text: Tensor, first: Tensor, view: Tensor, corridor: CorridorMap) -> Driver:
    return Driver(net, text, first[:, None].expand(-1, 2, -1, -1, -1), torch.zeros(1, 3), view, corridor)


def steered(driver: tuple[DriveNet, Finder], autoencoder: Autoencoder, inputs: Inputs, read: ReadText) -> DriveSampling:
    """A request to drive by its actions."""
    request = inputs.request
    assert request.action is not None
    actions = scaled(given_actions(request.action, DRIVE.width), request.fps)
    return DriveSampling(start(driver, inputs, read), actions, request, autoencoder)


def along(frames: int, fps: float, speed_m_s: float, room_m: float) -> Tensor:
    """Actions `[frames - 1, 3]`, see `scaled`, that drive straight on and stop after `room_m`."""
    ways = (torch.arange(frames) * speed_m_s / fps).clamp(max=max(room_m, 0.0)).diff()
    return scaled(F.pad(fps * ways[:, None], (0, DRIVE.width - 1)), fps)


class StillSampling(Sampling):
    """What samples a still."""

    def shown(self, latents: Tensor) -> Iterator[Tensor]:
        """Small frames of clean latents, [t, 3, h, w] in [-1, 1]."""
        raise NotImplementedError


class CorridorSampling(Relayed):
    """Text to the corridor. A still is sampled, and read off it is where in which corridor it was taken; what stands in
    the way there the prompt says. That is drawn, and for a clip driven through as fast as the prompt says.
    """

    def __init__(
        self,
        still: StillSampling,
        driver: tuple[DriveNet, Finder],
        autoencoder: Autoencoder,
        inputs: Inputs,
        read: ReadText,
    ) -> None:
        assert isinstance(autoencoder, VideoAutoencoder)
        self.inner = self._still = still
        self.schedule, self.guidance_weight = still.schedule, still.guidance_weight
        self._driver, self._autoencoder, self._inputs, self._read = driver, autoencoder, inputs, read
        self._drive: DriveSampling | None = None
        following = _shares(inputs.request.frames - 1)
        self.shares = (_STILL_SHARE, *((1 - _STILL_SHARE) * share for share in following)) if following else (1.0,)

    def _start(self, latents: Tensor) -> Driver:
        """Where the sampled still was taken, drawn."""
        request, prompt = self._inputs.request, self._inputs.prompt
        (net, finder), said = self._driver, corridor_in(prompt)
        assert request.seed is not None
        assert said is not None  # it is what makes this one of the corridor
        still = next(self._still.shown(latents)).float()
        view, corridor = found(finder, still, kind_of(said.ahead), request.seed)
        if bool(corridor.ahead[0, 0]) != (said.ahead is not None):  # the prompt knows better
            place = imagined(prompt, request.seed)[1].ahead
            corridor = replace(corridor, ahead=place + torch.tensor([0, 0, float(view[1])]) * place[:, :1])
        return _drawn(net, self._read(prompt).states[:, 0].float(), view, corridor)

    @torch.inference_mode()
    def next_chunk(self, latents: Tensor) -> Tensor:
        """Begin to drive, or go on."""
        if self._drive is not None:
            return self._drive.next_chunk(latents)
        request, said = self._inputs.request, corridor_in(self._inputs.prompt)
        assert request.seed is not None
        assert said is not None
        start = self._start(latents)
        chance = float(torch.rand((), generator=torch.Generator().manual_seed(request.seed)))
        low, high = SPEED_M_S[said.speed or "slow"]
        there, _, north = start.corridor.ahead[0].tolist()
        room = north - float(start.view[1]) - STOP_M if there else math.inf
        actions = along(request.frames, request.fps, low + (high - low) * chance, room)
        self.inner = self._drive = DriveSampling(start, actions, request, self._autoencoder)
        self.schedule, self.guidance_weight = self._drive.schedule, 1.0
        return self._drive.initial()

    @property
    def first(self) -> Tensor:
        """See `DriveSampling`."""
        assert self._drive is not None
        return self._drive.first

    @torch.inference_mode()  # while it runs, and not while its caller does: clips may be decoded in turns
    def decode(self, latents: Tensor, chunk: int = 0) -> Iterator[Tensor]:
        """The still as drawn, or the frames of the drive that it is the first of."""
        if len(self.shares) == 1:
            yield _enlarged(self._start(latents).frames[0, :1], self._autoencoder, self._inputs.request.height)
        elif self._drive is not None and chunk > 0:
            yield from self._drive.decode(latents, chunk - 1)


def _shares(frames: int) -> tuple[float, ...]:
    """Which part of all the work each chunk is."""
    return tuple(min(_CHUNK, frames - start) / frames for start in range(0, frames, _CHUNK))


class DriveSampling(Sampling):
    """A drive by actions `[T, 3]`, see `scaled`. Latents are the frames of a chunk, `[1, 3, n, 88, 160]`.

    A step of a chunk makes as many of its frames as belong to it; none are made twice.
    """

    draws = True

    def __init__(self, start: Driver, actions: Tensor, request: ResolvedRequest, autoencoder: Autoencoder) -> None:
        assert isinstance(autoencoder, VideoAutoencoder)
        self._autoencoder, self._request = autoencoder, request
        self.schedule = flow_schedule(request.steps)
        self._start, self._actions = start, actions
        self._before = self._start.frames.transpose(1, 2)
        self._views = [self._start.view]
        for action in self._actions:
            self._views.append(_come_to(self._views[-1], action))
        self._chunks = self._actions.split(_CHUNK)
        self._number, self._made = 0, 0  # of the chunk; frames of it that are made
        self.shares = _shares(len(self._actions))

    @property
    def first(self) -> Tensor:
        """The frame that the drive begins with, `[1, 3, 1, 88, 160]`."""
        return self._start.frames[:, :1].transpose(1, 2)

    def initial(self) -> Tensor:
        """Room for the first frames."""
        before = self._before
        return before.new_zeros(*before.shape[:2], len(self._chunks[self._number]), *before.shape[3:])

    def denoise(self, latents: Tensor, index: int, *, negative: bool = False) -> Tensor:
        """Nothing is noisy."""
        raise NotImplementedError

    def step(self, latents: Tensor, index: int) -> Tensor | None:
        """The chunk with the frames of a step."""
        count, steps, first = latents.shape[2], self.schedule.steps, self._number * _CHUNK
        made, until = count * index // steps, count * (index + 1) // steps
        frames = [*self._before.unbind(2), *latents[:, :, :made].unbind(2)][-2:]
        last = self._actions[first + made - 1] if first + made else torch.zeros(3)
        view = self._views[first + made]
        driver = replace(self._start, frames=torch.stack(frames, dim=1), action=last[None], view=view)
        latents = latents.clone()
        for frame in range(made, until):
            latents[:, :, frame] = driver.drive(self._actions[None, first + frame])
        self._made = until
        return latents

    @torch.inference_mode()
    def next_chunk(self, latents: Tensor) -> Tensor:
        """Room for the frames after those of a chunk."""
        self._before = torch.cat([self._before, latents], dim=2)[:, :, -2:]
        self._number += 1
        return self.initial()

    @torch.inference_mode()  # while it runs, and not while its caller does: clips may be decoded in turns
    def decode(self, latents: Tensor, chunk: int = 0) -> Iterator[Tensor]:
        """Frames of a chunk, uint8 `[t, height, width, 3]`; the first chunk has the first frame too."""
        if chunk == 0:
            yield self._shown(self.first)
        for some in latents.split(_PIECE, dim=2):
            yield self._shown(some)

    @torch.inference_mode()  # as in `decode`
    def preview(self, latents: Tensor) -> Iterator[Tensor]:
        """The newest frame."""
        newest = torch.cat([self._before, latents], dim=2)[:, :, self._before.shape[2] + self._made - 1]
        yield self._shown(newest[:, :, None])

    def _shown(self, frames: Tensor) -> Tensor:
        return _enlarged(frames[0].transpose(0, 1), self._autoencoder, self._request.height)


def _enlarged(frames: Tensor, autoencoder: VideoAutoencoder, height: int) -> Tensor:
    """Small frames `[t, 3, 88, 160]` at the height that was asked for, uint8 `[t, height, width, 3]`."""
    large: Tensor = autoencoder.enlarge(frames)
    if large.shape[1] > height:  # in integers: the mean of strided floats takes six times as long
        large = large.to(torch.int16)
        large = large[:, 0::2] + large[:, 1::2]
        large = ((large[:, :, 0::2] + large[:, :, 1::2] + 2) >> 2).to(torch.uint8)
    return large
