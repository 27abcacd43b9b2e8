"""Everything between a request and the model: fetch and read the media, caption it, expand the prompt.

None of it touches the model, so it runs beside the denoising of other requests; nothing here imports torch before a
request goes to the model, so that the processes it runs in start quickly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.media.controls import computed
from cosmorama.media.fetch import FetchPolicy, load_bytes
from cosmorama.media.read import MediaLimits, rate_of, read_image, read_video
from cosmorama.request import Capabilities, MediaSource, ResolvedRequest
from cosmorama.resolve import LATENT_FRAMES
from cosmorama.text.captioning import Captioner, PixelCaptioner, described
from cosmorama.text.upsampling import ChatUpsampler, Facts, Upsampler, built_in_upsampler, expanded

if TYPE_CHECKING:
    from cosmorama.world.base import Inputs

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request with its inputs at hand.

    Attributes:
        request: With what its inputs decide filled in.
        prompt: The text to use.
        frames: Conditioning frames, uint8 `[T, H, W, 3]`, or None.
        controls: Control clips by kind, uint8 `[T, H, W, 3]`.
        warnings: What was converted, cut or not used, in sentences.
    """

    request: ResolvedRequest
    prompt: str
    frames: Frames | None
    controls: dict[str, Frames] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def inputs(self) -> Inputs:
        """The same as the model takes it."""
        import torch

        from cosmorama.world.base import Inputs

        frames = None if self.frames is None else torch.from_numpy(self.frames)
        controls = {kind: torch.from_numpy(clip) for kind, clip in self.controls.items()}
        return Inputs(request=self.request, prompt=self.prompt, frames=frames, controls=controls)


def _nobody(field: str) -> None:
    """Told of nothing."""


@dataclass(frozen=True, slots=True)
class Preparer:
    """How inputs are fetched, read, described and expanded."""

    fetch: FetchPolicy = field(default_factory=FetchPolicy)
    limits: MediaLimits = field(default_factory=MediaLimits)
    upsampler: Upsampler | None = None
    """None: the built-in one of the model's family, if it has one."""
    captioner: Captioner = field(default_factory=PixelCaptioner)
    on_reading: Callable[[str], None] = _nobody
    """Told which input is fetched and read next, by its name in the request."""

    @property
    def expands_elsewhere(self) -> bool:
        """Whether another server writes prompts out, which may take long."""
        return isinstance(self.upsampler, ChatUpsampler)

    def __call__(self, request: ResolvedRequest, capabilities: Capabilities) -> PreparedRequest:
        """Prepare a resolved request.

        Raises:
            MediaError: the image or video cannot be fetched or read.
            InvalidRequestError: the video is shorter than the conditioning frames that were asked for.
        """
        frames = seen = None
        controls: dict[str, Frames] = {}
        warnings: list[str] = []
        if request.mode == "transfer":
            request, controls, seen = self._controls(request, capabilities, warnings)
            frames = None if seen is None else seen[: request.first_conditioning_frames or 0]
            frames = None if frames is None or not len(frames) else frames
        else:
            frames = seen = self._conditioning_frames(request, capabilities, warnings)
        prompt = (request.prompt or "").strip()
        if not prompt and seen is not None:
            prompt, said = described(self.captioner, seen, request.fps)
            warnings += said
        elif request.prompt_upsampling:
            upsampler = self.upsampler or built_in_upsampler(capabilities.family)
            facts = Facts(request.width, request.height, request.frames, request.fps)
            picture = None if seen is None else seen[-1]
            prompt, said = expanded(upsampler, prompt, capabilities.family, facts, picture)
            warnings += said
        return PreparedRequest(request, prompt, frames, controls, tuple(warnings))

    def _controls(
        self, request: ResolvedRequest, capabilities: Capabilities, warnings: list[str]
    ) -> tuple[ResolvedRequest, dict[str, Frames], Frames | None]:
        """The control clips, and the video where there is one, all from their beginnings and equally long.

        `frames` of the request is the most that is made: a shorter clip makes a shorter result.
        """
        sources: dict[str, MediaSource | None] = {"video": request.video}
        sources |= {f"controls.{index}.source": control.source for index, control in enumerate(request.controls)}
        loaded = {field: self._load(request, source, field) for field, source in sources.items() if source is not None}
        if request.source_rate and request.target is None:
            request = self._at_source_rate(request, capabilities, loaded, warnings)
        read = {
            field: self._read(request, data, field, request.frames, "first", warnings) for field, data in loaded.items()
        }
        clip = read.get("video")
        controls: dict[str, Frames] = {}
        for index, control in enumerate(request.controls):
            given = read.get(f"controls.{index}.source")
            if given is None:
                assert clip is not None
                given = computed(control, clip)
            controls[control.kind] = given
        length = min((len(frames) for frames in controls.values()), default=request.frames)
        warnings += [
            f"the control {kind} has {len(frames)} frames at {request.fps:g} fps; cut to the {length} of the shortest"
            for kind, frames in controls.items()
            if len(frames) > length
        ]
        if length < request.frames:
            target = request.target and replace(
                request.target, frames=max(1, round(length * request.target.fps / request.fps))
            )
            request = replace(request, frames=length, target=target)
        return request, {kind: frames[:length] for kind, frames in controls.items()}, clip

    def _at_source_rate(
        self, request: ResolvedRequest, capabilities: Capabilities, loaded: dict[str, bytes], warnings: list[str]
    ) -> ResolvedRequest:
        """The request at the rate of the first clip that has one: NVIDIA's tool keeps every frame too."""
        rates = ((field, rate_of(data, field, self.limits)) for field, data in loaded.items())
        field, rate = next(((field, rate) for field, rate in rates if rate is not None), ("", request.fps))
        if rate in capabilities.fps:
            return replace(request, fps=rate)
        warnings.append(
            f"{request.called(field)} has {rate:g} fps, which is not made; it was resampled to {request.fps:g} fps"
        )
        return request

    def _read(
        self,
        request: ResolvedRequest,
        data: bytes,
        field: str,
        frames: int,
        keep: Literal["first", "last"],
        warnings: list[str],
    ) -> Frames:
        field = request.called(field)
        self.on_reading(field)
        return read_video(
            data,
            field,
            width=request.width,
            height=request.height,
            fps=request.fps,
            frames=frames,
            keep=keep,
            limits=self.limits,
            warnings=warnings,
        )

    def _video(
        self, request: ResolvedRequest, frames: int, keep: Literal["first", "last"], warnings: list[str]
    ) -> Frames:
        assert request.video is not None
        return self._read(request, self._load(request, request.video, "video"), "video", frames, keep, warnings)

    def _load(self, request: ResolvedRequest, source: MediaSource, field: str) -> bytes:
        field = request.called(field)
        self.on_reading(field)
        return load_bytes(source, field, self.fetch)

    def _conditioning_frames(
        self, request: ResolvedRequest, capabilities: Capabilities, warnings: list[str]
    ) -> Frames | None:
        if request.image is not None:
            return read_image(
                self._load(request, request.image, "image"),
                request.called("image"),
                width=request.width,
                height=request.height,
                pad=capabilities.action_only,
                limits=self.limits,
                warnings=warnings,
            )[None]
        if request.video is None:
            return None
        if request.mode in ("policy", "forward_dynamics"):
            warnings.append(
                f"of {request.called('video')} only the first frame was used: {request.mode} starts from one"
            )
            return self._video(request, 1, "first", warnings)
        if request.mode == "inverse_dynamics":
            return _held(self._video(request, request.frames, "first", warnings), request.frames, request, warnings)
        if request.conditioning_indexes is not None:
            # All up to the last one that is given.
            wanted = 1 + LATENT_FRAMES * max(request.conditioning_indexes)
            return _held(self._video(request, wanted, request.keep, warnings), wanted, request, warnings)
        wanted = request.conditioning_frames or 1
        frames = self._video(request, wanted, request.keep, warnings)
        if len(frames) == wanted:
            return frames
        # A clip shorter than asked for is continued from as many frames as the model can take of it.
        counts = [n for n in capabilities.conditioning_frames if n <= len(frames)]
        if not counts:
            accepted = f"a clip of at least {min(capabilities.conditioning_frames)} frames at {request.fps:g} fps"
            raise InvalidRequestError(Problem("video", f"{len(frames)} frames", accepted))
        had = f"{request.called('video')} has {len(frames)} of {wanted} frames at {request.fps:g} fps"
        warnings.append(f"{had}; continued from {max(counts)} of them")
        return frames[: max(counts)] if request.keep == "first" else frames[-max(counts) :]


def _held(frames: Frames, wanted: int, request: ResolvedRequest, warnings: list[str]) -> Frames:
    """The clip, whose last frame stands still where it ends before it should."""
    missing = wanted - len(frames)
    if missing > 0:
        had = f"{request.called('video')} has {len(frames)} of {wanted} frames at {request.fps:g} fps"
        warnings.append(f"{had}; its last one stands still for the rest")
    return np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
