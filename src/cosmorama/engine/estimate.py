"""How long a request will take, from what others took: seconds per unit of work, measured, times the units left."""

from __future__ import annotations

from collections import OrderedDict

from cosmorama.progress import Progress
from cosmorama.request import ResolvedRequest

SMOOTHING = 0.3
"""Weight of the newest measurement."""
_KNOWN_VOLUMES = 64
# Where nothing was measured: the ratio of the two says who goes first. The time left of a first clip has its decoding
# from here, which comes to 5 s for a clip of the default size.
_DENOISE_S_PER_PIXEL = 2e-8
_DECODE_S_PER_PIXEL = 5e-8


def volume(request: ResolvedRequest) -> int:
    """Pixels of the clip: width x height x frames."""
    return request.width * request.height * request.frames


def evaluations(request: ResolvedRequest, steps: float | None = None) -> float:
    """Evaluations of the denoiser in `steps` steps, or in all: two where guidance acts, one elsewhere."""
    total = request.steps if steps is None else steps
    if request.guidance_scale == 1:
        return total
    start, end = request.guidance_interval
    return total + total * max(end - start, 0.0)


def work(request: ResolvedRequest) -> float:
    """A request's size in one number, for comparing those of one model: pixel evaluations, decoding as 2.5 of them."""
    return volume(request) * (evaluations(request) + _DECODE_S_PER_PIXEL / _DENOISE_S_PER_PIXEL)


class Rate:
    """Measured seconds per unit. Attention grows faster than the clip, so each volume has its own rate."""

    def __init__(self, guess: float) -> None:
        self._guess = guess
        self._by_volume: OrderedDict[int, float] = OrderedDict()
        self._latest: float | None = None

    @property
    def measured(self) -> bool:
        """Whether anything was."""
        return self._latest is not None

    def observe(self, volume: int, units: float, seconds: float) -> None:
        """Learn that `units` of work on a clip of `volume` took `seconds`."""
        rate = seconds / units
        old = self._by_volume.get(volume)
        self._latest = self._by_volume[volume] = rate if old is None else old + SMOOTHING * (rate - old)
        self._by_volume.move_to_end(volume)
        if len(self._by_volume) > _KNOWN_VOLUMES:
            self._by_volume.popitem(last=False)

    def seconds(self, volume: int, units: float) -> float:
        """What `units` of work will take: at this volume's rate, else at the one measured last, else at a guess."""
        rate = self._by_volume.get(volume, self._latest)
        return units * (self._guess if rate is None else rate)


class Estimator:
    """Rates of the two stages that matter."""

    def __init__(self) -> None:
        self._denoise = Rate(_DENOISE_S_PER_PIXEL)
        self._decode = Rate(_DECODE_S_PER_PIXEL)

    @property
    def measured(self) -> bool:
        """Whether estimates rest on a measurement."""
        return self._denoise.measured

    def denoised(self, request: ResolvedRequest, steps: float, seconds: float) -> None:
        """Learn what denoising steps of the whole clip took; a step of a part of it is a part of one."""
        if steps > 0 and seconds > 0:
            self._denoise.observe(volume(request), volume(request) * evaluations(request, steps), seconds)

    def decoded(self, request: ResolvedRequest, frames: int, seconds: float) -> None:
        """Learn what decoding and writing frames took."""
        if frames > 0 and seconds > 0:
            self._decode.observe(volume(request), request.width * request.height * frames, seconds)

    def finished(self, request: ResolvedRequest, timings: dict[str, float]) -> None:
        """Learn from a finished generation's seconds per stage."""
        if not request.reuse:
            self.denoised(request, request.steps, timings.get("denoise", 0.0))
        # Frames are written while the next are decoded.
        self.decoded(request, request.frames, max(timings.get("decode", 0.0), timings.get("write", 0.0)))

    def remaining_s(self, request: ResolvedRequest, progress: Progress | None = None) -> float:
        """Seconds of work left at this point of a request, or for all of it."""
        steps: float = request.steps
        frames = request.frames
        if progress is not None and progress.stage == "denoise":
            # The total counts the steps of every window of the clip.
            done = progress.step / max(progress.total, 1) if progress.share is None else progress.share
            steps *= 1 - done
        elif progress is not None and progress.stage in ("decode", "done"):
            steps, frames = 0, frames - progress.step if progress.stage == "decode" else 0
        pixels = request.width * request.height
        denoise_s = self._denoise.seconds(volume(request), volume(request) * evaluations(request, steps))
        return denoise_s + self._decode.seconds(volume(request), pixels * frames)
