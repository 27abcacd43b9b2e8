"""The second world: a camera drives forward through a corridor of shelves and boxes, sometimes towards an object.

A `Drive` is a pure function of its seed. Lengths are metres, times seconds; the corridor runs along +y. What is far
fades into haze: at one eighth of the output size it would be noise.
"""

from __future__ import annotations

import atexit
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosmorama.text.language import COLORS, FLOORS, LIGHTS, SHAPES, SPEEDS, Corridor, Light, SceneObject
from cosmorama.world.microcosm.odometry import (
    BAY_M,
    FOV_DEG,
    HALF_WIDTH_M,
    HAZE_M,
    SPEED_M_S,
    STOP_M,
    TOP_M,
    Pose,
)
from microcosm.scenes.simulate import (
    FLOOR_RGB,
    FRAME_RATES,
    OBJECT_RGB,
    RATE_WEIGHTS,
    RGB,
    SIZE_WEIGHTS,
    SIZES,
    Film,
    Frames,
    geometry,
    numbers,
    pick,
)

AHEAD_SHARE = 0.5
HAZE_RGB: dict[Light, RGB] = {"bright": (0.92, 0.93, 0.95), "dim": (0.1, 0.1, 0.14)}
_LONGEST_S = 10.0  # 121 frames at 12 per second
_DEPTH_M = 0.9
_LEVELS_M = (0.1, 1.35)
_BOX_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Box:
    """A box on a shelf: its center, half its extent, and how light it is beside others of its color."""

    center_m: tuple[float, float, float]
    half_m: tuple[float, float, float]
    shade: float


@dataclass(frozen=True, slots=True)
class Drive:
    """A corridor with all its numbers drawn."""

    seed: int
    scene: Corridor
    size_px: tuple[int, int]
    fps: int
    bays: range
    boxes: tuple[Box, ...]
    speed_m_s: float
    ahead_m: float
    eye_m: tuple[float, float]
    yaw_deg: float
    pitch_deg: float

    def pose(self, time_s: float) -> Pose:
        """Where the camera is."""
        return self.eye_m[0], self.camera_y_m(time_s), math.radians(self.yaw_deg)

    def camera_y_m(self, time_s: float) -> float:
        """How far the camera has driven; it stops in front of what is ahead."""
        way = self.speed_m_s * time_s
        return way if self.scene.ahead is None else min(way, self.ahead_m - STOP_M)


def draw_corridor(rng: np.random.Generator) -> Corridor:
    """A random corridor; shelves, boxes and what is ahead are of different colors."""
    shelves, boxes, other = (COLORS[i] for i in rng.permutation(len(COLORS))[:3])
    ahead = SceneObject(other, pick(rng, SHAPES)) if rng.random() < AHEAD_SHARE else None
    return Corridor(shelves, boxes, pick(rng, FLOORS), pick(rng, LIGHTS, (0.65, 0.35)), pick(rng, SPEEDS), ahead)


def draw_drive(seed: int) -> Drive:
    """The drive of a seed."""
    rng = np.random.default_rng((seed, 5))
    scene = draw_corridor(rng)
    size, fps = pick(rng, SIZES, SIZE_WEIGHTS), pick(rng, FRAME_RATES, RATE_WEIGHTS)
    speed = rng.uniform(*SPEED_M_S[scene.speed])
    bays = bays_between(0, speed * _LONGEST_S)
    return Drive(
        seed=seed,
        scene=scene,
        size_px=size,
        fps=fps,
        bays=bays,
        boxes=tuple(draw_boxes(rng, bays)),
        speed_m_s=speed,
        ahead_m=5 * speed + rng.uniform(1.7, 2.7),
        eye_m=(rng.uniform(-0.25, 0.25), rng.uniform(1.15, 1.4)),
        yaw_deg=rng.uniform(-2.5, 2.5),
        pitch_deg=rng.uniform(-7, -3),
    )


def bays_between(first_m: float, last_m: float, behind_m: float = 0.0) -> range:
    """The bays that are seen by a camera between two places along the corridor, and `behind_m` before the first."""
    return range(math.floor((first_m - behind_m) / BAY_M) - 1, math.ceil((last_m + HAZE_M[1]) / BAY_M))


def draw_boxes(rng: np.random.Generator, bays: range) -> Iterator[Box]:
    """Random boxes on the shelves."""
    for bay in bays:
        for side in (-1, 1):
            for level in _LEVELS_M:
                for slot in (0.28, 0.72):
                    half = (0.36, rng.uniform(0.34, 0.44), rng.uniform(0.34, 0.52))
                    y = (bay + slot) * BAY_M + rng.uniform(-0.05, 0.05)
                    x = side * (HALF_WIDTH_M + 0.05 + half[0] + rng.uniform(0, 0.1))
                    box = Box((x, y, level + 0.03 + half[2]), half, rng.uniform(0.72, 1.0))
                    if rng.random() < _BOX_SHARE:
                        yield box


def render_drive(drive: Drive, times_s: Sequence[float], supersample: int = 2, scale: int = 1) -> Frames:
    """Frames of a drive; arguments and result as those of `simulate.render`."""
    return render_poses(drive, [drive.pose(time_s) for time_s in times_s], supersample, scale)


def render_poses(drive: Drive, poses: Sequence[Pose], supersample: int = 2, scale: int = 1) -> Frames:
    """Frames of a drive's corridor, one from every pose; otherwise as `render_drive`."""
    width, height = (side * scale * supersample for side in drive.size_px)
    film = Film(_corridor_xml(drive, width, height), (90.0, drive.pitch_deg, 1.0))
    tilt = math.radians(drive.pitch_deg)

    def drive_on(index: float) -> None:
        x, y, yaw = poses[int(index)]
        film.camera.azimuth = 90 + math.degrees(yaw)
        ahead = (-math.cos(tilt) * math.sin(yaw), math.cos(tilt) * math.cos(yaw), math.sin(tilt))
        film.camera.lookat[:] = [at + way for at, way in zip((x, y, drive.eye_m[1]), ahead, strict=True)]

    return film.shoot(_renderer(drive.scene.light, width, height), range(len(poses)), supersample, drive_on)


def render_depths(drive: Drive, poses: Sequence[Pose]) -> NDArray[np.float32]:
    """How far ahead, m, what each pixel of its frames shows is: [T, h, w]."""
    renderer = _renderer(drive.scene.light, *drive.size_px)
    renderer.enable_depth_rendering()
    try:
        return np.asarray(render_poses(drive, poses, supersample=1), np.float32)
    finally:
        renderer.disable_depth_rendering()


@cache
def _renderer(light: Light, width: int, height: int) -> Any:
    """A drawing context; it holds nothing of a drive but the sky's texture."""
    import mujoco

    drive = next(drive for drive in map(draw_drive, range(100)) if drive.scene.light == light)
    renderer: Any = mujoco.Renderer(
        mujoco.MjModel.from_xml_string(_corridor_xml(drive, width, height)), height, width, max_geom=1000
    )
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_FOG] = True
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
    return renderer


atexit.register(_renderer.cache_clear)  # OSMesa contexts cannot be freed once the interpreter is going down


def _corridor_xml(drive: Drive, width: int, height: int) -> str:
    bright = drive.scene.light == "bright"
    ambient, headlight, lamp = (0.42, 0.28, 0.35) if bright else (0.3, 0.32, 0.15)
    haze = numbers(HAZE_RGB[drive.scene.light])
    tangent = math.tan(math.radians(FOV_DEG / 2)) * height / min(width, height)
    return f"""<mujoco>
<statistic extent="1" center="0 0 1"/>
<visual>
  <global offwidth="{width}" offheight="{height}" fovy="{math.degrees(2 * math.atan(tangent)):.4f}"/>
  <quality offsamples="0"/>
  <map zfar="60" znear="0.05" fogstart="{HAZE_M[0]}" fogend="{HAZE_M[1]}"/>
  <rgba fog="{haze} 1"/>
  <headlight ambient="{numbers((ambient,) * 3)}" diffuse="{numbers((headlight,) * 3)}" specular="0 0 0"/>
</visual>
<asset>
  <texture type="skybox" builtin="flat" rgb1="{haze}" rgb2="{haze}" width="32" height="32"/>
</asset>
<worldbody>
  <light directional="true" castshadow="false" dir="0.3 0.5 -1" diffuse="{numbers((lamp,) * 3)}" specular="0 0 0"/>
  <geom type="plane" size="0 0 0.5" rgba="{numbers(FLOOR_RGB[drive.scene.floor])} 1"/>
  {"".join(_shelves_xml(drive))}{"".join(_box_xml(drive, box) for box in drive.boxes)}{_ahead_xml(drive)}
</worldbody></mujoco>"""


def _shelves_xml(drive: Drive) -> Iterator[str]:
    color = OBJECT_RGB[drive.scene.shelves]
    back = (0.5, 0.5, 0.52)
    start, end = drive.bays.start * BAY_M, drive.bays.stop * BAY_M
    middle, half = (start + end) / 2, (end - start) / 2
    for side in (-1, 1):
        x = side * (HALF_WIDTH_M + _DEPTH_M / 2)
        yield _slab((x + side * _DEPTH_M / 2, middle, TOP_M / 2), (0.02, half, TOP_M / 2), back)
        for level in (*_LEVELS_M, TOP_M):
            yield _slab((x, middle, level - 0.03), (_DEPTH_M / 2, half, 0.08), color)
        for bay in range(drive.bays.start, drive.bays.stop + 1):
            front = side * (HALF_WIDTH_M + 0.03)
            yield _slab((front, bay * BAY_M, TOP_M / 2), (0.09, 0.09, TOP_M / 2), color)


def _box_xml(drive: Drive, box: Box) -> str:
    red, green, blue = OBJECT_RGB[drive.scene.boxes]
    return _slab(box.center_m, box.half_m, (box.shade * red, box.shade * green, box.shade * blue))


def _ahead_xml(drive: Drive) -> str:
    if drive.scene.ahead is None:
        return ""
    half = 0.45
    kind, size = geometry(drive.scene.ahead.shape, half)
    place = numbers((drive.eye_m[0], drive.ahead_m, size[-1]))
    color = numbers(OBJECT_RGB[drive.scene.ahead.color])
    return f'<geom type="{kind}" size="{numbers(size)}" pos="{place}" euler="0 0 25" rgba="{color} 1"/>'


def _slab(center_m: Sequence[float], half_m: Sequence[float], color: RGB) -> str:
    return f'<geom type="box" size="{numbers(half_m)}" pos="{numbers(center_m)}" rgba="{numbers(color)} 1"/>'
