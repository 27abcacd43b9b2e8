"""Driving through Microcosm's corridor: frame by frame, each from the last two and from what the driver does.

The first frame is a given one, or the still that the prompt and the seed give; what follows is determined by it, the
prompt and the actions. A drive costs the same per frame however long it is, and is made in chunks of two seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from cosmorama.diffusion.schedule import flow_schedule
from cosmorama.request import ActionDomain, Range, Size
from cosmorama.world.base import Inputs, ReadText, Sampling, World
from cosmorama.world.cosmos3.action import given_actions
from cosmorama.world.microcosm.autoencoder import OUTPUT_SCALE, VideoAutoencoder
from cosmorama.world.microcosm.drive_net import CELL, DriveNet
from cosmorama.world.microcosm.odometry import Pose, plan, step_on
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
_HALF = any(torch.cpu.get_capabilities().get(name, False) for name in ("avx512_bf16", "amx_bf16"))
_STILL_COST = 20.0  # of a still, in frames of a drive


def scaled(actions: Tensor, fps: float) -> Tensor:
    """Actions `[T, 3]` as the network reads them: the way that a frame takes the camera, in parts of the farthest."""
    return actions / _FARTHEST * (FPS / fps)


def _come_to(pose: Pose, action: Tensor) -> Pose:
    """Where an action `[3]`, see `scaled`, takes the camera in a frame."""
    return step_on(pose, (action * _FARTHEST / FPS).tolist())


@dataclass(slots=True)
class Driver:
    """The world in front of one camera.

    Attributes:
        net: What drives.
        text: First state of the prompt, `[1, D]`; zeros for no prompt.
        frames: The last two, `[1, 2, 3, 88, 160]` in [-1, 1]; twice the first one as a drive begins.
        action: What was done between them, `[1, 3]`; see `scaled`.
        pose: Where the camera is.
    """

    net: DriveNet
    text: Tensor
    frames: Tensor
    action: Tensor
    pose: Pose

    @torch.inference_mode()
    def drive(self, action: Tensor) -> Tensor:
        """The frame `[1, 3, 88, 160]` that an action `[1, 3]` leads to."""
        actions = torch.stack([self.action, action], dim=1)
        self.pose = _come_to(self.pose, action[0])
        with torch.autocast("cpu", torch.bfloat16, enabled=_HALF):
            made = next_frame(self.net, self.frames, actions, torch.tensor([self.pose]), self.text)
        self.frames = torch.stack([self.frames[:, 1], made], dim=1)
        self.action = action
        return made


def next_frame(net: DriveNet, frames: Tensor, actions: Tensor, poses: Tensor, text: Tensor) -> Tensor:
    """The next of frames `[B, 2, 3, h, w]`, given actions `[B, 2, 3]`, poses `[B, 3]` to come to, prompts `[B, D]`."""
    made: Tensor = net(*parts(net, frames, actions, poses, text))
    return made.clamp(-1, 1)


def parts(
    net: DriveNet, frames: Tensor, actions: Tensor, poses: Tensor, text: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `net` makes the next frame of: the last one moved, where that is known, a drawn one, its conditions."""
    context, seen = net.context(actions, text), plan(poses, ROWS // CELL, COLUMNS // CELL)
    return (*net.move(frames, actions, seen, context), net.draw(seen, text), frames, actions, seen, context)


class DriveSampling(Sampling):
    """One request to drive. Latents are the frames of a chunk, `[1, 3, n, 88, 160]`; those of a first still its own.

    A step of a chunk makes as many of its frames as belong to it; none are made twice.
    """

    def __init__(self, world: World, net: DriveNet, autoencoder: Autoencoder, inputs: Inputs, read: ReadText) -> None:
        request = inputs.request
        assert isinstance(autoencoder, VideoAutoencoder)
        assert request.action is not None
        self._autoencoder, self._request, self._net = autoencoder, request, net
        self._actions = scaled(given_actions(request.action, DRIVE.width), request.fps)
        self._chunks = [self._actions[at : at + _CHUNK] for at in range(0, len(self._actions), _CHUNK)]
        self._number = 0  # of the chunk
        self._poses: list[Pose] = [(0.0, 0.0, 0.0)]
        for action in self._actions:
            self._poses.append(_come_to(self._poses[-1], action))
        self._text = read(inputs.prompt).states[:, 0].float() if inputs.prompt else torch.zeros(1, self._width)
        self._still: Sampling | None = None
        self._given: Tensor | None = None
        costs = [float(len(chunk)) for chunk in self._chunks]
        if inputs.frames is None:
            height, width = (side * OUTPUT_SCALE for side in (ROWS, COLUMNS))
            alone = replace(request, frames=1, task="text2world", action=None, height=height, width=width)
            self._still = world.begin(replace(inputs, request=alone), read)
            self.schedule, self.guidance_weight = self._still.schedule, self._still.guidance_weight
            costs.insert(0, _STILL_COST)
        else:
            self.schedule = flow_schedule(request.steps)
            small = F.avg_pool2d(inputs.frames[:1].permute(0, 3, 1, 2).float() / 127.5 - 1, request.height // ROWS)
            self._given = small[:, :, None]
            self._before = self._given.expand(-1, -1, 2, -1, -1)
        self.shares = tuple(cost / sum(costs) for cost in costs)

    @property
    def _width(self) -> int:
        return int(self._net.config.text_width)

    @property
    def _stands(self) -> bool:
        """Whether the chunk is the still."""
        return self._still is not None and self._number == 0

    def _chunk(self) -> int:
        return self._number - (self._still is not None)

    def initial(self) -> Tensor:
        """The still's noise, or room for the first frames."""
        return self._still.initial() if self._still is not None else self._room()

    def _room(self) -> Tensor:
        before = self._before
        return before.new_zeros(*before.shape[:2], len(self._chunks[self._chunk()]), *before.shape[3:])

    def denoise(self, latents: Tensor, index: int, *, negative: bool = False) -> Tensor:
        """The still's."""
        assert self._still is not None
        return self._still.denoise(latents, index, negative=negative)

    def step(self, latents: Tensor, index: int) -> Tensor | None:
        """The chunk with the frames of a step."""
        if self._stands:
            assert self._still is not None
            return self._still.step(latents, index)
        count, steps, first = latents.shape[2], self.schedule.steps, self._chunk() * _CHUNK
        made, until = count * index // steps, count * (index + 1) // steps
        frames = [*self._before.unbind(2), *latents[:, :, :made].unbind(2)][-2:]
        last = self._actions[first + made - 1] if first + made else torch.zeros(3)
        driver = Driver(self._net, self._text, torch.stack(frames, dim=1), last[None], self._poses[first + made])
        latents = latents.clone()
        for frame in range(made, until):
            latents[:, :, frame] = driver.drive(self._actions[None, first + frame])
        return latents

    @torch.inference_mode()
    def next_chunk(self, latents: Tensor) -> Tensor:
        """Room for the frames after those of a chunk."""
        if self._stands:
            self._before = self._first(latents).expand(-1, -1, 2, -1, -1)
        else:
            self._before = torch.cat([self._before, latents], dim=2)[:, :, -2:]
        self._number += 1
        return self._room()

    @torch.inference_mode()  # while it runs, and not while its caller does: clips may be decoded in turns
    def decode(self, latents: Tensor, chunk: int = 0) -> Iterator[Tensor]:
        """Frames of a chunk, uint8 `[t, height, width, 3]`; the first chunk has the first frame too."""
        if chunk == 0:
            yield self._shown(self._first(latents))
            if self._still is not None:
                return
        for some in latents.split(_PIECE, dim=2):
            yield self._shown(some)

    def _first(self, latents: Tensor) -> Tensor:
        """The first frame `[1, 3, 1, 88, 160]`, if a still from its latents."""
        if self._given is not None:
            return self._given
        small: Tensor = self._autoencoder.decode_small(latents, ROWS, COLUMNS)[:, :, -1:].clamp(-1, 1)
        return small

    def _shown(self, frames: Tensor) -> Tensor:
        """Small frames `[1, 3, t, 88, 160]` at the size that was asked for, uint8 `[t, height, width, 3]`."""
        height = self._request.height
        large: Tensor = self._autoencoder.enlarge(frames[0].transpose(0, 1))
        if large.shape[1] > height:  # in integers: the mean of strided floats takes six times as long
            large = large.to(torch.int16)
            large = large[:, 0::2] + large[:, 1::2]
            large = ((large[:, :, 0::2] + large[:, :, 1::2] + 2) >> 2).to(torch.uint8)
        return large
