"""Processes that prepare inputs, one for each request, which can be ended at any moment and end by themselves.

Decoders are large, their inputs come from anybody, and neither a progressive picture nor a packet of a clip can be left
half-way by the thread that decodes it. A process can: it is given so much processor time, memory and time, and is
killed when its request ends before it does.

They are forked from a small process that has imported what they need (not torch) and has no threads, so that the start
of one takes milliseconds. It is a process of its own because the one with the model has threads and a device, which do
not survive a fork.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import pickle
import resource
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from cosmorama.errors import CancelledError, CosmoramaError, InvalidRequestError, MediaError, Problem, WorkerError
from cosmorama.request import Capabilities, ResolvedRequest

if TYPE_CHECKING:
    from cosmorama.engine.prepare import PreparedRequest, Preparer

log = logging.getLogger(__name__)

_MAIN = "from cosmorama.engine.children import main; main()"
_IMPORTED = ("PIL.Image", "PIL.ImageCms", "cosmorama.engine.prepare")
_FORK, _KILL = b"F", b"K"
_ORDER = struct.Struct("!cQ")
_ENDED = struct.Struct("!Qi")
_LENGTH = struct.Struct("!Q")
_MAX_HEADER = 1 << 20
_NICENESS = 5
"""Added to that of the process with the model: what is prepared may be for one client, what is computed is for all."""


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

    def of(self, request: ResolvedRequest) -> _Allowance:
        """What a request may take."""
        clips = (request.video is not None) + sum(1 for control in request.controls)
        frames = request.frames * request.width * request.height * 3 if clips else request.width * request.height * 3
        return _Allowance(
            cpu_s=self.cpu_s * clips if clips else self.picture_cpu_s,
            memory_bytes=self.memory_bytes + 3 * frames * max(clips, 1),
            wall_s=self.wall_s * max(clips, 1),
            answer_bytes=frames * max(clips, 1) + (1 << 16),
        )


@dataclass(frozen=True, slots=True)
class _Allowance:
    cpu_s: int
    memory_bytes: int
    wall_s: int
    answer_bytes: int


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

        Args:
            name: For `stop`; unique among those under way.
            request: Resolved.
            capabilities: What the model takes.
            cancelled: Whether nobody wants it any more: true before `stop` is called.

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
                _send(ours, pickle.dumps((request, capabilities, allowance)))
                while True:
                    header = json.loads(_receive(ours, _MAX_HEADER))
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

    def _explained(self, name: str, ended: Future[int], field: str, allowance: _Allowance) -> CosmoramaError:
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
        _send(self._control, pickle.dumps((preparer, setup)))
        threading.Thread(target=self._listen, name="children", daemon=True).start()

    def fork(self, number: int, theirs: socket.socket) -> Future[int]:
        """Have a process started that serves the socket; resolves to its exit status once it has ended."""
        ended = self._ended[number] = Future()
        try:
            socket.send_fds(self._control, [_ORDER.pack(_FORK, number)], [theirs.fileno()])
        except OSError:
            self._lose()
        return ended

    def kill(self, number: int) -> None:
        """End a process, if it has not ended by itself."""
        if number in self._ended:
            with suppress(OSError):
                self._control.sendall(_ORDER.pack(_KILL, number))

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
                number, status = _ENDED.unpack(_exactly(self._control, _ENDED.size))
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


def main() -> None:
    """The process that the others are forked from: obeys orders from a socket, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the worker decides
    control = socket.socket(fileno=int(sys.argv[1]))
    for name in _IMPORTED:
        importlib.import_module(name)
    from PIL import Image

    Image.init()
    preparer, setup = pickle.loads(_receive(control, 1 << 30))  # noqa: S301  # the pipe of a process that this one started
    if setup is not None:
        setup()
    woken, wake = socket.socketpair()
    for end in (woken, wake):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    children: dict[int, int] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if woken in ready:
                with suppress(BlockingIOError):
                    woken.recv(4096)
                _bury(children, control)
            if control not in ready:
                continue
            try:
                order, descriptors = _order(control)
            except (EOFError, OSError):
                for pid in children.values():
                    os.kill(pid, signal.SIGKILL)
                os._exit(0)
            what, number = _ORDER.unpack(order)
            if what == _KILL and number in children:
                os.kill(children[number], signal.SIGKILL)
            elif what == _FORK:
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    for end in (control, woken, wake):
                        end.close()
                    _child(socket.socket(fileno=descriptors[0]), preparer)
                os.close(descriptors[0])
                children[number] = pid


def _order(control: socket.socket) -> tuple[bytes, list[int]]:
    order, descriptors, _, _ = socket.recv_fds(control, _ORDER.size, 1)
    if not order:
        raise EOFError
    return order + (_exactly(control, _ORDER.size - len(order)) if len(order) < _ORDER.size else b""), descriptors


def _bury(children: dict[int, int], control: socket.socket) -> None:
    """Tell of every child that has ended how it did."""
    for number, pid in list(children.items()):
        gone, status = os.waitpid(pid, os.WNOHANG)
        if gone:
            del children[number]
            with suppress(OSError):
                control.sendall(_ENDED.pack(number, os.waitstatus_to_exitcode(status)))


def _child(connection: socket.socket, preparer: Preparer) -> None:
    """Prepare one request, answer, and end."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.nice(_NICENESS)
        request, capabilities, allowance = pickle.loads(_receive(connection, 1 << 40))  # noqa: S301  # the pipe of a process that this one started
        _limit(allowance)
        watched = replace(preparer, on_reading=lambda field: _send(connection, _json({"reading": field})))
        try:
            prepared = watched(request, capabilities)
        except MemoryError:
            message = "takes more memory to read than is given to one input; send a smaller one"
            raise MediaError(_first_input(request), message, status=413) from None
        _send_answer(connection, prepared)
        code = 0
    except CosmoramaError as error:
        _send(connection, _json({"error": _packed(error)}))
        code = 0
    except Exception as error:
        log.exception("inputs cannot be prepared")
        _send(connection, _json({"error": _packed(WorkerError(f"the inputs failed: {type(error).__name__}"))}))
    finally:
        logging.shutdown()
        os._exit(code)


def _limit(allowance: _Allowance) -> None:
    """Limits that hold wherever the process is, inside a decoder too: it is ended by a signal, or gets no memory."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, allowance.wall_s)
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = int(used.ru_utime + used.ru_stime) + allowance.cpu_s
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 2))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):  # there is no such file on macOS, where the limit is not kept either
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + allowance.memory_bytes, now + allowance.memory_bytes))


def _first_input(request: ResolvedRequest) -> str:
    return "image" if request.image is not None else "video" if request.video is not None else "controls"


def _send_answer(connection: socket.socket, prepared: PreparedRequest) -> None:
    arrays = {
        name: clip for name, clip in (("frames", prepared.frames), *prepared.controls.items()) if clip is not None
    }
    target = prepared.request.target
    header = {
        "prompt": prepared.prompt,
        "warnings": list(prepared.warnings),
        "length": prepared.request.frames,
        "fps": prepared.request.fps,
        "target": None if target is None else [target.frames, target.fps],
        "conditions": prepared.frames is not None,
        "arrays": [[name, list(clip.shape)] for name, clip in arrays.items()],
    }
    _send(connection, _json(header))
    for clip in arrays.values():
        connection.sendall(np.ascontiguousarray(clip).data.cast("B"))


def _answer(
    header: dict[str, Any], request: ResolvedRequest, connection: socket.socket, allowance: _Allowance
) -> PreparedRequest:
    """What a child prepared. It may have been taken over by what it decoded, so nothing of it is unpickled."""
    from cosmorama.engine.prepare import PreparedRequest

    if "error" in header:
        raise _unpacked(header["error"])
    arrays: dict[str, Any] = {}
    left = allowance.answer_bytes
    for name, shape in header["arrays"]:
        sides = [int(side) for side in shape]
        if len(sides) != 4 or min(sides) < 1 or prod(sides) > left:
            raise ValueError("the answer is larger than what was asked for")
        clip = np.empty(sides, np.uint8)
        left -= clip.nbytes
        _into(connection, clip.data.cast("B"))
        arrays[str(name)] = clip
    frames = arrays.pop("frames") if header["conditions"] else None
    target = request.target
    if target is not None and header["target"] is not None:
        target = replace(target, frames=int(header["target"][0]), fps=float(header["target"][1]))
    made = replace(request, frames=int(header["length"]), fps=float(header["fps"]), target=target)
    return PreparedRequest(made, str(header["prompt"]), frames, arrays, tuple(map(str, header["warnings"])))


def _packed(error: CosmoramaError) -> dict[str, Any]:
    if isinstance(error, MediaError):
        return {"field": error.field, "message": error.message, "status": error.status}
    if isinstance(error, InvalidRequestError):
        return {"problems": [[p.field, _plain(p.value), p.accepted] for p in error.problems]}
    return {"message": str(error)}


def _unpacked(error: dict[str, Any]) -> CosmoramaError:
    if "problems" in error:
        return InvalidRequestError(*(Problem(str(field), value, str(text)) for field, value, text in error["problems"]))
    if "field" in error:
        return MediaError(str(error["field"]), str(error["message"]), status=413 if error["status"] == 413 else 422)
    return WorkerError(str(error["message"]))


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, (str, int, float, bool)) else repr(value)


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _send(connection: socket.socket, message: bytes) -> None:
    connection.sendall(_LENGTH.pack(len(message)))
    connection.sendall(message)


def _receive(connection: socket.socket, most: int) -> bytes:
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if length > most:
        raise ValueError("the message is too long")
    return _exactly(connection, length)


def _exactly(connection: socket.socket, length: int) -> bytes:
    buffer = bytearray(length)
    _into(connection, memoryview(buffer))
    return bytes(buffer)


def _into(connection: socket.socket, view: memoryview) -> None:
    while len(view):
        received = connection.recv_into(view)
        if not received:
            raise EOFError
        view = view[received:]
