"""The corridor with somebody at the wheel: a forward speed, a turn and a sidestep for every frame of a drive.

The shelves and what is ahead stop the camera. A `Steered` drive is a pure function of its seed and length; all are at
12 frames a second, and other rates are the same drives at other speeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosmorama.text.language import Corridor
from cosmorama.world.microcosm.corridor_map import RANGES, SLOTS
from cosmorama.world.microcosm.driving import DRIVE, FPS
from cosmorama.world.microcosm.odometry import BAY_M, Pose, step_on
from microcosm.scenes.corridor import (
    Drive,
    bays_between,
    draw_boxes,
    draw_corridor,
    render_poses,
)
from microcosm.scenes.simulate import SIZES, Frames, pick

FRAMES = 49
Actions = NDArray[np.float32]
"""[T - 1, 3], what leads from each frame to the next: forward, m/s, turn to the left, rad/s, step to the left, m/s."""
LIMITS = tuple((accepted.low, accepted.high) for accepted in DRIVE.ranges)
_AROUND_M = 1.0  # that the camera comes to the middle of what is ahead
_BEHIND_M = 10.0


@dataclass(frozen=True)
class Steered:
    """A corridor and a way through it: poses [T], and the actions [T - 1] that led there as far as there was room."""

    drive: Drive
    actions: Actions
    poses: tuple[Pose, ...]

    @property
    def seed(self) -> int:
        """What it follows from."""
        return self.drive.seed

    @property
    def scene(self) -> Corridor:
        """What is seen."""
        return self.drive.scene

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height."""
        return self.drive.size_px

    @property
    def fps(self) -> int:
        """Frames per second."""
        return self.drive.fps

    @property
    def views(self) -> NDArray[np.float32]:
        """Where each frame is seen from, [T, 5]; see `odometry`."""
        mounted = (self.drive.eye_m[1], math.radians(self.drive.pitch_deg))
        return np.array([(*pose, *mounted) for pose in self.poses], np.float32)

    @property
    def motions(self) -> Actions:
        """How the camera really moves, [T - 1, 3], like `actions`: less where something stops it."""
        x, y, yaw = np.array(self.poses).T
        along, across, turn = np.diff(y), -np.diff(x), np.diff(yaw)
        heading = yaw[:-1] + turn / 2
        forward = along * np.cos(heading) + across * np.sin(heading)
        left = across * np.cos(heading) - along * np.sin(heading)
        return np.stack([forward, turn, left], axis=1).astype(np.float32) * self.fps

    @property
    def ahead(self) -> tuple[float, float, float]:
        """What stands in the way, for a `CorridorMap`."""
        there = self.scene.ahead is not None
        return float(there), there * self.drive.eye_m[0], there * self.drive.ahead_m

    def boxes(self, first: int, bays: int) -> NDArray[np.float32]:
        """The boxes in so many bays from the first, for a `CorridorMap`."""
        table = np.tile(RANGES.mean(1).numpy(), (bays, 2, 2, 2, 1))
        table[..., 0] = 0
        for box in self.drive.boxes:
            x, y, z = box.center_m
            bay = math.floor(y / BAY_M)
            if first <= bay < first + bays:
                slot = int(y / BAY_M - bay >= 0.5)
                off = y - (bay + SLOTS[slot]) * BAY_M
                table[bay - first, int(x > 0), int(z > 1.2), slot] = 1, off, box.half_m[1], 2 * box.half_m[2], box.shade
        return table

    def frames(self, which: slice = slice(None), scale: int = 1) -> Frames:
        """Frames of it; see `simulate.render`."""
        return render_poses(self.drive, self.poses[which], scale=scale)


def draw_steered(seed: int, frames: int = FRAMES, *, calm: bool | None = None) -> Steered:
    """The drive of a seed; a calm one keeps near the corridor's direction, others turn anywhere."""
    rng = np.random.default_rng((seed, 6))
    scene = draw_corridor(rng)
    calm = bool(rng.random() < 0.6) if calm is None else calm
    place = (rng.uniform(-0.7, 0.7), rng.uniform(2.0, 8.0)) if scene.ahead else None
    start = (rng.uniform(-0.3, 0.3), 0.0, rng.normal(0, 0.06))
    if rng.random() < 0.4:
        start = (rng.uniform(-1, 1), 0.0, rng.normal(0, 0.3) if calm else rng.uniform(-math.pi, math.pi))
    actions, poses = _steer(rng, start, frames, place, calm=calm)
    ways = [pose[1] for pose in poses]
    bays = bays_between(min(ways), max(ways), _BEHIND_M)
    drive = Drive(
        seed=seed,
        scene=scene,
        size_px=SIZES[0],
        fps=FPS,
        bays=bays,
        boxes=tuple(draw_boxes(rng, bays)),
        speed_m_s=0.0,
        ahead_m=place[1] if place else 0.0,
        eye_m=(place[0] if place else 0.0, rng.uniform(1.15, 1.4)),
        yaw_deg=0.0,
        pitch_deg=rng.uniform(-7, -3),
    )
    return Steered(drive, actions, poses)


def _steer(
    rng: np.random.Generator, pose: Pose, frames: int, place: tuple[float, float] | None, *, calm: bool
) -> tuple[Actions, tuple[Pose, ...]]:
    """A random driver's actions, held for a third of a second to two and more or less abrupt, and where they lead."""
    poses, actions = [pose], []
    action, wanted, lag, until = np.zeros(3), np.zeros(3), 0.0, 0
    for step in range(frames - 1):
        x, _, yaw = poses[-1]
        if step == until:
            wanted, lag = _wish(rng), pick(rng, (0.0, 0.5, 0.8))
            until += int(rng.integers(4, 24))
            if rng.random() < 0.3:
                action = wanted
        aim = wanted
        if calm:
            off = math.remainder(yaw, math.pi)  # of the corridor's direction, this way or that
            aim = wanted * (1, 0.8, 1) - (0, 0.8 * off, 0.3 * x * -math.copysign(1, math.cos(yaw)))
        action = lag * action + (1 - lag) * aim
        action = np.clip(action, *np.transpose(LIMITS))
        actions.append(action)
        poses.append(step_on(_blocked(step_on(poses[-1], tuple(action / FPS)), place), (0, 0, 0)))
    return np.array(actions, np.float32), tuple(poses)


def _wish(rng: np.random.Generator) -> NDArray[np.float64]:
    forward = pick(rng, (0.0, rng.uniform(-0.5, 0), rng.uniform(0.2, 1.5)), (0.12, 0.1, 0.78))
    turn = pick(rng, (0.0, rng.uniform(-1, 1)), (0.35, 0.65))
    return np.array([forward, turn, pick(rng, (0.0, rng.uniform(-0.5, 0.5)), (0.55, 0.45))])


def _blocked(pose: Pose, place: tuple[float, float] | None) -> Pose:
    """The pose beside what stands at a place."""
    x, y, yaw = pose
    if place is not None and (distance := math.dist((x, y), place)) < _AROUND_M:
        x, y = (at + (now - at) * _AROUND_M / max(distance, 1e-6) for at, now in zip(place, (x, y), strict=True))
    return x, y, yaw
