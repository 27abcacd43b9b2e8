"""Which way an object goes and whether it stays, on drawn squares."""

import numpy as np
import pytest

from microcosm.evaluation.tracking import direction, persists, track_color
from microcosm.scenes.simulate import OBJECT_RGB, Frames

RED = np.array([255 * part for part in OBJECT_RGB["red"]]).astype(np.uint8)
BLUE = np.array([255 * part for part in OBJECT_RGB["blue"]]).astype(np.uint8)


def _clip(columns: list[int], color: np.ndarray = RED) -> Frames:
    """A grey clip with a square of 20 pixels whose left edge is at each of `columns`; None of it beyond the frame."""
    clip = np.full((len(columns), 88, 160, 3), 140, np.uint8)
    for frame, left in zip(clip, columns, strict=True):
        frame[40:60, max(0, left) : max(0, left + 20)] = color
    return clip


@pytest.mark.parametrize(
    ("columns", "way"),
    [(range(20, 86, 2), "right"), (range(86, 20, -2), "left"), ([70] * 33, None), ([50, 51] * 16, None)],
)
def test_the_way_of_a_square(columns: list[int], way: str | None) -> None:
    assert direction(track_color(_clip(list(columns)), "red")) == way


def test_a_color_that_is_not_there_goes_nowhere() -> None:
    track = track_color(_clip(list(range(20, 86, 2))), "blue")
    assert direction(track) is None
    assert not persists(track).any()


def test_what_stays_persists() -> None:
    assert persists(track_color(_clip([60] * 40), "red")).all()
    assert len(persists(track_color(_clip([60] * 40), "red"))) == 40


def test_leaving_through_an_edge_is_not_vanishing() -> None:
    kept = persists(track_color(_clip([60] * 30 + list(range(60, 180, 4)) + [180] * 20), "red"))
    assert kept.all()
    assert len(kept) < 80  # the frames after it has left are not counted


def test_vanishing_is() -> None:
    kept = persists(track_color(_clip([60] * 30 + [200] * 20), "red"))
    assert kept[:30].all()
    assert not kept[30:].any()
    assert len(kept) == 50


def test_a_change_of_color_is_noticed() -> None:
    clip = np.concatenate([_clip([60] * 30), _clip([60] * 10, BLUE)])
    assert persists(track_color(clip, "red")).tolist() == [True] * 30 + [False] * 10


def test_coming_back_does_not_undo_vanishing() -> None:
    kept = persists(track_color(_clip([60] * 30 + [200] * 5 + [60] * 5), "red"))
    assert kept.tolist() == [True] * 30 + [False] * 5 + [True] * 5
