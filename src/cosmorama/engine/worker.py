"""The process that owns the model: commands come in over a pipe, the engine is stepped, events go out.

The parent imports this module for its messages, so nothing here imports torch before `main` runs in the child.
"""

from __future__ import annotations

import logging
import os
import signal
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from cosmorama import logs
from cosmorama.engine.outcome import Outcome
from cosmorama.engine.scheduler import Priority
from cosmorama.errors import CosmoramaError, GuardrailUnavailableError
from cosmorama.progress import Progress
from cosmorama.request import Capabilities, GenerationRequest
from cosmorama.settings import Settings
from cosmorama.world.load.runtime import torch_environment

if TYPE_CHECKING:
    from cosmorama.engine.engine import Engine

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Submit:
    """Generate `request` into the file `output`; it was accepted `age_s` seconds ago."""

    job: str
    request: GenerationRequest
    output: Path
    priority: Priority = "normal"
    age_s: float = 0.0
    owner: str = ""


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
class Check:
    """Ask the guardrails about a text that no job has, called as in `Decision.on`."""

    name: str
    text: str
    called: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Give up everything and exit."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded, and runs on a device of this type."""

    capabilities: Capabilities
    device: str = "cpu"


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


@dataclass(frozen=True, slots=True)
class Checked:
    """What the guardrails say of a text; None: it passes."""

    name: str
    refused: CosmoramaError | None


@dataclass(frozen=True, slots=True)
class Broken:
    """The model cannot go on; the process exits, and what it holds has to be made by another."""

    reason: str


Command = Submit | Watch | Cancel | Check | Stop
Event = Ready | LoadFailed | Advanced | Previewed | Finished | Checked | Broken


def main(connection: Connection, settings: Settings) -> None:
    """Load the model and serve until told to stop or the parent is gone. The target of the child process."""
    # Both may be sent to the whole process group; what happens to the worker then is the parent's decision.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # The model takes every core it gets; the process that answers clients goes first.
    os.nice(5)
    logs.configure(settings, "worker")
    os.environ.update(torch_environment(os.environ))
    try:
        from cosmorama.engine.build import build_engine
        from cosmorama.world.families import makers

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
        connection.send(Ready(replace(engine.capabilities, elsewhere=makers()), engine.device.type))
        while serve_once(engine, connection):
            pass
        code = 0
    except (EOFError, BrokenPipeError, ConnectionResetError):
        log.warning("the server is gone; the worker follows")
        code = 0
    except Exception as error:
        log.exception("the engine failed")
        with suppress(OSError):
            _report(engine, connection)
            connection.send(Broken(f"{type(error).__name__}: {error}"))
        code = 1
    with suppress(Exception):  # on a device that has failed nothing can be relied on
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
            case Check(name, text, called):
                connection.send(Checked(name, _refusal(engine, text, called)))
            case Submit():
                _submit(engine, connection, command)
    advanced = engine.step()
    _report(engine, connection)
    if not advanced and engine.pending:
        engine.wait(connection)
    return True


def _refusal(engine: Engine, text: str, called: str) -> CosmoramaError | None:
    try:
        engine.check(text, called)
    except CosmoramaError as error:
        return error
    except Exception as error:  # a guardrail that fails lets nothing pass
        log.exception("a guardrail failed")
        return GuardrailUnavailableError(f"a guardrail failed: {type(error).__name__}")
    return None


def _report(engine: Engine, connection: Connection) -> None:
    for job, result in engine.finished():
        connection.send(Finished(job, result))


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
            owner=command.owner,
        )
    except CosmoramaError as error:
        connection.send(Finished(command.job, error))
