"""The one description of work, and what a model says it can do.

Every wire format is turned into a `GenerationRequest`; every model publishes `Capabilities`; `resolve` checks the one
against the other before anything expensive starts. Defaults and ranges are those of the Sampling Control page of
NIM for Cosmos (Predict1 generation) unless a model's capabilities say otherwise.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from cosmorama.errors import InvalidRequestError, Problem

Mode = Literal["text2world", "image2world", "video2world"]
Container = Literal["mp4", "webm", "gif", "png"]
Codec = Literal["h264", "vp9", "av1"]
Solver = Literal["euler", "unipc", "dpmpp_2m", "edm_euler"]
MediaSource = str | bytes | Path
"""An http(s) URL, data URL or raw base64 (`str`), encoded file contents (`bytes`), or a local file (`Path`)."""

MODES: tuple[Mode, ...] = get_args(Mode)
SOLVERS: tuple[Solver, ...] = get_args(Solver)
CODECS: dict[Container, tuple[Codec, ...]] = {
    "mp4": ("h264", "av1", "vp9"),
    "webm": ("vp9", "av1"),
    "gif": (),
    "png": (),
}
MAX_SEED = 2**32 - 1
PROMPT_MAX_WORDS = 250
DEFAULT_NEGATIVE_PROMPT = (
    "The video captures a series of frames showing ugly scenes, static with no motion, motion blur, over-saturation, "
    "shaky footage, low resolution, grainy texture, pixelated images, poorly lit areas, underexposed and overexposed "
    "scenes, poor color balance, washed out colors, choppy sequences, jerky movements, low frame rate, artifacting, "
    "color banding, unnatural transitions, outdated special effects, fake elements, unconvincing visuals, poorly "
    "edited content, jump cuts, visual noise, and flickering. Overall, the video is of poor quality."
)


@dataclass(frozen=True, slots=True)
class Size:
    """A frame size in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class Range:
    """A closed interval of accepted numbers."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True, slots=True)
class FrameRule:
    """Frame counts a model can make: `multiple * k + 1` up to `maximum`."""

    multiple: int
    maximum: int

    def next(self, frames: int) -> int:
        """The smallest count the model can make that is not below `frames`."""
        return 1 + math.ceil((frames - 1) / self.multiple) * self.multiple


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a world model can do; published by the model, shown by the server, enforced by `resolve`."""

    model: str
    modes: tuple[Mode, ...] = MODES
    sizes: tuple[Size, ...] = (Size(960, 960), Size(960, 704), Size(704, 960), Size(1280, 704), Size(704, 1280))
    frames: FrameRule = FrameRule(8, 121)
    fps: Range = Range(12, 40)
    guidance_scale: Range = Range(1, 10)
    steps: Range = Range(1, 50)
    prompt_words: int = PROMPT_MAX_WORDS
    conditioning_frames: tuple[int, ...] = (9, 1)
    """Numbers of frames the model can continue from, most first; an image is always one."""
    solvers: tuple[Solver, ...] = ("euler", "unipc", "dpmpp_2m")
    default_solver: Solver = "euler"


@dataclass(frozen=True, slots=True)
class Output:
    """How the result is written. `codec` None means the container's usual one; `quality` is 1 (small) to 9 (best)."""

    container: Container = "mp4"
    codec: Codec | None = None
    quality: int = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A request to generate one clip (or a still: `frames` = 1).

    Attributes:
        prompt: Up to 250 words. Required unless an image or a video is given, which is then described in words.
        negative_prompt: What the picture should not be.
        prompt_upsampling: Rewrite the prompt into the model's own language; None means only for text2world.
        image: A picture to start from; excludes `video`.
        video: A clip to continue; its last frames are the condition.
        seed: 0 to 4294967295; None draws one.
        guidance_scale: Classifier-free guidance, 1 to 10.
        steps: Denoising steps, 1 to 50.
        width, height: Frame size in pixels, one of the model's sizes.
        frames: Frames in the result, exactly.
        fps: Frames per second of the result, 12 to 40.
        solver: Integrator of the sampling equation; None means the model's own.
        guidance_interval: Fractions (start, end) of the steps in which guidance acts, 0 to 1.
        guidance_rescale: 0 to 1, pulls the guided prediction's spread back to the unguided one's (arXiv 2305.08891).
        conditioning_frames: How many last frames of `video` to continue from; None means the most the model takes.
        output: Container, codec and quality of the file.
    """

    prompt: str | None = None
    negative_prompt: str = DEFAULT_NEGATIVE_PROMPT
    prompt_upsampling: bool | None = None
    image: MediaSource | None = field(default=None, repr=False)
    video: MediaSource | None = field(default=None, repr=False)
    seed: int | None = None
    guidance_scale: float = 7.0
    steps: int = 35
    width: int = 1280
    height: int = 704
    frames: int = 121
    fps: float = 24
    solver: Solver | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    conditioning_frames: int | None = None
    output: Output = Output()

    @property
    def mode(self) -> Mode:
        """The mode that the given inputs imply."""
        if self.video is not None:
            return "video2world"
        return "image2world" if self.image is not None else "text2world"


def resolve(request: GenerationRequest, capabilities: Capabilities) -> GenerationRequest:
    """Check a request against a model and fill in what it left open (seed, solver, upsampling, conditioning frames).

    Raises:
        InvalidRequestError: naming every field that is wrong, its value and what is accepted.
    """
    problems = list(_problems(request, capabilities))
    if problems:
        raise InvalidRequestError(*problems)
    text_only = request.mode == "text2world"
    return replace(
        request,
        seed=secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed,
        solver=request.solver or capabilities.default_solver,
        prompt_upsampling=text_only if request.prompt_upsampling is None else request.prompt_upsampling,
        conditioning_frames=_conditioning_frames(request, capabilities),
    )


def _conditioning_frames(request: GenerationRequest, capabilities: Capabilities) -> int:
    if request.mode == "text2world":
        return 0
    if request.mode == "image2world":
        return 1
    if request.conditioning_frames is not None:
        return request.conditioning_frames
    # Something must be left to generate, so a short request continues from fewer frames.
    fitting = [n for n in capabilities.conditioning_frames if n < request.frames]
    return max(fitting, default=min(capabilities.conditioning_frames))


def _problems(request: GenerationRequest, capabilities: Capabilities) -> Iterator[Problem]:
    yield from _prompt_problems(request, capabilities)
    if request.image is not None and request.video is not None:
        yield Problem("video", "both image and video", "either an image or a video, not both")
    elif request.mode not in capabilities.modes:
        yield Problem("mode", request.mode, f"one of {_listed(capabilities.modes)} for {capabilities.model}")
    if request.seed is not None and not (_is_int(request.seed) and 0 <= request.seed <= MAX_SEED):
        yield Problem("seed", request.seed, f"an integer from 0 to {MAX_SEED}, or null to draw one")
    if not _in(request.guidance_scale, capabilities.guidance_scale):
        yield Problem("guidance_scale", request.guidance_scale, f"a number from {capabilities.guidance_scale}")
    if not (_is_int(request.steps) and request.steps in capabilities.steps):
        yield Problem("steps", request.steps, f"an integer from {capabilities.steps}")
    size = Size(request.width, request.height)
    if size not in capabilities.sizes:
        yield Problem("size", str(size), f"width x height, one of {_listed(capabilities.sizes)}")
    if not (_is_int(request.frames) and 1 <= request.frames <= capabilities.frames.maximum):
        yield Problem("frames", request.frames, f"an integer from 1 to {capabilities.frames.maximum}")
    if not _in(request.fps, capabilities.fps):
        yield Problem("fps", request.fps, f"a number from {capabilities.fps}")
    yield from _sampling_problems(request, capabilities)
    yield from _output_problems(request.output)


def _prompt_problems(request: GenerationRequest, capabilities: Capabilities) -> Iterator[Problem]:
    if request.mode == "text2world" and not (request.prompt or "").strip():
        yield Problem("prompt", request.prompt, "a text (it may only be left out when an image or a video is given)")
    for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        words = len((text or "").split())
        if words > capabilities.prompt_words:
            yield Problem(name, f"{words} words", f"at most {capabilities.prompt_words} words")


def _sampling_problems(request: GenerationRequest, capabilities: Capabilities) -> Iterator[Problem]:
    if request.solver is not None and request.solver not in capabilities.solvers:
        yield Problem("solver", request.solver, f"one of {_listed(capabilities.solvers)}")
    start, end = request.guidance_interval
    if not (_in(start, _UNIT) and _in(end, _UNIT) and start <= end):
        yield Problem("guidance_interval", request.guidance_interval, "fractions of the steps, 0 <= start <= end <= 1")
    if not _in(request.guidance_rescale, _UNIT):
        yield Problem("guidance_rescale", request.guidance_rescale, "a number from 0 to 1")
    given, counts = request.conditioning_frames, capabilities.conditioning_frames
    if given is None:
        return
    if request.mode != "video2world":
        if given != _conditioning_frames(request, capabilities):  # what `resolve` fills in may come back
            yield Problem("conditioning_frames", given, "no value unless a video is given")
    elif given not in counts or given >= max(request.frames, 2):
        yield Problem("conditioning_frames", given, f"one of {_listed(counts)}, less than frames")


def _output_problems(output: Output) -> Iterator[Problem]:
    codecs = CODECS.get(output.container)
    if codecs is None:
        yield Problem("output.container", output.container, f"one of {_listed(tuple(CODECS))}")
    elif output.codec is not None and output.codec not in codecs:
        accepted = f"one of {_listed(codecs)}" if codecs else "no codec"
        yield Problem("output.codec", output.codec, f"{accepted} in {output.container}")
    if not (_is_int(output.quality) and 1 <= output.quality <= 9):
        yield Problem("output.quality", output.quality, "an integer from 1 to 9")


_UNIT = Range(0, 1)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _in(value: object, accepted: Range) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value in accepted


def _listed(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values)
