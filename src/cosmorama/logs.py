"""Logs of the server and of its worker: for people as lines of text, for machines as JSON, with the job they are about.

Importing this costs nothing: the JSON library is imported when JSON is asked for.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, TextIO

from cosmorama.settings import Settings

_job: ContextVar[str | None] = ContextVar("cosmorama_job", default=None)


@contextmanager
def about(job: str) -> Iterator[None]:
    """Whatever is logged in here, and in tasks started in here, is about this job.

    Args:
        job: Its id, as it is or with the number of the attempt after a dot, as generations are named.
    """
    token = _job.set(job.partition(".")[0])
    try:
        yield
    finally:
        _job.reset(token)


def configure(settings: Settings, process: Literal["server", "worker", "follower", "reader", "replica"]) -> None:
    """Send everything that is logged to standard error in the format of the settings, other libraries' records too.

    What a library would write to the console with a handler of its own comes here instead, and so do Python's warnings.
    As JSON, what is printed comes here too, a record per line (loggers `stdout` and `stderr`); only what native code
    writes past Python does not.
    """
    console = sys.stderr.console if isinstance(sys.stderr, _Printed) else sys.stderr
    handler = logging.StreamHandler(console)
    handler.addFilter(_Context(process))
    handler.setFormatter(_json_formatter() if settings.log_format == "json" else _text_formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    # At every request it would say which URL it fetches, and those are the clients' own.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.captureWarnings(True)
    # Libraries attach their handlers and end propagation while they are imported: some before this, most after it.
    logging.Logger.callHandlers = _call_handlers  # type: ignore[method-assign, assignment]
    if settings.log_format == "json":
        sys.stdout, sys.stderr = _Printed("stdout", logging.INFO, console), _Printed("stderr", logging.WARNING, console)


_as_attached = logging.Logger.callHandlers


def _call_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
    """In place of `Logger.callHandlers`: the root's handlers stand for every other one that writes to the console."""
    root = logging.getLogger()
    handlers: dict[logging.Handler, None] = {}
    diverted = False
    at: logging.Logger | None = logger
    while at is not None:
        for handler in at.handlers:
            theirs = at is not root and _writes_to_console(handler)
            diverted |= theirs
            handlers.update(dict.fromkeys(root.handlers if theirs else (handler,)))
        at = at.parent if at.propagate else None
    if not diverted:
        _as_attached(logger, record)
        return
    for handler in handlers:
        if record.levelno >= handler.level:
            handler.handle(record)


def _writes_to_console(handler: logging.Handler) -> bool:
    consoles = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    return isinstance(handler, logging.StreamHandler) and any(handler.stream is console for console in consoles)


class _Printed(io.TextIOBase):
    """A standard stream whose every line becomes a record. Of a progress bar, that is how it looked at its end.

    Attributes:
        console: Where the records go in the end.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, name: str, level: int, console: TextIO) -> None:
        self.console = console
        self._log = logging.getLogger(name)
        self._level = level
        self._mine = threading.local()

    def write(self, text: str) -> int:
        if getattr(self._mine, "logging", False):  # the record itself could not be written, and this says why
            return self.console.write(text)
        *lines, self._mine.text = (getattr(self._mine, "text", "") + text).split("\n")
        self._mine.logging = True
        try:
            for line in lines:
                if seen := line.rstrip("\r").rpartition("\r")[2].rstrip():
                    self._log.log(self._level, "%s", seen)
        finally:
            self._mine.logging = False
        return len(text)

    def flush(self) -> None:
        self.console.flush()

    def fileno(self) -> int:
        return self.console.fileno()

    def writable(self) -> bool:
        return True


class _Context(logging.Filter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def filter(self, record: logging.LogRecord) -> bool:
        job = _job.get()
        record.__dict__.update(process_name=self._process, job=job, about=f" [{job}]" if job else "")
        return True


class _Lines(logging.Formatter):
    """One line per record, whatever a client called the path that it asked for; tracebacks come below."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        line = super().formatMessage(record).rstrip()
        return line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def _text_formatter() -> logging.Formatter:
    return _Lines("%(asctime)s %(levelname)s %(process_name)s %(name)s%(about)s %(message)s")


def _json_formatter() -> logging.Formatter:
    from pythonjsonlogger.core import RESERVED_ATTRS
    from pythonjsonlogger.json import JsonFormatter

    return JsonFormatter(
        ["levelname", "process_name", "name", "message", "job"],
        rename_fields={"levelname": "level", "process_name": "process", "name": "logger", "exc_info": "exception"},
        reserved_attrs=[*RESERVED_ATTRS, "about", "color_message"],
        timestamp="time",
    )
