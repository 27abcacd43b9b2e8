"""The second world: drives follow from their seeds, captions are understood, and speed is read off the pixels."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from cosmorama.text.captioning import PixelCaptioner
from cosmorama.text.language import COLORS, Corridor, SceneObject, mirror_caption
from cosmorama.text.reader import parse_corridor
from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from microcosm.evaluation.driving import says_speed, seen_figures, speed_figures, speed_m_s
from microcosm.evaluation.heldout import held_out_drives
from microcosm.evaluation.probe import (
    CorridorProbe,
    LabelledDrives,
    accuracy,
    classes,
    color_shares,
    to_input,
    train,
)
from microcosm.scenes.captions import random_caption
from microcosm.scenes.corridor import Drive, draw_corridor, draw_drive, render_drive
from microcosm.scenes.simulate import OBJECT_RGB, SIZES, Frames
from tests import needs


def _render(drive: Drive, times_s: list[float]) -> Frames:
    needs.osmesa()
    return render_drive(drive, times_s)


def _wide(seed: int) -> Drive:
    return replace(draw_drive(seed), size_px=SIZES[0])


def test_a_drive_follows_from_its_seed() -> None:
    assert draw_drive(7) == draw_drive(7)
    assert draw_drive(7) != draw_drive(8)


def test_the_camera_drives_forward_and_stops_in_front_of_what_is_ahead() -> None:
    drive = next(drive for drive in map(draw_drive, range(100)) if drive.scene.ahead is not None)
    way = [drive.camera_y_m(time) for time in np.arange(0, 12, 0.25)]
    assert all(later >= sooner for sooner, later in pairwise(way))
    assert way[4] == pytest.approx(drive.speed_m_s)
    assert 0 < drive.ahead_m - way[-1] < 1.5
    assert replace(drive, scene=replace(drive.scene, ahead=None)).camera_y_m(12) > way[-1]


def test_colors_are_those_of_the_scene() -> None:
    drive = next(
        drive for drive in map(_wide, range(100)) if drive.scene.light == "bright" and drive.scene.ahead is None
    )
    (shares,) = color_shares(_render(drive, [0.0]))
    there = {color for color, share in zip(COLORS, shares, strict=True) if share > 0.03}
    assert there == {drive.scene.shelves, drive.scene.boxes}


@pytest.mark.parametrize("seed", [3, 4, 5, 6])
def test_speed_is_read_off_the_pixels(seed: int) -> None:
    drive = replace(_wide(seed), fps=24)
    clip = _render(drive, [frame / 24 for frame in range(33)])
    assert speed_m_s(clip, 24) == pytest.approx(drive.speed_m_s, rel=0.25)
    assert speed_m_s(clip[:1].repeat(33, 0), 24) == 0
    assert speed_m_s(clip[::-1], 24) == pytest.approx(-speed_m_s(clip, 24))


@pytest.mark.parametrize(("seed", "pace"), [(3, "quickly"), (4, "slowly")])
def test_a_drive_without_a_prompt_is_seen_to_go_forward(seed: int, pace: str) -> None:
    drive = next(
        drive for drive in map(_wide, range(seed, 100)) if (drive.scene.speed == "fast") == (pace == "quickly")
    )
    text = PixelCaptioner()(_render(drive, [frame / 24 for frame in range(9)]), 24)
    assert f"The camera drives {pace} forward" in text, text


def test_captions_say_what_is_there_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        corridor = draw_corridor(rng)
        caption = random_caption(corridor, rng)
        read = parse_corridor(caption)
        assert read is not None, caption
        for name in ("shelves", "boxes", "floor", "light", "speed"):
            assert getattr(read, name) in (None, getattr(corridor, name)), caption
        assert (read.ahead is None) == (corridor.ahead is None), caption
        assert mirror_caption(caption) == caption
        assert says_speed(caption) == (read.speed is not None)


def test_things_are_told_apart_by_color() -> None:
    with pytest.raises(ValueError, match="differ in color"):
        Corridor("red", "red", "grey", "bright", "slow")
    with pytest.raises(ValueError, match="differ in color"):
        Corridor("red", "blue", "grey", "bright", "slow", SceneObject("blue", "ball"))


def test_held_out_drives_are_wide_and_half_of_their_prompts_canonical() -> None:
    held = held_out_drives(6)
    assert {(one.shot.size_px, one.shot.fps) for one in held} == {(SIZES[0], 24)}
    assert [one.canonical for one in held] == [True, False] * 3


def test_the_probe_learns_what_a_drive_shows() -> None:
    """A few steps, on flat pictures: one drive is red and blue, the other yellow and green."""
    scenes = [Corridor("red", "blue", "grey", "bright", "slow"), Corridor("yellow", "green", "wooden", "dim", "slow")]
    frames = np.full((2, 88, 160, 3), 200, np.uint8)
    for frame, scene in zip(frames, scenes, strict=True):
        frame[:, :60] = [255 * part for part in OBJECT_RGB[scene.shelves]]
        frame[:, 100:] = [255 * part for part in OBJECT_RGB[scene.boxes]]
    pictures = LabelledDrives.label(frames, scenes)
    torch.manual_seed(0)
    probe, vae = CorridorProbe(), VideoAutoencoder(8)
    torch.nn.init.orthogonal_(vae.basis.data)
    train(probe, pictures, vae, 30, batch=4)
    assert torch.equal(probe.look(frames), pictures.answers)
    assert set(accuracy(probe, to_input(frames), pictures).values()) == {1.0}


def test_figures_of_drives_stand_beside_their_bounds() -> None:
    class Seer(CorridorProbe):
        """Sees each clip as the drive whose number its pixels have."""

        def look(self, frames: Frames) -> torch.Tensor:
            return torch.tensor([classes(held[int(frame[0, 0, 0])].scene) for frame in frames])

    held = held_out_drives(4)
    real = [np.full((33, 88, 160, 3), index, np.uint8) for index in range(4)]
    for figure in seen_figures(Seer(), real, real, held):
        assert figure.value == figure.bounds["real frames"] == 100
        assert figure.bounds["shuffled"] < 100
        assert figure.verdict == "goal"


def test_figures_of_speed_compare_those_whose_prompts_say_it() -> None:
    held = [one for one in held_out_drives(8) if one.canonical]
    assert {one.scene.speed for one in held} == {"slow", "fast"}
    real = [_render(draw_drive(one.shot.seed), [frame / 24 for frame in range(9)]) for one in held]
    stands = [clip[:1].repeat(9, 0) for clip in real]
    ordered, share = speed_figures(real, real, held)
    assert ordered.value == ordered.bounds["real frames"] == share.value == 100
    ordered, share = speed_figures(stands, real, held)
    assert ordered.value == share.value == 0
    assert share.bounds["slow, real"] < 0.6 < share.bounds["fast, real"]
