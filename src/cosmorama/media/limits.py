"""How much of a user's media the server is willing to decode."""

from __future__ import annotations

import time
from dataclasses import dataclass

from cosmorama.errors import MediaError


@dataclass(frozen=True)
class MediaLimits:
    """Limits on what is decoded, checked before or while decoding, never after.

    Attributes:
        max_pixels: Largest picture or frame, width x height.
        min_side: Smallest width or height in pixels.
        max_duration_s: Longest clip in seconds.
        max_frames: Most frames decoded for one clip; one that is read twice counts twice.
        max_decode_s: Longest time spent on decoding one clip, in seconds.
    """

    max_pixels: int = 50_000_000
    min_side: int = 16
    max_duration_s: float = 600
    max_frames: int = 40_000
    max_decode_s: float = 120

    def check_size(self, field: str, width: int, height: int) -> None:
        """Refuse a picture or frame that is too large or too small.

        Raises:
            MediaError: with status 413 if it is too large.
        """
        if width * height > self.max_pixels:
            message = f"is {width}x{height}; send at most {self.max_pixels:,} pixels"
            raise MediaError(field, message, status=413)
        if min(width, height) < self.min_side:
            raise MediaError(field, f"is {width}x{height}; send at least {self.min_side} pixels on each side")

    def check_duration(self, field: str, duration_s: float) -> None:
        """Refuse a clip that is too long.

        Raises:
            MediaError: with status 413.
        """
        if duration_s > self.max_duration_s:
            message = f"lasts {duration_s:.0f} s; send at most {self.max_duration_s:g} s, ending where to continue from"
            raise MediaError(field, message, status=413)


class Effort:
    """Counts what has been spent on one clip."""

    def __init__(self, field: str, limits: MediaLimits) -> None:
        self._field = field
        self._limits = limits
        self._ends_at_s = time.monotonic() + limits.max_decode_s

    def check(self, frames: int) -> None:
        """Refuse to go on after `frames` frames or too long a time.

        Raises:
            MediaError: with status 413.
        """
        if frames > self._limits.max_frames:
            message = f"has more than {self._limits.max_frames:,} frames; send its last part only"
            raise MediaError(self._field, message, status=413)
        if time.monotonic() > self._ends_at_s:
            message = f"takes more than {self._limits.max_decode_s:g} s to decode; send a shorter or smaller clip"
            raise MediaError(self._field, message, status=413)
