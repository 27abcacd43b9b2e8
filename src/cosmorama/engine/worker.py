"""The process that owns the model: commands come in over a pipe, the engine is stepped, events go out.

The parent imports this module for its messages, so nothing here imports torch before `main` runs in the child.
"""

from __future__ import annotations

import logging
import os
import signal
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from cosmorama import logs
from cosmorama.engine.outcome import Outcome
from cosmorama.engine.scheduler import Priority
from cosmorama.errors import CosmoramaError, InvalidRequestError
from cosmorama.progress import Progress
from cosmorama.request import Capabilities, GenerationRequest
from cosmorama.settings import Settings

if TYPE_CHECKING:
    from cosmorama.engine.engine import Engine
    from cosmorama.engine.prepare import Preparer
    from cosmorama.text.captioning import Captioner
    from cosmorama.text.upsampling import Upsampler
    from cosmorama.world.base import World

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Submit:
    """Generate `request` into the file `output`; it was accepted `age_s` seconds ago."""

    job: str
    request: GenerationRequest
    output: Path
    priority: Priority = "normal"
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Watch:
    """Begin or end sending previews of a job."""

    job: str
    watched: bool


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop a job within one step."""

    job: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Give up everything and exit."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded."""

    capabilities: Capabilities


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The model cannot be loaded; the process exits."""

    reason: str


@dataclass(frozen=True, slots=True)
class Advanced:
    """A job got further."""

    job: str
    progress: Progress


@dataclass(frozen=True, slots=True)
class Previewed:
    """What a watched job looks like now."""

    job: str
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class Finished:
    """A job's end, good or bad."""

    job: str
    result: Outcome | CosmoramaError


Command = Submit | Watch | Cancel | Stop
Event = Ready | LoadFailed | Advanced | Previewed | Finished


def main(connection: Connection, settings: Settings) -> None:
    """Load the model and serve until told to stop or the parent is gone. The target of the child process."""
    # Ctrl-C reaches the whole process group; what happens to the worker then is the parent's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The model takes every core it gets; the process that answers clients goes first.
    os.nice(5)
    logs.configure(settings, "worker")
    try:
        engine = build_engine(settings)
        if settings.warmup:
            from cosmorama.engine.warmup import warm_up

            warm_up(engine)
    except CosmoramaError as error:
        connection.send(LoadFailed(str(error)))
        return
    except Exception as error:
        log.exception("the model %s cannot be loaded", settings.model)
        connection.send(LoadFailed(f"{type(error).__name__}: {error}"))
        return
    try:
        connection.send(Ready(engine.capabilities))
        while serve_once(engine, connection):
            pass
        code = 0
    except (EOFError, BrokenPipeError, ConnectionResetError):
        log.warning("the server is gone; the worker follows")
        code = 0
    except Exception:
        log.exception("the engine failed")
        code = 1
    engine.close()
    logging.shutdown()
    # A thread may still be downloading somebody's video; nothing is worth waiting for now.
    os._exit(code)


def serve_once(engine: Engine, connection: Connection) -> bool:
    """Take the commands that wait, advance the engine by one unit and report; False when told to stop."""
    while connection.poll(0 if engine.pending else None):
        command: Command = connection.recv()
        match command:
            case Stop():
                return False
            case Cancel(job):
                engine.cancel(job)
            case Watch(job, watched):
                engine.watch(job, watched)
            case Submit():
                _submit(engine, connection, command)
    advanced = engine.step()
    for job, result in engine.finished():
        connection.send(Finished(job, result))
    if not advanced and engine.pending:
        engine.wait(connection)
    return True


def _submit(engine: Engine, connection: Connection, command: Submit) -> None:
    def report(progress: Progress) -> None:
        connection.send(Advanced(command.job, progress))

    def show(jpeg: bytes) -> None:
        connection.send(Previewed(command.job, jpeg))

    try:
        engine.submit(
            command.job,
            command.request,
            output=command.output,
            on_progress=report,
            on_preview=show,
            priority=command.priority,
            age_s=command.age_s,
        )
    except InvalidRequestError as error:
        connection.send(Finished(command.job, error))


def build_engine(settings: Settings) -> Engine:
    """The engine that `settings` describe, its model loaded.

    Raises:
        ModelNotFoundError: no such model.
    """
    import torch

    from cosmorama.engine.engine import Engine

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    return Engine(_world(settings), _preparer(settings), max_active=settings.max_active)


def _world(settings: Settings) -> World:
    if settings.parallel == "none":
        return load_model(settings)
    from cosmorama.world.follower import Follower

    followers = [
        Follower(partial(_load_to_follow, settings, rank), threads=settings.threads)
        for rank in range(1, settings.parallel_processes)
    ]
    world = load_model(settings)
    for follower in followers:
        follower.ready()
    if settings.parallel == "guidance":
        from cosmorama.world.parallel import GuidanceParallel

        return GuidanceParallel(world, followers[0])
    from cosmorama.world.sequence_parallel import SequenceParallel

    return SequenceParallel(world, followers)


def _load_to_follow(settings: Settings, rank: int) -> World:
    """What the processes beside this one do first."""
    logs.configure(settings, "follower")
    return load_model(settings, rank)


def load_model(settings: Settings, rank: int = 0) -> World:
    """The model and its adapters, as settings describe them, on the GPU with number `rank` if there are so many.

    Raises:
        CosmoramaError: it cannot be had, or does not fit.
    """
    import torch

    from cosmorama.world.registry import load_world

    world = load_world(
        settings.model,
        dtype=None if settings.dtype == "auto" else settings.dtype,
        device=f"cuda:{rank}" if rank < torch.cuda.device_count() else None,
        offload=settings.offload,
        vae_tiling=settings.vae_tiling,
        quantize=settings.quantize,
        cache=settings.cache_path,
        download=not settings.disable_model_download,
    )
    if not settings.adapters:
        return world
    from cosmorama.world.adapters import AdaptedWorld

    return AdaptedWorld(world, settings.adapters)


def _preparer(settings: Settings) -> Preparer:
    from cosmorama.engine.prepare import Preparer
    from cosmorama.media.fetch import FetchPolicy

    policy = FetchPolicy(
        allow_urls=settings.allow_url_input,
        allow_private=settings.allow_private_urls,
        # Whoever sends a request is not on this machine: a path would read the server's own files.
        allow_files=False,
        max_bytes=settings.max_input_bytes,
        timeout_s=settings.url_timeout_s,
    )
    return Preparer(fetch=policy, upsampler=_upsampler(settings), captioner=_captioner(settings))


def _upsampler(settings: Settings) -> Upsampler | None:
    from cosmorama.text.endpoint import ChatEndpoint
    from cosmorama.text.upsampling import ChatUpsampler, unchanged

    if not settings.prompt_upsampling:
        return unchanged
    if settings.prompt_upsampling_endpoint_url is None:
        return None
    return ChatUpsampler(
        ChatEndpoint(
            str(settings.prompt_upsampling_endpoint_url),
            settings.prompt_upsampling_model or "",
            _revealed(settings.prompt_upsampling_api_key),
            settings.prompt_upsampling_timeout_s,
            settings.prompt_upsampling_max_tokens,
        )
    )


def _captioner(settings: Settings) -> Captioner:
    from cosmorama.text.captioning import ChatCaptioner, PixelCaptioner
    from cosmorama.text.endpoint import ChatEndpoint

    if settings.captioning_endpoint_url is None:
        return PixelCaptioner()
    return ChatCaptioner(
        ChatEndpoint(
            str(settings.captioning_endpoint_url),
            settings.captioning_model or "",
            _revealed(settings.captioning_api_key),
            settings.captioning_timeout_s,
            settings.captioning_max_tokens,
        )
    )


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
