"""Does a drive go where it is steered, and is it still a corridor after a minute? `evaluate --only drive`.

How the camera moves is read off the optical flow of every two frames: the forward speed, turn and sidestep that explain
it best, given how far away the walls and the floor are.
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
from cosmorama.world.microcosm.odometry import FOV_DEG, distances
from microcosm.evaluation.corridor_probe import ANSWERS, CorridorProbe, classes
from microcosm.evaluation.figures import Figure
from microcosm.scenes.dataset import SPLITS
from microcosm.scenes.shots import caption_of
from microcosm.scenes.simulate import Frames, box_average
from microcosm.scenes.steered import Steered, draw_steered
from microcosm.training.autoencoder import to_uint8

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
    wanted = np.concatenate([one.actions for one in held])
    figures = []
    for index, name in enumerate(("speed", "turn")):
        bounds = {"real frames": _correlation(theirs[:, index], wanted[:, index])}
        bounds["the next drive's actions"] = _correlation(
            ours[:, index], np.roll(wanted[:, index], len(held[0].actions))
        )
        value = _correlation(ours[:, index], wanted[:, index])
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
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]
    grey = [cv2.equalizeHist(cv2.resize(one, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)) for one in grey]
    finder: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    finder.setFinestScale(1)
    rows, columns = grey[0].shape
    away = distances(torch.tensor(steered.poses), rows, columns).double().numpy()
    found = [
        _motion(finder.calc(*pair, None), near, pair[0]) for pair, near in zip(pairwise(grey), 1 / away, strict=False)
    ]
    return np.stack(found) * FPS


def _motion(flow: NDArray[Any], near: NDArray[np.float64], grey: NDArray[Any]) -> NDArray[np.float64]:
    """The motion (forward, m, turn, rad, left, m) that is nearest to an optical flow [h, w, 2], in pixels."""
    rows, columns = near.shape
    focal = rows / 2 / np.tan(np.radians(FOV_DEG / 2))
    down, right = np.meshgrid(*((np.arange(n) - (n - 1) / 2) / focal for n in (rows, columns)), indexing="ij")
    across = np.stack([right * near, 1 + right**2, near], axis=-1)
    along = np.stack([down * near, right * down, 0 * near], axis=-1)
    known = focal * np.concatenate([across.reshape(-1, 3), along.reshape(-1, 3)])
    seen = np.concatenate([flow[..., 0].ravel(), flow[..., 1].ravel()])
    steep = np.hypot(*np.gradient(cv2.GaussianBlur(grey, (0, 0), 1).astype(float))).ravel()
    weights = first = np.tile(np.minimum(steep, 20), 2) + 1e-3  # nothing is known of what has no edges
    motion = np.zeros(3)
    for _ in range(8):
        motion = np.linalg.solve((known.T * weights) @ known + 1e-3 * np.eye(3), (known.T * weights) @ seen)
        weights = first / (1 + np.square(seen - known @ motion))  # less of what moves otherwise
    return motion


def _correlation(ours: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.corrcoef(ours, wanted)[0, 1])
