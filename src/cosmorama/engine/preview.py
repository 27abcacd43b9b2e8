"""A small picture of what a running generation looks like."""

from __future__ import annotations

import io

from PIL import Image

from cosmorama.engine.prepare import Frames

LONGEST_SIDE_PX = 320
_QUALITY = 75


def jpeg(frame: Frames) -> bytes:
    """A frame, uint8 `[H, W, 3]`, as a JPEG of at most `LONGEST_SIDE_PX` on its longest side."""
    picture = Image.fromarray(frame)
    picture.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX), Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", quality=_QUALITY)
    return buffer.getvalue()
