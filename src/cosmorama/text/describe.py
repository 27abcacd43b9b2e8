"""Measurements put into words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import cast

from cosmorama.text.colors import COLOR_NAMES, color_name, shaded_name
from cosmorama.text.motion import Movement, Track
from cosmorama.text.pixels import Picture
from cosmorama.text.scene_language import (
    COLORS,
    Color,
    Direction,
    Floor,
    Motion,
    Scene,
    SceneObject,
    Sky,
    article,
    canonical_caption,
)

_FLOORS: dict[str, Floor] = {"grey": "grey", "green": "green", "blue": "blue", "brown": "wooden"}
_SKY_PHRASES: dict[Sky, str] = {
    "day": "under a pale blue sky",
    "night": "under a dark night sky",
    "studio": "in a white studio",
}


def describe(picture: Picture, balls: Sequence[bool], moves: Movement | None) -> str:
    """A text about a picture, and about a clip's movement where there is one.

    Args:
        picture: The first frame's measurements.
        balls: For each of its regions, whether its outline is a circle.
        moves: What moves; None for a still.
    """
    return _scene(picture, balls, moves) or " ".join(_sentences(picture, balls, moves))


def _scene(picture: Picture, balls: Sequence[bool], moves: Movement | None) -> str | None:
    """The text in the scene language, for one or two colored things on a plain floor; None for anything else."""
    floor, sky = _FLOORS.get(color_name(picture.bottom)), _sky(picture)
    tracks = moves.tracks if moves else [Track(region) for region in picture.regions]
    # The shadow of a thing in the air lies away from it; the scene language has no word for it.
    found = [(track, ball) for track, ball in zip(tracks, balls, strict=True) if not track.region.dimmed]
    if not (1 <= len(found) <= 2 and floor and (sky or picture.layout.kind == "plain") and _is_plain(picture)):
        return None
    if moves and (moves.kind not in ("nothing", "things") or abs(moves.brightening) > 0.05):
        return None
    found.sort(key=lambda pair: -pair[0].speed)
    colors = [_scene_color(track.region.name, sky) for track, _ in found]
    if None in colors or any(track.speed for track, _ in found[1:]):
        return None
    actor, is_ball = found[0]
    names = [f"{color} {'ball' if ball else 'object'}" for color, (_, ball) in zip(colors, found, strict=True)]
    motion, direction = _motion(actor) if moves else (None, None)
    if motion and sky and all(ball for _, ball in found):
        objects = tuple(SceneObject(cast(Color, color), "ball") for color in colors)
        return canonical_caption(Scene(objects, motion, direction, floor, sky))
    action = ""
    if moves:
        verbs = {
            "still": "stands still",
            "fall": "falls",
            "roll": f"{'rolls' if is_ball else 'moves'} to the {direction}",
        }
        action = verbs.get(motion or "", f"moves {_direction(actor.dx, actor.dy)}") + " "
    beside = "".join(f" next to {article(name)}" for name in names[1:])
    behind = f" {_SKY_PHRASES[sky]}" if sky else ""
    text = f"{article(names[0])} {action}on {article(floor)} floor{beside}{behind}."
    if moves:
        text += " The camera is static."
    return text[0].upper() + text[1:]


def _sky(picture: Picture) -> Sky | None:
    name, lightness = color_name(picture.top), float(picture.top[0])
    if name == color_name(picture.bottom) and abs(lightness - float(picture.bottom[0])) < 0.15:
        return None
    if name == "white":
        return "studio"
    if name == "black":
        return "night"
    return "day" if name in ("blue", "cyan") and lightness > 0.7 else None


def _is_plain(picture: Picture) -> bool:
    return picture.grain < 0.05 and picture.clutter < 0.03


def _scene_color(name: str, sky: Sky | None) -> str | None:
    if name == "brown" and sky == "night":  # that is orange in little light
        return "orange"
    return name if name in COLORS else None


def _motion(track: Track) -> tuple[Motion | None, Direction | None]:
    if not track.speed:
        return "still", None
    if abs(track.dx) > 1.5 * abs(track.dy):
        return "roll", "left" if track.dx < 0 else "right"
    return ("fall", None) if track.dy > 1.5 * abs(track.dx) else (None, None)


def _sentences(picture: Picture, balls: Sequence[bool], moves: Movement | None) -> Iterator[str]:
    light = "bright" if picture.lightness > 0.75 else "dark" if picture.lightness < 0.35 else ""
    contrast = "high-contrast" if picture.contrast > 0.25 else "low-contrast" if picture.contrast < 0.05 else ""
    kind = " ".join(word for word in (light, contrast, "picture" if moves is None else "video") if word)
    yield f"A {kind}, {_shares(picture)}."
    if picture.grain > 0.1:
        yield "Fine specks of different colors cover all of it."
    else:
        yield _layout(picture)
        if picture.grain > 0.04:
            yield "It is full of fine detail."
    for region, ball in zip(picture.regions, balls, strict=True):
        if region.dimmed:
            yield f"A darker patch is {place(region.x, region.y)}."
            continue
        size = "small " if region.area < 0.02 else "large " if region.area > 0.15 else ""
        what = "ball" if ball else "area"
        yield f"{article(f'{size}{shaded_name(region.lab)} {what}').capitalize()} is {place(region.x, region.y)}."
    if moves:
        yield from _movement(moves, balls)


def _shares(picture: Picture) -> str:
    named = [(name, share) for name, share in picture.shares if share >= 0.03][:5]
    if not named:
        named = list(picture.shares[:3])
    if named[0][1] > 0.97:
        return f"{'all' if named[0][1] > 0.995 else 'almost all'} {named[0][0]}"
    words = [f"{_amount(share)} {name}" for name, share in named]
    text = _listed(words)
    return f"{text}, in {len(picture.shares)} of {len(COLOR_NAMES)} colors" if len(picture.shares) > 9 else text


def _amount(share: float) -> str:
    return "mostly" if share > 0.65 else "about half" if share > 0.4 else "partly" if share > 0.12 else "a little"


def _layout(picture: Picture) -> str:
    layout = picture.layout
    first, last = shaded_name(layout.first), shaded_name(layout.last)
    if first == last:  # the names are too coarse for the difference
        lighter = layout.last[0] > layout.first[0]
        first, last = (f"{'darker' if lighter else 'lighter'} {first}", f"{'lighter' if lighter else 'darker'} {last}")
    rows = layout.axis == "rows"
    if layout.kind == "plain":
        if not _is_plain(picture):
            return "It has no clear parts."
        return f"The background is plain {shaded_name(picture.bottom)}."
    if layout.kind == "gradient":
        ends = ("at the top", "at the bottom") if rows else ("on the left", "on the right")
        return f"It shades from {first} {ends[0]} to {last} {ends[1]}."
    sizes = ("narrow", "large") if layout.at < 0.4 else ("large", "narrow") if layout.at > 0.6 else ("", "")
    sides = ("upper", "lower") if rows else ("left", "right")
    parts = [f"{size} {side}".strip() for size, side in zip(sizes, sides, strict=True)]
    return f"The {parts[0]} part is {first}, the {parts[1]} part is {last}."


def _movement(moves: Movement, balls: Sequence[bool]) -> Iterator[str]:
    if moves.kind == "nothing":
        yield "Nothing moves."
    elif moves.kind == "pan":
        # The camera goes where the picture's contents come from.
        speed = math.hypot(*moves.pan)
        yield f"The camera pans{_pace(speed)} {_direction(-moves.pan[0], -moves.pan[1])}; everything moves with it."
    elif moves.kind == "drive":
        way = "forward" if moves.rate > 0 else "backward"
        yield f"The camera moves {'quickly' if abs(moves.rate) > _QUICK_PER_S else 'slowly'} {way}."
    elif moves.kind == "things":
        for track, ball in zip(moves.tracks, balls, strict=True):
            if track.speed and not track.region.dimmed:
                what = f"{track.region.name} {'ball' if ball else 'area'}"
                yield f"The {what} moves{_pace(track.speed)} {_direction(track.dx, track.dy)}."
        yield "The camera is static."
    elif moves.kind == "somewhere":
        yield f"Something moves {place(*moves.place)}; the rest stays as it is."
    else:
        yield "Most of the picture changes from frame to frame."
    if abs(moves.brightening) > 0.04:
        yield f"It grows {'brighter' if moves.brightening > 0 else 'darker'}."


_QUICK_PER_S = 0.25


def _pace(speed: float) -> str:
    return " slowly" if speed < 0.1 else " quickly" if speed > 0.6 else ""


def _direction(dx: float, dy: float) -> str:
    across, along = ("left" if dx < 0 else "right"), ("up" if dy < 0 else "down")
    if abs(dx) > 2 * abs(dy):
        return f"to the {across}"
    return along if abs(dy) > 2 * abs(dx) else f"{along} and to the {across}"


def place(x: float, y: float) -> str:
    """Where a point lies in the picture, given shares of its width and height: "at the upper left"."""
    across = "left" if x < 0.4 else "right" if x > 0.6 else ""
    along = "upper" if y < 0.36 else "lower" if y > 0.64 else ""
    if not across:
        return {"upper": "in the upper middle", "lower": "in the lower middle", "": "in the middle"}[along]
    return f"at the {along} {across}" if along else f"on the {across}"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
