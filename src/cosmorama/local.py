"""World models in your own process: `cosmorama.load(...).generate(...)`."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack

from cosmorama.engine.embeddings import EmbeddingCache, Reader
from cosmorama.engine.engine import Engine
from cosmorama.engine.outcome import Outcome
from cosmorama.engine.prepare import Frames, Preparer
from cosmorama.engine.rollout import Rollout
from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.media.fetch import FetchPolicy
from cosmorama.media.read import resampled
from cosmorama.media.source import Picture, mime_type, output_for, request_of
from cosmorama.media.write import VideoWriter
from cosmorama.progress import Progress, ProgressCallback
from cosmorama.request import Capabilities, GenerationRequest, Knobs, MediaSource, Output, ResolvedRequest
from cosmorama.resolve import resolve
from cosmorama.world.base import World


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
        request = request_of(prompt, image=image, video=video, **knobs)
        report = on_progress or (lambda progress: None)
        prepared = self.preparer(resolve(request, self.capabilities), self.capabilities)
        reader = Reader(EmbeddingCache(self.world.encode_text))
        rollout = Rollout(self.world, prepared, reader)
        while not rollout.done:
            report(rollout.advance())
        report(Progress("done"))
        return Generation(rollout, reader)

    def generate_file(
        self, request: GenerationRequest, output: Path, *, on_progress: ProgressCallback | None = None
    ) -> Outcome:
        """Sample a request straight into a file, as the server does; reports every stage.

        Raises:
            CosmoramaError: as `generate`.
        """
        engine = Engine(self.world, self.preparer, max_active=1)
        try:
            return engine.make(request, output, on_progress=on_progress)
        finally:
            engine.close()


def load_model(name: str, adapters: dict[str, Path], threads: int | None, **options: Any) -> Model:
    """The model that the arguments of `cosmorama.load` describe."""
    from cosmorama.world.load.runtime import use_threads
    from cosmorama.world.registry import load_world

    use_threads(threads)
    if not adapters:
        return Model(load_world(name, **options))
    from cosmorama.world.load.adapters import AdaptedWorld, check_adapters

    check_adapters(adapters)
    return Model(AdaptedWorld(load_world(name, **options), adapters))


class Generation:
    """A sampled clip. Frames are decoded each time they are asked for, so a long clip is never held in memory."""

    def __init__(self, rollout: Rollout, reader: Reader) -> None:
        self._rollout, self._reader = rollout, reader

    @property
    def request(self) -> ResolvedRequest:
        """The request with everything filled in: repeating it gives the same frames."""
        return self._rollout.prepared.request

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was fitted, replaced, converted or ignored."""
        return (*self._rollout.warnings, *self._reader.told(self.prompt))

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
    def actions(self) -> tuple[tuple[float, ...], ...] | None:
        """The actions `[steps][numbers]` that inverse dynamics or a policy predicted; None of other modes."""
        return self._rollout.actions

    @property
    def frames(self) -> Iterator[Frames]:
        """The frames in order, each uint8 `[H, W, 3]` RGB."""
        for chunk in self._chunks():
            yield from chunk

    def save(self, path: str | Path, *, quality: int = 7) -> Path:
        """Write the clip; the suffix chooses the format.

        It is .mp4 (H.264), .webm (VP9), .gif, .zip (PNG frames), .safetensors (frames as numbers), or .jpg.

        Raises:
            InvalidRequestError: an unknown suffix, a quality outside 1 to 9, or .jpg for more than one frame.
        """
        result, output = self.request.result, output_for(Path(path), quality)
        if output.container == "jpeg" and result.frames > 1:
            accepted = f"a name for a clip: this one has {result.frames} frames"
            raise InvalidRequestError(Problem("path", Path(path).name, accepted))
        with VideoWriter(
            Path(path),
            width=result.width,
            height=result.height,
            fps=result.fps,
            output=output,
            metadata=self._rollout.parameters(output),
        ) as writer:
            for chunk in self._chunks():
                writer.write(chunk)
            writer.attach(self.actions)
        return Path(path)

    def _chunks(self) -> Iterator[Frames]:
        """The frames as they were asked for, a few at a time: for `fit`, resampled from those of the model."""
        frames, target = self._rollout.decode(), self.request.target
        return frames if target is None else resampled(frames, self.request.fps, target)

    def _repr_html_(self) -> str:
        """The clip as a player, for notebooks."""
        with tempfile.TemporaryDirectory() as folder:
            data = base64.b64encode(self.save(Path(folder) / "clip.mp4").read_bytes()).decode()
        source = f"data:{mime_type(Output())};base64,{data}"
        return f'<video controls autoplay loop muted style="max-width: 100%" src="{source}"></video>'
