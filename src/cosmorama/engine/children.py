"""Processes that prepare inputs, one for each request, which can be ended at any moment and end by themselves.

Decoders are large, their inputs come from anybody, and neither a progressive picture nor a packet of a clip can be left
half-way by the thread that decodes it. A process can: it is given so much processor time, memory and time, and is
killed when its request ends before it does.

They are forked (`child`) from a small process that has imported what they need (not torch) and has no threads, so that
the start of one takes milliseconds. It is a process of its own because the one with the model has threads and a
device, which do not survive a fork.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from cosmorama.engine.child import ENDED, FORK, KILL, ORDER, Allowance, exactly, into, receive, send, unpacked
from cosmorama.errors import CancelledError, CosmoramaError, MediaError, WorkerError
from cosmorama.request import Capabilities, ResolvedRequest

if TYPE_CHECKING:
    from cosmorama.engine.prepare import PreparedRequest, Preparer

log = logging.getLogger(__name__)

_MAIN = "from cosmorama.engine.child import main; main()"
_MAX_HEADER = 1 << 20


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """What one preparation may take.

    Attributes:
        cpu_s: Processor time of all threads together, per clip that is read.
        picture_cpu_s: The same for a request without a clip.
        memory_bytes: Address space beside what the process starts with and what the answer takes.
        wall_s: Time, per picture and per clip; waiting for other servers included.
    """

    cpu_s: int = 120
    picture_cpu_s: int = 20
    memory_bytes: int = 4 << 30
    wall_s: int = 300

    def of(self, request: ResolvedRequest) -> Allowance:
        """What a request may take."""
        clips = (request.video is not None) + sum(1 for control in request.controls)
        frames = request.frames * request.width * request.height * 3 if clips else request.width * request.height * 3
        return Allowance(
            cpu_s=self.cpu_s * clips if clips else self.picture_cpu_s,
            memory_bytes=self.memory_bytes + 3 * frames * max(clips, 1),
            wall_s=self.wall_s * max(clips, 1),
            answer_bytes=frames * max(clips, 1) + (1 << 16),
        )


class Children:
    """Prepares requests in processes of their own. Thread-safe.

    Args:
        preparer: What each of them calls.
        limits: What each of them may take.
        setup: Called once in the process that they are forked from; has to be picklable.
    """

    def __init__(
        self, preparer: Preparer, limits: ChildLimits | None = None, setup: Callable[[], None] | None = None
    ) -> None:
        self._preparer = preparer
        self._limits = limits or ChildLimits()
        self._setup = setup
        self._lock = threading.Lock()
        self._parent: _Parent | None = None
        self._numbers: dict[str, int] = {}
        self._next = 0

    def start(self) -> None:
        """Start the process that the others are forked from, if it does not run; returns before it is ready."""
        with self._lock:
            self._running()

    def prepare(
        self,
        name: str,
        request: ResolvedRequest,
        capabilities: Capabilities,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> PreparedRequest:
        """Prepare a request; blocks until that is done, fails, or is stopped.

        Nobody wants it any more where `cancelled`, which is true before `stop` is called.

        Raises:
            MediaError: an input cannot be fetched or read, or takes too much.
            InvalidRequestError: as the preparer says.
            CancelledError: it was stopped.
            WorkerError: it could not be begun.
        """
        allowance = self._limits.of(request)
        ours, theirs = socket.socketpair()
        with ours:
            with theirs, self._lock:
                parent = self._running()
                self._next += 1
                number = self._numbers[name] = self._next
                ended = parent.fork(number, theirs)
            field = ""
            try:
                if cancelled():
                    raise CancelledError("cancelled")
                send(ours, pickle.dumps((request, capabilities, allowance)))
                while True:
                    header = json.loads(receive(ours, _MAX_HEADER))
                    if "reading" not in header:
                        return _answer(header, request, ours, allowance)
                    field = str(header["reading"])
            except (EOFError, OSError, ValueError):
                raise self._explained(name, ended, field, allowance) from None
            finally:
                with self._lock:
                    self._numbers.pop(name, None)
                    parent.kill(number)

    def stop(self, name: str) -> None:
        """End a preparation at once, if it is under way."""
        with self._lock:
            number = self._numbers.pop(name, None)
            if number is not None and self._parent is not None:
                self._parent.kill(number)

    def close(self) -> None:
        """End all of them."""
        with self._lock:
            if self._parent is not None:
                self._parent.close()
                self._parent = None

    def _running(self) -> _Parent:
        if self._parent is None or not self._parent.alive:
            self._parent = _Parent(self._preparer, self._setup)
        return self._parent

    def _explained(self, name: str, ended: Future[int], field: str, allowance: Allowance) -> CosmoramaError:
        """Why a process ended without an answer."""
        with self._lock:
            stopped = name not in self._numbers
        try:
            status = ended.result(timeout=10)
        except TimeoutError:
            return WorkerError("the process that prepares inputs does not answer")
        if stopped:
            return CancelledError("cancelled")
        if status == -signal.SIGXCPU:
            message = f"takes more than {allowance.cpu_s} s of processor time to read; send a smaller one"
            return MediaError(field or "prompt", message, status=413)
        if status == -signal.SIGALRM:
            message = f"was not fetched and read within {allowance.wall_s} s; send a smaller one"
            return MediaError(field or "prompt", message, status=413)
        log.warning("a process that prepared inputs ended with status %s while it read %s", status, field or "nothing")
        if field:
            return MediaError(field, "cannot be decoded: the decoder failed on it; encode it again")
        return WorkerError("the process that prepares inputs failed")


class _Parent:
    """The process that the others are forked from, as seen from the one with the model."""

    def __init__(self, preparer: Preparer, setup: Callable[[], None] | None) -> None:
        self.alive = True
        self._ended: dict[int, Future[int]] = {}
        self._control, theirs = socket.socketpair()
        # One thread each: OpenBLAS would start some when it is imported, and those do not survive a fork.
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        # Not multiprocessing.Process: the worker is a daemon of the server, and those may have no children.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _MAIN, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=environment
        )
        theirs.close()
        send(self._control, pickle.dumps((preparer, setup)))
        threading.Thread(target=self._listen, name="children", daemon=True).start()

    def fork(self, number: int, theirs: socket.socket) -> Future[int]:
        """Have a process started that serves the socket; resolves to its exit status once it has ended."""
        ended = self._ended[number] = Future()
        try:
            socket.send_fds(self._control, [ORDER.pack(FORK, number)], [theirs.fileno()])
        except OSError:
            self._lose()
        return ended

    def kill(self, number: int) -> None:
        """End a process, if it has not ended by itself."""
        if number in self._ended:
            with suppress(OSError):
                self._control.sendall(ORDER.pack(KILL, number))

    def close(self) -> None:
        """End all of them, and this one."""
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        self._process.kill()
        self._process.wait()

    def _listen(self) -> None:
        try:
            while True:
                number, status = ENDED.unpack(exactly(self._control, ENDED.size))
                if (ended := self._ended.pop(number, None)) is not None:
                    ended.set_result(status)
        except (EOFError, OSError):
            self._lose()

    def _lose(self) -> None:
        self.alive = False
        while self._ended:
            _, ended = self._ended.popitem()
            if not ended.done():
                ended.set_result(-signal.SIGKILL)


def _answer(
    header: dict[str, Any], request: ResolvedRequest, connection: socket.socket, allowance: Allowance
) -> PreparedRequest:
    """What a child prepared. It may have been taken over by what it decoded, so nothing of it is unpickled."""
    import numpy as np

    from cosmorama.engine.prepare import PreparedRequest

    if "error" in header:
        raise unpacked(header["error"])
    arrays: dict[str, Any] = {}
    left = allowance.answer_bytes
    for name, shape in header["arrays"]:
        sides = [int(side) for side in shape]
        if len(sides) != 4 or min(sides) < 1 or prod(sides) > left:
            raise ValueError("the answer is larger than what was asked for")
        clip = np.empty(sides, np.uint8)
        left -= clip.nbytes
        into(connection, clip.data.cast("B"))
        arrays[str(name)] = clip
    frames = arrays.pop("frames") if header["conditions"] else None
    target = request.target
    if target is not None and header["target"] is not None:
        target = replace(target, frames=int(header["target"][0]), fps=float(header["target"][1]))
    made = replace(request, frames=int(header["length"]), fps=float(header["fps"]), target=target)
    return PreparedRequest(made, str(header["prompt"]), frames, arrays, tuple(map(str, header["warnings"])))
