"""Fitting a picture of any size and shape into a frame: scale to cover, crop the centre."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def cover_box(
    source: tuple[int, int], target: tuple[int, int], pixel_aspect: Fraction = Fraction(1)
) -> tuple[float, float, float, float]:
    """The centred part of a picture that has the shape of the target, as (left, top, right, bottom) in source pixels.

    Args:
        source: Width and height of the picture in pixels, at least 1.
        target: Width and height of the frame in pixels, at least 1.
        pixel_aspect: Width of a source pixel divided by its height, as displayed.
    """
    width, height = source
    # Wanted width over height, counted in source pixels.
    aspect = Fraction(target[0], target[1]) / pixel_aspect
    crop_width = min(Fraction(width), height * aspect)
    crop_height = min(Fraction(height), width / aspect)
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return float(left), float(top), float(left + crop_width), float(top + crop_height)


def fit(picture: Image.Image, width: int, height: int, pixel_aspect: Fraction = Fraction(1)) -> NDArray[np.uint8]:
    """An RGB picture scaled to cover `width` x `height` and cropped around its centre: uint8 `[height, width, 3]`.

    Lanczos over the whole support, so scaling down does not alias.
    """
    box = cover_box(picture.size, (width, height), pixel_aspect)
    if picture.size == (width, height) and box == (0.0, 0.0, float(width), float(height)):
        return np.array(picture, dtype=np.uint8)
    return np.array(picture.resize((width, height), Image.Resampling.LANCZOS, box=box), dtype=np.uint8)
