"""World models in your own process: `cosmorama.load(...).generate(...)`."""

from __future__ import annotations

import base64
import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
import numpy.typing as npt
from PIL import Image

from cosmorama.engine.engine import Engine
from cosmorama.engine.outcome import Outcome
from cosmorama.engine.prepare import Frames, Preparer
from cosmorama.engine.rollout import Rollout
from cosmorama.errors import CosmoramaError, InvalidRequestError, Problem
from cosmorama.media.fetch import FetchPolicy
from cosmorama.media.write import VideoWriter, mime_type
from cosmorama.progress import Progress, ProgressCallback
from cosmorama.request import Capabilities, Container, GenerationRequest, MediaSource, Output, Solver, resolve
from cosmorama.world.base import World

Picture = MediaSource | Image.Image | npt.NDArray[np.uint8]
"""An image as a path, URL, base64 text, encoded bytes, PIL image or uint8 array `[H, W, 3]`."""


class Knobs(TypedDict, total=False):
    """The sampling knobs of `GenerationRequest`, all optional; see there for ranges and defaults."""

    negative_prompt: str
    prompt_upsampling: bool | None
    seed: int | None
    guidance_scale: float
    steps: int
    width: int
    height: int
    frames: int
    fps: float
    solver: Solver | None
    guidance_interval: tuple[float, float]
    guidance_rescale: float
    conditioning_frames: int | None


class Model:
    """A world model loaded into this process."""

    def __init__(self, world: World) -> None:
        self.world = world
        # The caller's own machine: local files and local servers are theirs to read.
        self.preparer = Preparer(fetch=FetchPolicy(allow_private=True, allow_files=True))

    @property
    def capabilities(self) -> Capabilities:
        """What requests this model takes."""
        return self.world.capabilities

    def generate(
        self,
        prompt: str | None = None,
        *,
        image: Picture | None = None,
        video: MediaSource | None = None,
        on_progress: ProgressCallback | None = None,
        **knobs: Unpack[Knobs],
    ) -> Generation:
        """Sample one clip and return it as latents that decode to frames or to a file when asked.

        `on_progress` is called after every denoising step.

        Raises:
            InvalidRequestError: a value outside what the model takes.
            MediaError: the image or video cannot be read.
        """
        request = GenerationRequest(
            prompt=prompt,
            image=None if image is None else image_source(image),
            video=None if video is None else media_source(video),
            **knobs,
        )
        report = on_progress or (lambda progress: None)
        prepared = self.preparer(resolve(request, self.capabilities), self.capabilities)
        rollout = Rollout(self.world, prepared)
        while not rollout.done:
            report(rollout.advance())
        report(Progress("done"))
        return Generation(rollout)

    def generate_file(
        self, request: GenerationRequest, output: Path, *, on_progress: ProgressCallback | None = None
    ) -> Outcome:
        """Sample a request straight into a file, as the server does; reports every stage.

        Raises:
            CosmoramaError: as `generate`.
        """
        engine = Engine(self.world, self.preparer, max_active=1)
        try:
            engine.submit("local", request, output=output, on_progress=on_progress)
            while engine.pending:
                if not engine.step():
                    time.sleep(0.005)
            ((_, result),) = engine.finished()
        finally:
            engine.close()
        if isinstance(result, CosmoramaError):
            raise result
        return result


class Generation:
    """A sampled clip. Frames are decoded each time they are asked for, so a long clip is never held in memory."""

    def __init__(self, rollout: Rollout) -> None:
        self._rollout = rollout

    @property
    def request(self) -> GenerationRequest:
        """The request with everything filled in: repeating it gives the same frames."""
        return self._rollout.prepared.request

    @property
    def prompt(self) -> str:
        """The text that was used, after captioning or upsampling."""
        return self._rollout.prepared.prompt

    @property
    def seed(self) -> int:
        """The seed that was used."""
        assert self.request.seed is not None
        return self.request.seed

    @property
    def frames(self) -> Iterator[Frames]:
        """The frames in order, each uint8 `[H, W, 3]` RGB."""
        for chunk in self._rollout.decode():
            yield from chunk

    def save(self, path: str | Path, *, quality: int = 7) -> Path:
        """Write the clip; the suffix chooses the format: .mp4 (H.264), .webm (VP9), .gif, or .zip (PNG frames)."""
        request, output = self.request, output_for(Path(path), quality)
        with VideoWriter(
            Path(path), width=request.width, height=request.height, fps=request.fps, output=output
        ) as writer:
            for chunk in self._rollout.decode():
                writer.write(chunk)
        return Path(path)

    def _repr_html_(self) -> str:
        """The clip as a player, for notebooks."""
        with tempfile.TemporaryDirectory() as folder:
            data = base64.b64encode(self.save(Path(folder) / "clip.mp4").read_bytes()).decode()
        source = f"data:{mime_type(Output())};base64,{data}"
        return f'<video controls autoplay loop muted style="max-width: 100%" src="{source}"></video>'


_CONTAINERS: dict[str, Container] = {".mp4": "mp4", ".webm": "webm", ".gif": "gif", ".zip": "png"}


def output_for(path: Path, quality: int = 7) -> Output:
    """The output format that a file's suffix stands for.

    Raises:
        InvalidRequestError: an unknown suffix, or a quality outside 1 to 9.
    """
    problems = []
    container = _CONTAINERS.get(path.suffix.lower())
    if container is None:
        problems.append(Problem("output", path.name, f"a file name ending in {', '.join(_CONTAINERS)}"))
    if not 1 <= quality <= 9:
        problems.append(Problem("quality", quality, "an integer from 1 to 9"))
    if problems or container is None:
        raise InvalidRequestError(*problems)
    return Output(container, quality=quality)


def media_source(value: MediaSource) -> MediaSource:
    """A path given as text becomes a `Path`; URLs, data URLs, base64 text and bytes stay what they are."""
    if isinstance(value, str) and "://" not in value and not value.startswith("data:"):
        path = Path(value).expanduser()
        # Base64 of any real image is longer than a path may be.
        if len(value) < 1024 and (path.exists() or path.suffix):
            return path
    return value


def image_source(value: Picture) -> MediaSource:
    """The same for images, with PIL images and arrays encoded losslessly."""
    if isinstance(value, np.ndarray):
        value = Image.fromarray(value)
    if isinstance(value, Image.Image):
        buffer = io.BytesIO()
        value.save(buffer, "png")
        return buffer.getvalue()
    return media_source(value)
