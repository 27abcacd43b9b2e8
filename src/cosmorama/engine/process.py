"""A child process behind a pipe, served by two threads so that the event loop never waits for either end."""

from __future__ import annotations

import asyncio
import atexit
import logging
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cosmorama.engine import worker
from cosmorama.settings import Settings

log = logging.getLogger(__name__)


class WorkerProcess:
    """One life of the worker. Make it inside a running event loop, on which `on_event` is then called.

    Attributes:
        ended: Resolves to the exit code when the process is gone and every event it sent has been delivered.
    """

    def __init__(self, settings: Settings, on_event: Callable[[worker.Event], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = self._loop.create_future()
        self._on_event = on_event
        context = multiprocessing.get_context("spawn")
        self._connection, self._child_end = context.Pipe()
        self._process = context.Process(
            target=worker.main, args=(self._child_end, settings), name="cosmorama-worker", daemon=True
        )
        self._commands: queue.SimpleQueue[worker.Command | None] = queue.SimpleQueue()

    @property
    def pid(self) -> int | None:
        """The process id, once started."""
        return self._process.pid

    @property
    def processor_s(self) -> float:
        """Seconds of processor time that it has used; 0 where that is not known."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, IndexError, ValueError):  # ended meanwhile, or not Linux
            return 0.0

    def start(self) -> None:
        """Start the process; blocks for a moment."""
        self._process.start()
        atexit.register(self.kill)  # multiprocessing would end it by a signal that it ignores, and wait for its end
        # With the parent's copy open, the pipe would not end when the child does.
        self._child_end.close()
        threading.Thread(target=self._read, name="worker-events", daemon=True).start()
        threading.Thread(target=self._write, name="worker-commands", daemon=True).start()

    def send(self, command: worker.Command) -> None:
        """Send a command, in order and later; never blocks. Lost if the process is gone."""
        self._commands.put(command)

    def kill(self) -> None:
        """End the process at once, if it runs."""
        if self._process.pid is not None:
            self._process.kill()

    def _read(self) -> None:
        try:
            while True:
                self._call(self._on_event, self._connection.recv())
        except (EOFError, OSError):
            pass
        except Exception:
            log.exception("the worker sent something that cannot be read")
            self._process.kill()
        self._process.join()
        atexit.unregister(self.kill)
        self._commands.put(None)
        self._call(self._end, self._process.exitcode or 0)

    def _end(self, code: int) -> None:
        if not self.ended.done():
            self.ended.set_result(code)

    def _write(self) -> None:
        with suppress(OSError):
            while (command := self._commands.get()) is not None:
                self._connection.send(command)

    def _call(self, function: Callable[..., None], argument: object) -> None:
        # The loop may have been closed while this thread was waiting.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, argument)
