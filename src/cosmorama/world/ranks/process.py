"""A second process with the same model, which begins every request too and helps with it when it is told to."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from cosmorama.errors import CosmoramaError, ModelNotFoundError, WorkerError
from cosmorama.world.base import BrokenModelError, Inputs, Sampling, World
from cosmorama.world.faults import breaks_the_process, explained
from cosmorama.world.load.runtime import use_threads

log = logging.getLogger(__name__)

_MAIN = "from cosmorama.world.ranks.process import main; main()"
_LAST_WORDS_S = 1.0
"""How long a process that fails together with another may take to say why."""


@dataclass(frozen=True, slots=True)
class Apply:
    """Do something to the model; the function has to be picklable, so one of a module or a partial of one."""

    function: Callable[[World], None]


@dataclass(frozen=True, slots=True)
class Begin:
    """Begin a request, under a number."""

    number: int
    inputs: Inputs


@dataclass(frozen=True, slots=True)
class Do:
    """Call a method of a request's `Sampling` that takes latents.

    Attributes:
        method: Its name.
        arguments: What it takes besides.
        told: Whether the answer is what it returns.
        together: Whether the others wait for it within the network: a follower that fails at it ends.
    """

    number: int
    method: str
    latents: Tensor
    arguments: dict[str, Any] = field(default_factory=dict)
    told: bool = False
    together: bool = False


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget a request. Not answered."""

    number: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer to a command that failed; `last`: the process ends with it."""

    error: CosmoramaError
    last: bool = False


Command = Apply | Begin | Do


class Follower:
    """A process with a model of its own, and the pipe to it. Every command is answered, in order."""

    def __init__(self, load: Callable[[], World], *, threads: int | None = None) -> None:
        """Start it; it loads the model while the caller does, by a function that has to be picklable."""
        self._connection, theirs = Pipe()
        # Not multiprocessing.Process: the worker is a daemon of the server, and those may have no children.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _MAIN, str(theirs.fileno()), str(os.getpid())], pass_fds=[theirs.fileno()]
        )
        theirs.close()
        self._owed = 0
        self._forgotten: deque[int] = deque()
        self._send((load, threads))
        self._owed = 1

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ready(self) -> None:
        """Wait until its model is loaded.

        Raises:
            ModelNotFoundError: it cannot be.
        """
        try:
            self.receive()
        except (WorkerError, BrokenModelError) as error:
            raise ModelNotFoundError(f"the second process cannot load the model: {error}") from error

    def send(self, command: Command) -> None:
        """Send a command; answers that nobody fetched are dropped first.

        Raises:
            BrokenModelError: the process is gone.
        """
        while self._owed:
            self._answer()
        while self._forgotten:
            self._send(Drop(self._forgotten.popleft()))
        self._send(command)
        self._owed += 1

    def receive(self) -> Any:
        """The answer to the last command.

        Raises:
            WorkerError: it failed.
            NotEnoughMemoryError: it has too little memory.
            BrokenModelError: the process is gone.
        """
        answer = self._answer()
        if isinstance(answer, Failed):
            if answer.last:
                raise BrokenModelError(str(answer.error))
            raise answer.error
        return answer

    def failure(self) -> CosmoramaError | None:
        """With what it failed at the last command, if it has; asked when the others could not finish it.

        Raises:
            BrokenModelError: the process is gone, and has not said why.
        """
        if not self._owed or not self._connection.poll(_LAST_WORDS_S):
            return None
        answer = self._answer()
        return answer.error if isinstance(answer, Failed) else None

    def forget(self, number: int) -> None:
        """Let it drop a request before the next command. Callable at any time, also by the garbage collector."""
        self._forgotten.append(number)

    def close(self) -> None:
        """End it."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _send(self, message: object) -> None:
        try:
            _send(self._connection, message)
        except OSError as error:
            raise BrokenModelError("the second process is gone") from error

    def _answer(self) -> Any:
        try:
            answer = _receive(self._connection)
        except (EOFError, OSError) as error:
            raise BrokenModelError("the second process is gone") from error
        self._owed -= 1
        return answer


def _send(connection: Connection, message: object) -> None:
    # Not `connection.send`: torch teaches that one to pass tensors as shared memory, which only relatives can open.
    connection.send_bytes(pickle.dumps(message))


def _receive(connection: Connection) -> Any:
    return pickle.loads(connection.recv_bytes())  # noqa: S301  # the pipe of a process that this one started


def follow(connection: Connection) -> None:
    """What the follower does until its pipe ends, or until it fails at something that others wait for."""
    load, threads = _receive(connection)
    use_threads(threads)
    try:
        world: World = load()
    except Exception as error:  # noqa: BLE001  # it is raised in the process that waits for it
        _send(connection, Failed(WorkerError(f"{type(error).__name__}: {error}")))
        return
    _send(connection, None)
    requests: dict[int, tuple[Inputs, Sampling]] = {}
    while True:
        command: Command | Drop = _receive(connection)
        if isinstance(command, Drop):
            requests.pop(command.number, None)
            continue
        try:
            answer = _obey(world, requests, command)
        except Exception as error:
            log.exception("the second process failed at %s", type(command).__name__)
            device_failed = breaks_the_process(error)
            _send(connection, Failed(_explained(error, requests, command), last=device_failed))
            if isinstance(command, Apply) or getattr(command, "together", False) or device_failed:
                return  # the others wait within the network, and only this process's end tells them not to
        else:
            _send(connection, answer)


@torch.inference_mode()
def _obey(world: World, requests: dict[int, tuple[Inputs, Sampling]], command: Command) -> Tensor | None:
    if isinstance(command, Apply):
        command.function(world)
        return None
    inputs = command.inputs if isinstance(command, Begin) else requests[command.number][0]
    world.select(inputs.request.adapters)
    if isinstance(command, Begin):
        sampling = world.begin(inputs, world.encode_text)
        sampling.initial()  # some draw the rest of what they need after it
        requests[command.number] = (inputs, sampling)
        return None
    answer = getattr(requests[command.number][1], command.method)(command.latents.to(world.device), **command.arguments)
    return answer.cpu() if command.told else None


def _explained(error: Exception, requests: dict[int, tuple[Inputs, Sampling]], command: Command) -> CosmoramaError:
    inputs = None
    if isinstance(command, Begin):
        inputs = command.inputs
    elif not isinstance(command, Apply) and command.number in requests:
        inputs = requests[command.number][0]
    told = None if inputs is None else explained(error, inputs.request)
    return told or WorkerError(f"the second process failed: {type(error).__name__}: {error}")


def _end_with(parent: int) -> None:
    """End this process when the one that started it has ended, whatever this one waits for."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    """The follower's program; its arguments are the number of its end of the pipe, and its parent's process id."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the worker decides
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(int(sys.argv[2]),), daemon=True).start()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        follow(Connection(int(sys.argv[1])))
    logging.shutdown()
    # Not by way of torch.distributed's own end, which waits for the others.
    os._exit(0)
