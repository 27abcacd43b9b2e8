"""From frames as a model makes them to frames as they were asked for: another size, another rate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cosmorama.media.fit import fit
from cosmorama.request import Target


def resampled(chunks: Iterable[NDArray[np.uint8]], fps: float, target: Target) -> Iterator[NDArray[np.uint8]]:
    """The frames of `target` from a clip's frames: uint8 RGB `[n, height, width, 3]`, n >= 1, as they come.

    Each is the source frame nearest in time, scaled to cover the size and cropped around its centre.

    Args:
        chunks: All frames of the clip in order, uint8 RGB `[t, h, w, 3]`.
        fps: How many of them make a second.
        target: What is wanted.
    """
    ratio = fps / target.fps
    read = written = 0
    for chunk in chunks:
        found: list[NDArray[np.uint8]] = []
        for frame in chunk:
            copies = 0
            while written < target.frames and int(written * ratio + 0.5) <= read:
                copies, written = copies + 1, written + 1
            read += 1
            if copies:
                found += [fit(Image.fromarray(frame), target.width, target.height)] * copies
        if found:
            yield np.stack(found)
