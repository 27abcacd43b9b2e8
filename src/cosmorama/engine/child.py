"""A process that prepares the inputs of one request, and the one that all of them are forked from.

It is told over a socket what to prepare, and answers there: which input it reads, then what came of them, or what is
wrong with them. Its limits hold wherever it is, inside a decoder too.
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
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cosmorama.errors import CosmoramaError, InvalidRequestError, MediaError, Problem, WorkerError
from cosmorama.request import ResolvedRequest

if TYPE_CHECKING:
    from cosmorama.engine.prepare import PreparedRequest, Preparer

log = logging.getLogger(__name__)

_IMPORTED = ("PIL.Image", "PIL.ImageCms", "cosmorama.engine.prepare")
FORK, KILL = b"F", b"K"
ORDER = struct.Struct("!cQ")
ENDED = struct.Struct("!Qi")
_LENGTH = struct.Struct("!Q")
_NICENESS = 5
"""Added to that of the process with the model: what is prepared may be for one client, what is computed is for all."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one preparation may take, of processor time, address space and time, and how large its answer may be."""

    cpu_s: int
    memory_bytes: int
    wall_s: int
    answer_bytes: int


def main() -> None:
    """The process that the others are forked from: obeys orders from a socket, and ends with it."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the worker decides
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(fileno=int(sys.argv[1]))
    for name in _IMPORTED:
        importlib.import_module(name)
    from PIL import Image

    Image.init()
    preparer, setup = pickle.loads(receive(control, 1 << 30))  # noqa: S301  # the pipe of a process that this one started
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
            what, number = ORDER.unpack(order)
            if what == KILL and number in children:
                os.kill(children[number], signal.SIGKILL)
            elif what == FORK:
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    for end in (control, woken, wake):
                        end.close()
                    _child(socket.socket(fileno=descriptors[0]), preparer)
                os.close(descriptors[0])
                children[number] = pid


def _order(control: socket.socket) -> tuple[bytes, list[int]]:
    order, descriptors, _, _ = socket.recv_fds(control, ORDER.size, 1)
    if not order:
        raise EOFError
    return order + (exactly(control, ORDER.size - len(order)) if len(order) < ORDER.size else b""), descriptors


def _bury(children: dict[int, int], control: socket.socket) -> None:
    """Tell of every child that has ended how it did."""
    for number, pid in list(children.items()):
        gone, status = os.waitpid(pid, os.WNOHANG)
        if gone:
            del children[number]
            with suppress(OSError):
                control.sendall(ENDED.pack(number, os.waitstatus_to_exitcode(status)))


def _child(connection: socket.socket, preparer: Preparer) -> None:
    """Prepare one request, answer, and end."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.nice(_NICENESS)
        request, capabilities, allowance = pickle.loads(receive(connection, 1 << 40))  # noqa: S301  # the pipe of a process that this one started
        _limit(allowance)
        watched = replace(preparer, on_reading=lambda field: send(connection, _json({"reading": field})))
        try:
            prepared = watched(request, capabilities)
        except MemoryError:
            message = "takes more memory to read than is given to one input; send a smaller one"
            raise MediaError(_first_input(request), message, status=413) from None
        _send_answer(connection, prepared)
        code = 0
    except CosmoramaError as error:
        send(connection, _json({"error": packed(error)}))
        code = 0
    except Exception as error:
        log.exception("inputs cannot be prepared")
        send(connection, _json({"error": packed(WorkerError(f"the inputs failed: {type(error).__name__}"))}))
    finally:
        logging.shutdown()
        os._exit(code)


def _limit(allowance: Allowance) -> None:
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
    import numpy as np

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
    send(connection, _json(header))
    for clip in arrays.values():
        connection.sendall(np.ascontiguousarray(clip).data.cast("B"))


def packed(error: CosmoramaError) -> dict[str, Any]:
    """An error as plain values."""
    if isinstance(error, MediaError):
        return {"field": error.field, "message": error.message, "status": error.status}
    if isinstance(error, InvalidRequestError):
        return {"problems": [[p.field, _plain(p.value), p.accepted] for p in error.problems]}
    return {"message": str(error)}


def unpacked(error: dict[str, Any]) -> CosmoramaError:
    """The error again; never what its type is called by another process."""
    if "problems" in error:
        return InvalidRequestError(*(Problem(str(field), value, str(text)) for field, value, text in error["problems"]))
    if "field" in error:
        return MediaError(str(error["field"]), str(error["message"]), status=413 if error["status"] == 413 else 422)
    return WorkerError(str(error["message"]))


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, (str, int, float, bool)) else repr(value)


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def send(connection: socket.socket, message: bytes) -> None:
    """Send a message: its length, then its bytes."""
    connection.sendall(_LENGTH.pack(len(message)))
    connection.sendall(message)


def receive(connection: socket.socket, most: int) -> bytes:
    """The next message, of no more than so many bytes."""
    (length,) = _LENGTH.unpack(exactly(connection, _LENGTH.size))
    if length > most:
        raise ValueError("the message is too long")
    return exactly(connection, length)


def exactly(connection: socket.socket, length: int) -> bytes:
    """So many bytes."""
    buffer = bytearray(length)
    into(connection, memoryview(buffer))
    return bytes(buffer)


def into(connection: socket.socket, view: memoryview) -> None:
    """As many bytes as there is room for."""
    while len(view):
        received = connection.recv_into(view)
        if not received:
            raise EOFError
        view = view[received:]
