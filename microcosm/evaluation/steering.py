"""Does a drive go where it is steered, and is it still a corridor after a minute? `evaluate --only drive`.

How the camera moves is read off every two frames: the forward speed, turn and sidestep that turn the one into the
other, given how far away the simulator has everything there.
"""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cosmorama.engine.prepare import PreparedRequest, Preparer
from cosmorama.engine.rollout import Rollout
from cosmorama.request import Action, GenerationRequest
from cosmorama.resolve import resolve
from cosmorama.world.base import World
from cosmorama.world.microcosm.driving import DRIVE, FPS
from cosmorama.world.microcosm.loader import load_microcosm
from cosmorama.world.microcosm.odometry import FOV_DEG, HAZE_M
from microcosm.evaluation.figures import Figure
from microcosm.evaluation.probe import ANSWERS, CorridorProbe, classes
from microcosm.scenes.corridor import render_depths
from microcosm.scenes.dataset import SPLITS
from microcosm.scenes.shots import caption_of
from microcosm.scenes.simulate import Frames, box_average
from microcosm.scenes.steered import Steered, draw_steered
from microcosm.training.autoencoder import to_uint8

_BLURS_PX = (8, 4, 2, 1)
_USUAL = np.array([accepted.high for accepted in DRIVE.ranges]) / FPS  # motions in a frame's time
_DOUBT = 10.0  # grey levels: the error of one pixel that weighs as much as a usual motion does against none
_FLAT_M = 0.03  # above the floor
MINUTE = 60 * FPS + 1
_FIRST_SEED = SPLITS["heldout"].first_seed + 100_000


def measure(
    weights: Path, probe: CorridorProbe, clips: int, long: int
) -> tuple[list[Figure], list[tuple[Frames, Frames]], list[Frames]]:
    """The figures, pairs of real and generated drives, and where the long ones end."""
    world = load_microcosm(weights)
    held = [draw_steered(_FIRST_SEED + number) for number in range(clips)]
    began = time.perf_counter()
    drawn = [drive(world, one, one.frames()[0]) for one in held]
    spent_s = time.perf_counter() - began
    real = [one.frames() for one in held]
    ours, theirs = (np.concatenate(list(map(motions, clips, held))) for clips in (drawn, real))
    wanted = np.concatenate([one.motions for one in held])  # as far as there was room
    figures = []
    for index, name in enumerate(("speed", "turn")):
        made, real_ones, asked = (_smooth(some[:, index], clips) for some in (ours, theirs, wanted))
        bounds = {"real frames": _correlation(real_ones, asked)}
        bounds["the next drive's actions"] = _correlation(made, np.roll(asked, len(held[0].actions)))
        value = _correlation(made, asked)
        note = f"{len(held)} drives of {len(held[0].poses)} frames"
        figures.append(Figure(f"drive: {name} against the actions", value, 0.85, 0.95, "", bounds=bounds, note=note))
    minutes = [draw_steered(_FIRST_SEED + 500 + number, MINUTE, calm=True) for number in range(long)]
    ends = np.stack([drive(world, one, None, last=True)[0] for one in minutes])
    right = torch.tensor([classes(one.scene) for one in minutes])
    seen, real_seen = (
        100 * (probe.look(frames) == right).float().mean(0)
        for frames in (ends, np.stack([one.frames(slice(-1, None))[0] for one in minutes]))
    )
    for index, name in enumerate(ANSWERS):
        if name in ("shelves", "boxes", "floor"):
            bounds = {"real frames": float(real_seen[index])}
            figure = f"drive: {name} after a minute"
            figures.append(Figure(figure, float(seen[index]), 90, 98, "%", bounds=bounds, note=f"{long} from text"))
    video_s = sum(len(one.actions) for one in held) / FPS
    cost = Figure("drive: seconds per second, 640x352", spent_s / video_s, 1.0, 0.5, "s", at_most=True)
    return [*figures, cost], list(zip(real, drawn, strict=True)), list(ends)


def drive(world: World, steered: Steered, given: Frames | None, *, last: bool = False) -> Frames:
    """A drive as the product makes it, uint8 [T, 88, 160, 3], or its last frame alone, [1, 88, 160, 3].

    It begins with a given frame [88, 160, 3], or with what its caption shows.
    """
    rows = tuple(tuple(map(float, row)) for row in steered.actions)
    action = Action(DRIVE.id, rows, steps=len(rows))
    image = None if given is None else b""
    request = GenerationRequest(
        prompt=caption_of(steered.scene), image=image, seed=steered.seed, action=action, width=640, height=352
    )
    resolved = resolve(request, world.capabilities)
    if given is None:
        prepared = Preparer()(resolved, world.capabilities)
    else:
        prepared = PreparedRequest(resolved, resolved.prompt or "", given[None].repeat(4, axis=1).repeat(4, axis=2))
    rollout = Rollout(world, prepared)
    while not rollout.done:
        rollout.advance()
    if last:
        return np.ascontiguousarray(to_uint8(rollout.latents[:, :, -1:])[0])
    return np.stack([box_average(frame, 4) for frames in rollout.decode() for frame in frames])


def motions(clip: Frames, steered: Steered) -> NDArray[np.float64]:
    """Of every two frames of a clip [T, h, w, 3]: forward speed, m/s, turn, rad/s, and speed to the left, m/s."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) for frame in clip]
    far = render_depths(steered.drive, steered.poses).astype(float)
    eye_m, pitch = map(float, steered.views[0, 3:])
    found = [_motion(*pair, one, eye_m, pitch) for pair, one in zip(pairwise(grey), far, strict=False)]
    return np.stack(found) * FPS


def _motion(
    before: NDArray[Any], after: NDArray[Any], far: NDArray[np.float64], eye_m: float, pitch: float
) -> NDArray[np.float64]:
    """The motion (forward, m, turn, rad, left, m) that turns a grey frame [h, w] into the next, from coarse to fine.

    Args:
        before, after: The frames.
        far: How far ahead of the camera each pixel of the first is, m.
        eye_m: How high the camera is.
        pitch: How far up the camera looks, rad.
    """
    rows, columns = far.shape
    focal = rows / 2 / np.tan(np.radians(FOV_DEG / 2))
    down, right = np.meshgrid(*((np.arange(n) - (n - 1) / 2) / focal for n in (rows, columns)), indexing="ij")
    level, rise = far * (np.cos(pitch) + down * np.sin(pitch)), far * (np.sin(pitch) - down * np.cos(pitch))

    # Sky and floor have no pattern. Their shades are the haze's, which stay where they are in the picture.
    tells = (far < HAZE_M[1]) & (rise > _FLAT_M - eye_m)

    def seen_after(motion: NDArray[np.float64]) -> NDArray[np.float64]:
        """The rows and columns at which each pixel of the first frame is in the next."""
        forward, turn, left = motion
        ahead, aside = _turned(level, far * right, turn / 2)
        ahead, aside = _turned(ahead - forward, aside + left, turn / 2)
        depth = np.maximum(ahead * np.cos(pitch) + rise * np.sin(pitch), 0.05)
        below = (ahead * np.sin(pitch) - rise * np.cos(pitch)) / depth
        return np.stack([below * focal + (rows - 1) / 2, aside / depth * focal + (columns - 1) / 2])

    motion, doubt = np.zeros(3), np.diag(np.square(_DOUBT / _USUAL))
    for blur in _BLURS_PX:
        first, second = (cv2.GaussianBlur(frame, (0, 0), blur) for frame in (before, after))
        for _ in range(8):
            at = seen_after(motion)
            moves = np.stack([(seen_after(motion + step) - at) / 1e-4 for step in 1e-4 * np.eye(3)], axis=-1)
            to_below, to_right = at.astype(np.float32)
            there = cv2.remap(second, to_right, to_below, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            inside = tells & (to_right >= 0) & (to_right < columns - 1) & (to_below >= 0) & (to_below < rows - 1)
            steep = np.stack(
                [
                    cv2.remap(some.astype(np.float32), to_right, to_below, cv2.INTER_LINEAR)
                    for some in np.gradient(second)
                ]
            )
            known = (steep[..., None] * moves).sum(0)[inside]
            off = (first - there)[inside]
            weights = 1 / (1 + np.square(off / (1.5 * np.median(np.abs(off)) + 0.01)))  # less of what moves otherwise
            steps = np.linalg.solve((known.T * weights) @ known + doubt, (known.T * weights) @ off - doubt @ motion)
            motion += steps
    return motion


def _turned(ahead: NDArray[Any], aside: NDArray[Any], turn: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Points as somebody sees them who turned to the left."""
    return ahead * np.cos(turn) - aside * np.sin(turn), aside * np.cos(turn) + ahead * np.sin(turn)


def _smooth(motions: NDArray[Any], clips: int) -> NDArray[Any]:
    """Means over a quarter of a second, of clips one after another."""
    return np.concatenate([np.convolve(part, np.ones(3) / 3, "same") for part in np.array_split(motions, clips)])


def _correlation(ours: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.corrcoef(ours, wanted)[0, 1])
