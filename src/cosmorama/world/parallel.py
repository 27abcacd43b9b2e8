"""One request on two devices: the prompt is evaluated on one and, at the same time, the negative prompt on the other.

Guidance asks the same network twice at every level. `GuidanceParallel` has a second process with the same model, the
follower, which begins every request too and evaluates the negative half while the first evaluates the other. They meet
once per level, over a pipe; nothing is exchanged inside of the network, so it works for every family that is asked for
its estimate, and the numbers are those of one process, bit for bit on the same kind of device.
"""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from cosmorama.diffusion.guidance import Guidance
from cosmorama.diffusion.schedule import Schedule
from cosmorama.errors import ModelNotFoundError, WorkerError
from cosmorama.request import Adapter, Capabilities
from cosmorama.world.base import Acting, Adaptable, Chunked, Inputs, ReadText, Sampling, Stepper, TextEmbedding, World

log = logging.getLogger(__name__)

_MAIN = "from cosmorama.world.parallel import main; main()"


@dataclass(frozen=True, slots=True)
class Begin:
    """Begin a request, under a number."""

    number: int
    inputs: Inputs


@dataclass(frozen=True, slots=True)
class Denoise:
    """Evaluate the negative prompt of a request at a level; the only command that is answered with a tensor."""

    number: int
    latents: Tensor
    index: int


@dataclass(frozen=True, slots=True)
class NextChunk:
    """Go on to the next clip of a request that makes several, from the clean latents of the one before."""

    number: int
    latents: Tensor


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget a request. Not answered."""

    number: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer to a command that failed."""

    reason: str


Command = Begin | Denoise | NextChunk | Drop


class Follower:
    """A process with a model of its own, and the pipe to it. Every command but `Drop` is answered, in order."""

    def __init__(self, load: Callable[[], World], *, threads: int | None = None) -> None:
        """Start it; it loads the model while the caller does.

        Args:
            load: Loads the model; has to be picklable, so a function of a module or a partial of one.
            threads: CPU threads it may use; None: all.
        """
        self._connection, theirs = Pipe()
        # Not multiprocessing.Process: the worker is a daemon of the server, and those may have no children.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _MAIN, str(theirs.fileno())], pass_fds=[theirs.fileno()]
        )
        theirs.close()
        self._owed = 0
        self._send((load, threads))
        self._owed = 1

    def ready(self) -> None:
        """Wait until its model is loaded.

        Raises:
            ModelNotFoundError: it cannot be.
        """
        try:
            self.receive()
        except WorkerError as error:
            raise ModelNotFoundError(f"the second process cannot load the model: {error}") from error

    def send(self, command: Command) -> None:
        """Send a command; answers that nobody fetched are dropped first."""
        while self._owed:
            self._answer()
        self._send(command)
        self._owed += not isinstance(command, Drop)

    def receive(self) -> Any:
        """The answer to the last command.

        Raises:
            WorkerError: it failed.
        """
        answer = self._answer()
        if isinstance(answer, Failed):
            raise WorkerError(answer.reason)
        return answer

    def close(self) -> None:
        """End it: it stops when its pipe does."""
        self._connection.close()
        self._process.wait()

    def _send(self, message: object) -> None:
        try:
            _send(self._connection, message)
        except OSError as error:
            raise EOFError("the second process is gone") from error

    def _answer(self) -> Any:
        # If it is gone, recv raises EOFError: the worker ends on that as when the server is gone, and is restarted.
        answer = _receive(self._connection)
        self._owed -= 1
        return answer


class GuidanceParallel:
    """A world model whose negative evaluations happen in another process. It has every adapter that the model has."""

    def __init__(self, world: World, follower: Follower) -> None:
        self.world = world
        self._follower = follower
        self._numbers = count()

    @property
    def capabilities(self) -> Capabilities:
        """The model's."""
        return self.world.capabilities

    def select(self, adapters: tuple[Adapter, ...]) -> None:
        """Select them here; the follower selects those of the request it is asked about."""
        if isinstance(self.world, Adaptable):
            self.world.select(adapters)

    def encode_text(self, prompt: str) -> TextEmbedding:
        """Read a prompt."""
        return self.world.encode_text(prompt)

    def begin(self, inputs: Inputs, read: ReadText) -> Sampling:
        """Begin the request in both processes.

        What samples by itself, and what has no guidance, is made in this one alone.
        """
        number = next(self._numbers)
        self._follower.send(Begin(number, inputs))
        try:
            sampling = self.world.begin(inputs, read)
        except Exception:
            self._follower.send(Drop(number))
            raise
        self._follower.receive()
        if isinstance(sampling, Stepper) or sampling.guidance_weight == 1:
            self._follower.send(Drop(number))
            return sampling
        if isinstance(sampling, Chunked):
            return _SharedChunks(sampling, sampling, inputs, self._follower, number)
        return _Shared(sampling, inputs, self._follower, number)


class _Shared:
    """A request that two processes work on."""

    def __init__(self, sampling: Sampling, inputs: Inputs, follower: Follower, number: int) -> None:
        self._sampling, self._follower, self._number = sampling, follower, number
        request = inputs.request
        self._guidance = Guidance(sampling.guidance_weight, request.guidance_interval, request.guidance_rescale)
        self._asked: int | None = None
        weakref.finalize(self, _forget, follower, number).atexit = False

    @property
    def schedule(self) -> Schedule:
        """The request's levels."""
        return self._sampling.schedule

    @property
    def guidance_weight(self) -> float:
        """The request's."""
        return self._sampling.guidance_weight

    def initial(self) -> Tensor:
        """The latents at the first level."""
        return self._sampling.initial()

    def denoise(self, latents: Tensor, index: int, *, negative: bool = False) -> Tensor:
        """Estimate the clean latents; the follower begins with the negative half as soon as the other is asked for."""
        if negative:
            if self._asked != index:
                return self._sampling.denoise(latents, index, negative=True)
            self._asked = None
            answer: Tensor = self._follower.receive()
            return answer.to(latents.device)
        if self._guidance.acts_at(index, self.schedule.steps):
            self._follower.send(Denoise(self._number, latents.cpu(), index))
            self._asked = index
        return self._sampling.denoise(latents, index)

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """Frames in chunks."""
        return self._sampling.decode(latents)

    def actions(self, latents: Tensor) -> Tensor | None:
        """The actions in clean latents, where there are some."""
        return self._sampling.actions(latents) if isinstance(self._sampling, Acting) else None


class _SharedChunks(_Shared):
    """A request of several clips that two processes work on."""

    def __init__(self, chunked: Chunked, sampling: Sampling, inputs: Inputs, follower: Follower, number: int) -> None:
        super().__init__(sampling, inputs, follower, number)
        self._chunked = chunked

    @property
    def chunks(self) -> int:
        """How many."""
        return self._chunked.chunks

    def next_chunk(self, latents: Tensor) -> Tensor:
        """The next one's latents at the first level."""
        self._follower.send(NextChunk(self._number, latents.cpu()))
        first = self._chunked.next_chunk(latents)
        self._follower.receive()
        return first


def _forget(follower: Follower, number: int) -> None:
    with suppress(EOFError, OSError):  # it is gone already, and so is the request
        follower.send(Drop(number))


def _send(connection: Connection, message: object) -> None:
    # Not `connection.send`: torch teaches that one to pass tensors as shared memory, which only relatives can open.
    connection.send_bytes(pickle.dumps(message))


def _receive(connection: Connection) -> Any:
    return pickle.loads(connection.recv_bytes())


def follow(connection: Connection) -> None:
    """What the follower does until its pipe ends."""
    load, threads = _receive(connection)
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        world: World = load()
    except Exception as error:
        _send(connection, Failed(f"{type(error).__name__}: {error}"))
        return
    _send(connection, None)
    requests: dict[int, tuple[Inputs, Sampling]] = {}
    while True:
        command: Command = _receive(connection)
        if isinstance(command, Drop):
            requests.pop(command.number, None)
            continue
        try:
            answer = _obey(world, requests, command)
        except Exception as error:
            log.exception("the second process failed at %s", type(command).__name__)
            _send(connection, Failed(f"the second process failed: {type(error).__name__}: {error}"))
        else:
            _send(connection, answer)


@torch.inference_mode()
def _obey(
    world: World, requests: dict[int, tuple[Inputs, Sampling]], command: Begin | Denoise | NextChunk
) -> Tensor | None:
    inputs = command.inputs if isinstance(command, Begin) else requests[command.number][0]
    if isinstance(world, Adaptable):
        world.select(inputs.request.adapters)
    if isinstance(command, Begin):
        sampling = world.begin(inputs, world.encode_text)
        sampling.initial()  # some draw the rest of what they need after it
        requests[command.number] = (inputs, sampling)
        return None
    sampling = requests[command.number][1]
    latents = command.latents.to(_device_of(world))
    if isinstance(command, NextChunk):
        assert isinstance(sampling, Chunked)
        sampling.next_chunk(latents)
        return None
    # Some remember at the negative evaluation what they saw at the other; both belong to a level.
    return sampling.denoise(latents, command.index, negative=True).cpu()


def _device_of(world: Any) -> torch.device:
    inner = getattr(world, "world", world)
    parts = getattr(inner, "parts", inner)
    device = getattr(parts, "device", None) or getattr(getattr(parts, "transformer", None), "device", None)
    return torch.device("cpu") if device is None else torch.device(device)


def main() -> None:
    """The follower's program; its argument is the number of its end of the pipe."""
    logging.basicConfig(level=os.environ.get("COSMORAMA_LOG_LEVEL", "info").upper())
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        follow(Connection(int(sys.argv[1])))
