"""Logs of the server and of its worker: for people as lines of text, for machines as JSON, with the job they are about.

Importing this costs nothing: the JSON library is imported when JSON is asked for.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

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


def configure(settings: Settings, process: Literal["server", "worker"]) -> None:
    """Send the records of every logger, other libraries' too, to standard error in the format of the settings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Context(process))
    handler.setFormatter(_json_formatter() if settings.log_format == "json" else _text_formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    # At every request it would say which URL it fetches, and those are the clients' own.
    logging.getLogger("httpx").setLevel(logging.WARNING)


class _Context(logging.Filter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def filter(self, record: logging.LogRecord) -> bool:
        job = _job.get()
        record.__dict__.update(process_name=self._process, job=job, about=f" [{job}]" if job else "")
        return True


def _text_formatter() -> logging.Formatter:
    return logging.Formatter("%(asctime)s %(levelname)s %(process_name)s %(name)s%(about)s %(message)s")


def _json_formatter() -> logging.Formatter:
    from pythonjsonlogger.core import RESERVED_ATTRS
    from pythonjsonlogger.json import JsonFormatter

    return JsonFormatter(
        ["levelname", "process_name", "name", "message", "job"],
        rename_fields={"levelname": "level", "process_name": "process", "name": "logger", "exc_info": "exception"},
        reserved_attrs=[*RESERVED_ATTRS, "about", "color_message"],
        timestamp="time",
    )
