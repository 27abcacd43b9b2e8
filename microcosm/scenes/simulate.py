"""The toy world: shots of one or two large objects that fall, roll, slide, collide or rest, simulated by MuJoCo.

A `Shot` is a pure function of its seed; `render` turns a shot into frames. Lengths are metres, times seconds. Objects
are about a metre across and the camera stands seven metres away, so that real gravity looks calm: a fall from the top
of the picture takes about 0.7 s.
"""

from __future__ import annotations

import atexit
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cosmorama.text.language import (
    COLORS,
    DIRECTIONS,
    FLOORS,
    SHAPES,
    SKIES,
    Color,
    Floor,
    Motion,
    Scene,
    SceneObject,
    Shape,
    Sky,
)

os.environ.setdefault("MUJOCO_GL", "osmesa")
os.environ.setdefault("LP_NUM_THREADS", "1")  # one rasteriser thread per process; run several processes instead

T = TypeVar("T")
RGB = tuple[float, float, float]
Frames = NDArray[np.uint8]

OBJECT_RGB: dict[Color, RGB] = {
    "red": (0.85, 0.06, 0.06),
    "green": (0.06, 0.62, 0.12),
    "blue": (0.07, 0.2, 0.88),
    "yellow": (0.97, 0.85, 0.08),
    "orange": (0.98, 0.46, 0.03),
    "purple": (0.52, 0.1, 0.7),
}
FLOOR_RGB: dict[Floor, RGB] = {
    "grey": (0.55, 0.55, 0.55),
    "green": (0.36, 0.54, 0.3),
    "blue": (0.36, 0.47, 0.64),
    "wooden": (0.76, 0.58, 0.38),
}
SKY_RGB: dict[Sky, tuple[RGB, RGB]] = {
    "day": ((0.5, 0.7, 0.95), (0.8, 0.9, 1.0)),
    "night": ((0.02, 0.02, 0.07), (0.08, 0.09, 0.2)),
    "studio": ((0.95, 0.95, 0.95), (1.0, 1.0, 1.0)),
}
SIZES: tuple[tuple[int, int], ...] = ((160, 88), (120, 120), (120, 88), (88, 120), (88, 160))
"""Frame sizes (width, height): one eighth of the sizes that the model serves."""
SIZE_WEIGHTS = (0.76, 0.06, 0.06, 0.06, 0.06)
FRAME_RATES = (24, 12, 16, 30, 40)
RATE_WEIGHTS = (0.72, 0.07, 0.07, 0.07, 0.07)
TIMESTEP_S = 1 / 480
_SHORT_SIDE_FOV_DEG = 30.0


@dataclass(frozen=True, slots=True)
class Body:
    """An object in motion: half its extent, where it starts, how it is turned (yaw), its velocity."""

    kind: SceneObject
    half_size_m: float
    position_m: tuple[float, float, float]
    yaw_rad: float
    velocity_m_s: float


@dataclass(frozen=True, slots=True)
class Shot:
    """A scene with all its numbers drawn."""

    seed: int
    scene: Scene
    bodies: tuple[Body, ...]
    size_px: tuple[int, int]
    fps: int
    azimuth_deg: float
    elevation_deg: float
    distance_m: float
    light_xy: tuple[float, float]


def draw_scene(rng: np.random.Generator) -> Scene:
    """A random scene: one object or two of different colors."""
    motion: Motion = pick(rng, ("fall", "roll", "collide", "still"), (0.34, 0.34, 0.22, 0.1))
    count = 2 if motion == "collide" or rng.random() < 0.2 else 1
    colors = [COLORS[i] for i in rng.permutation(len(COLORS))[:count]]
    objects = tuple(SceneObject(color, pick(rng, SHAPES)) for color in colors)
    direction = pick(rng, DIRECTIONS) if motion in ("roll", "collide") else None
    return Scene(objects, motion, direction, pick(rng, FLOORS), pick(rng, SKIES, (0.4, 0.25, 0.35)))


def draw_shot(seed: int) -> Shot:
    """The shot of a seed."""
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng)
    size = pick(rng, SIZES, SIZE_WEIGHTS)
    bodies = _place(scene, size, rng)
    return Shot(
        seed=seed,
        scene=scene,
        bodies=bodies,
        size_px=size,
        fps=pick(rng, FRAME_RATES, RATE_WEIGHTS),
        azimuth_deg=90 + rng.uniform(-3, 3),
        elevation_deg=rng.uniform(-13, -9),
        distance_m=rng.uniform(7.0, 7.5),
        light_xy=(rng.uniform(-0.35, 0.35), rng.uniform(-0.1, 0.35)),
    )


def _place(scene: Scene, size: tuple[int, int], rng: np.random.Generator) -> tuple[Body, ...]:
    reach = 1.9 * size[0] / min(size)  # half the width that the camera sees at the objects' depth
    sign = -1 if scene.direction == "left" else 1
    first, half = scene.objects[0], rng.uniform(0.47, 0.78)
    x, z, velocity = rng.uniform(-0.55, 0.55) * reach, half, 0.0
    if scene.motion == "fall":
        z = min(2.3 + 1.9 * (size[1] / min(size) - 1), 3.0) + rng.uniform(-0.2, 0.4)
    if scene.direction is not None:
        x = -sign * reach * rng.uniform(0.35, 0.85)
        velocity = sign * (rng.uniform(0.9, 1.7) if first.shape == "ball" else rng.uniform(1.6, 2.5))
    bodies = [Body(first, half, (x, rng.uniform(-0.3, 0.3), z), rng.uniform(-0.6, 0.6), velocity)]
    for other in scene.objects[1:]:
        other_half = rng.uniform(0.47, 0.7)
        y = bodies[0].position_m[1]
        if scene.motion == "collide":
            other_x = max(-0.8 * reach, min(0.8 * reach, x + sign * (half + other_half + rng.uniform(0.5, 1.8))))
        else:
            # Beside the first object and, where something passes, behind its path.
            side = pick(rng, (-1, 1)) if scene.direction is None else sign
            gap = rng.uniform(0.2, 0.9) if scene.direction is None else rng.uniform(0.0, 2.5)
            other_x, y = x + side * (1.5 * half + 1.5 * other_half + gap), y + (0.0 if scene.direction is None else 2.0)
        bodies.append(Body(other, other_half, (other_x, y, other_half), rng.uniform(-0.6, 0.6), 0.0))
    return tuple(bodies)


def render(shot: Shot, times_s: Sequence[float], supersample: int = 2, scale: int = 1) -> Frames:
    """Frames of a shot at increasing times.

    Args:
        shot: What to render.
        times_s: Seconds after the start of the action.
        supersample: Samples per pixel side, averaged.
        scale: Enlarges the frame: 8 renders at the size the model serves.

    Returns:
        uint8 [len(times_s), height, width, 3].
    """
    width, height = (side * scale * supersample for side in shot.size_px)
    film = _begun(shot, width, height)
    film.camera.lookat[:] = 0, 0, 1.25
    return film.shoot(_renderer(shot.scene.sky, width, height), times_s, supersample, film.until)


def states(shot: Shot, times_s: Sequence[float]) -> NDArray[np.float64]:
    """Where the middles of a shot's objects are at increasing times after the start of the action, m, and how they are
    turned (yaw, rad; a ball is as it was): [times, objects, 4]. None of them ever tips over.
    """
    film, found = _begun(shot, *shot.size_px), []
    for time_s in times_s:
        film.until(time_s)
        numbers = film.data.qpos.reshape(-1, 7)
        yaws = 2 * np.arctan2(numbers[:, 6], numbers[:, 3])
        balls = np.array([body.kind.shape == "ball" for body in shot.bodies])
        yaws = np.where(balls, [body.yaw_rad for body in shot.bodies], yaws)
        found.append(np.concatenate([numbers[:, :3], yaws[:, None]], axis=1))
    return np.stack(found)


def _begun(shot: Shot, width: int, height: int) -> Film:
    film = Film(_scene_xml(shot, width, height), (shot.azimuth_deg, shot.elevation_deg, shot.distance_m))
    for index, body in enumerate(shot.bodies):
        film.data.qvel[6 * index] = body.velocity_m_s
        if body.kind.shape == "ball":
            film.data.qvel[6 * index + 4] = body.velocity_m_s / body.half_size_m
    return film


class Film:
    """A scene in the simulator, and its camera (azimuth and elevation in degrees, distance in m).

    Attributes:
        data: The simulator's state.
        camera: The camera, which looks at `camera.lookat`.
    """

    def __init__(self, xml: str, view: tuple[float, float, float]) -> None:
        import mujoco

        self._model: Any = mujoco.MjModel.from_xml_string(xml)
        self.data: Any = mujoco.MjData(self._model)
        self.camera: Any = mujoco.MjvCamera()
        self.camera.azimuth, self.camera.elevation, self.camera.distance = view

    def until(self, time_s: float) -> None:
        """Let time pass."""
        import mujoco

        while self.data.time < time_s - TIMESTEP_S / 2:
            mujoco.mj_step(self._model, self.data)

    def shoot(
        self, renderer: Any, times_s: Sequence[float], supersample: int, prepare: Callable[[float], None]
    ) -> Frames:
        """Frames [len(times_s), h, w, 3] at increasing times, for each of which `prepare` is called first."""
        import mujoco

        option, kinds = mujoco.MjvOption(), mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mj_forward(self._model, self.data)
        frames = []
        for time_s in times_s:
            prepare(time_s)
            mujoco.mjv_updateScene(self._model, self.data, option, None, self.camera, kinds, renderer.scene)
            frames.append(box_average(renderer.render(), supersample))
        return np.stack(frames)


@cache
def _renderer(sky: Sky, width: int, height: int) -> Any:
    """A drawing context (0.2 s to make, so kept). It holds nothing of a shot but the sky's texture."""
    import mujoco

    empty = draw_shot(0)
    empty = replace(empty, bodies=(), scene=replace(empty.scene, sky=sky))
    return mujoco.Renderer(mujoco.MjModel.from_xml_string(_scene_xml(empty, width, height)), height, width, max_geom=32)


atexit.register(_renderer.cache_clear)  # OSMesa contexts cannot be freed once the interpreter is going down


def box_average(image: Frames, factor: int) -> Frames:
    """An image [h, w, 3] with blocks of `factor` x `factor` pixels averaged."""
    if factor == 1:
        return image
    height, width = image.shape[0] // factor, image.shape[1] // factor
    blocks = image.reshape(height, factor, width, factor, 3).astype(np.uint16).sum((1, 3))
    averages: Frames = ((blocks + factor * factor // 2) // (factor * factor)).astype(np.uint8)
    return averages


def _scene_xml(shot: Shot, width: int, height: int) -> str:
    night = shot.scene.sky == "night"
    ambient, diffuse = (0.22, 0.4) if night else (0.42, 0.55)
    zenith, horizon = SKY_RGB[shot.scene.sky]
    tangent = math.tan(math.radians(_SHORT_SIDE_FOV_DEG / 2)) * height / min(width, height)
    x, y = shot.light_xy
    return f"""<mujoco>
<option timestep="{TIMESTEP_S:.8f}" integrator="implicitfast"/><statistic extent="6" center="0 0 1"/>
<visual>
  <global offwidth="{width}" offheight="{height}" fovy="{math.degrees(2 * math.atan(tangent)):.4f}"/>
  <quality shadowsize="{1024 if width > 640 else 512}" offsamples="0"/>
  <map zfar="60" znear="0.05" shadowclip="1.5" haze="0.2"/>
  <rgba haze="{numbers(horizon)} 1"/>
  <headlight ambient="{numbers((ambient,) * 3)}" diffuse="0.25 0.25 0.25" specular="0 0 0"/>
</visual>
<asset>
  <texture type="skybox" builtin="gradient" rgb1="{numbers(zenith)}" rgb2="{numbers(horizon)}" width="32" height="32"/>
</asset>
<worldbody>
  <light pos="{numbers((-14 * x, -14 * y, 14))}" dir="{numbers((x, y, -1))}" cutoff="75" exponent="1"
    diffuse="{numbers((diffuse,) * 3)}" specular="0.2 0.2 0.2"/>
  <geom type="plane" size="0 0 0.5" rgba="{numbers(FLOOR_RGB[shot.scene.floor])} 1"/>
  {"".join(_body_xml(body) for body in shot.bodies)}
</worldbody></mujoco>"""


def _body_xml(body: Body) -> str:
    half = body.half_size_m
    kind, size = geometry(body.kind.shape, half)
    # Contact spring (time constant in s, damping ratio): a lightly damped ball bounces, the rest land.
    spring = "0.05 0.2" if body.kind.shape == "ball" else "0.04 1"
    x, y, z = body.position_m
    # Sliders glide over the whole picture; a ball rolls without slipping.
    friction = 0.6 if body.kind.shape == "ball" else 0.06
    z = z - half + size[-1]
    turn = (math.cos(body.yaw_rad / 2), 0.0, 0.0, math.sin(body.yaw_rad / 2))
    return f"""<body pos="{numbers((x, y, z))}" quat="{numbers(turn)}"><freejoint/>
  <geom type="{kind}" size="{numbers(size)}" friction="{friction} 0.005 0.0003" density="100" solref="{spring}"
    priority="1" rgba="{numbers(OBJECT_RGB[body.kind.color])} 1"/></body>"""


def geometry(shape: Shape, half_size_m: float) -> tuple[str, tuple[float, ...]]:
    """The simulator's type and size of an object, whose last number is half its height."""
    geometries: dict[Shape, tuple[str, tuple[float, ...]]] = {
        "ball": ("sphere", (half_size_m,)),
        "cube": ("box", (half_size_m * 0.88,) * 3),
        "cylinder": ("cylinder", (half_size_m * 0.8, half_size_m)),
    }
    return geometries[shape]


def numbers(values: Sequence[float]) -> str:
    """Numbers as an attribute of the simulator's XML."""
    return " ".join(f"{value:.5f}" for value in values)


def pick(rng: np.random.Generator, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
    """One of the options."""
    return options[int(rng.choice(len(options), p=weights))]
