"""Everything between a request and the model: fetch and read the media, caption it, expand the prompt.

None of it touches the model, so it runs in threads beside the denoising of other requests.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.media.fetch import FetchPolicy, load_bytes
from cosmorama.media.read import MediaLimits, read_image, read_video
from cosmorama.request import Capabilities, GenerationRequest
from cosmorama.text.captioning import Captioner, PixelCaptioner
from cosmorama.text.upsampling import SceneUpsampler, Upsampler

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request with its inputs at hand: the text to use and the conditioning frames, uint8 `[T, H, W, 3]` or None."""

    request: GenerationRequest
    prompt: str
    frames: Frames | None


@dataclass(frozen=True, slots=True)
class Preparer:
    """How inputs are fetched, read, described and expanded."""

    fetch: FetchPolicy = field(default_factory=FetchPolicy)
    limits: MediaLimits = field(default_factory=MediaLimits)
    upsampler: Upsampler = field(default_factory=SceneUpsampler)
    captioner: Captioner = field(default_factory=PixelCaptioner)

    def __call__(self, request: GenerationRequest, capabilities: Capabilities) -> PreparedRequest:
        """Prepare a resolved request.

        Raises:
            MediaError: the image or video cannot be fetched or read.
            InvalidRequestError: the video is shorter than the conditioning frames that were asked for.
        """
        frames = self._conditioning_frames(request, capabilities)
        prompt = (request.prompt or "").strip()
        if not prompt and frames is not None:
            prompt = self.captioner(frames, request.fps)
        elif request.prompt_upsampling:
            prompt = self.upsampler(prompt)
        return PreparedRequest(request, prompt, frames)

    def _conditioning_frames(self, request: GenerationRequest, capabilities: Capabilities) -> Frames | None:
        if request.image is not None:
            data = load_bytes(request.image, "image", self.fetch)
            return read_image(data, "image", width=request.width, height=request.height, limits=self.limits)[None]
        if request.video is None:
            return None
        wanted = request.conditioning_frames or 1
        data = load_bytes(request.video, "video", self.fetch)
        frames = read_video(
            data,
            "video",
            width=request.width,
            height=request.height,
            fps=request.fps,
            frames=wanted,
            limits=self.limits,
        )
        if len(frames) == wanted:
            return frames
        # A clip shorter than asked for is continued from as many frames as the model can take of it.
        counts = [n for n in capabilities.conditioning_frames if n <= len(frames)]
        if not counts:
            accepted = f"a clip of at least {min(capabilities.conditioning_frames)} frames at {request.fps:g} fps"
            raise InvalidRequestError(Problem("video", f"{len(frames)} frames", accepted))
        return frames[-max(counts) :]
