"""A call of a diffusers pipeline, advanced from outside (a coroutine): it stands still when its progress bar moves."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from greenlet import error as GreenletError
from greenlet import getcurrent, greenlet

from cosmorama.errors import WorkerError

_LOOKED_BACK = 64
"""Frames of the machine's stack that torch looks back through for each of its errors (c10's get_backtrace)."""

_RAISED_IN = "raised in "


def raised_in(error: BaseException) -> str:
    """The module whose code raised an error inside of a pipeline's call."""
    notes = (note.partition(_RAISED_IN)[2] for note in getattr(error, "__notes__", ()))
    return next(filter(None, notes), "")


class PausedPipeline:
    """A call of a pipeline that stands still whenever its progress bar moves.

    It has a stack of its own (a greenlet) in its owner's thread. A thread would have to be joined when the call is
    dropped, from wherever the garbage collector happens to run: with a lock that an ending thread takes as well, such
    as that of `threading`'s list of threads, the two would wait for each other for ever.

    When the call is dropped half-way, it unwinds as on an exception.
    """

    def __init__(self, pipeline: Any, arguments: dict[str, Any]) -> None:
        call = copy.copy(pipeline)  # the modules are shared; what the pipeline notes about one call is not
        for name, component in pipeline.components.items():
            if isinstance(component, SchedulerMixin):
                setattr(call, name, copy.deepcopy(component))
        call.progress_bar = _PausingBar
        self._call = greenlet(partial(_beneath, partial(call, **arguments), _LOOKED_BACK))
        self._call.gr_context = copy_context()
        self._value: Any = None
        self._error: Exception | None = None
        self._name = type(pipeline).__name__

    def begin(self) -> int:
        """Run up to the first step; how many steps there will be.

        Raises:
            WorkerError: the pipeline does not tell.
        """
        total = self._resume()
        if self._call.dead or not isinstance(total, int) or total < 1:
            raise WorkerError(f"{self._name} does not report its steps, so it cannot be advanced by them")
        return total

    def step(self) -> None:
        """Take one step. A pipeline that came to its end earlier than it said stays there."""
        self._resume()

    def finish(self) -> Any:
        """What the call returns, as a tuple."""
        while not self._call.dead:
            self._resume()
        return self._resume()

    def close(self) -> None:
        """Drop the call: it unwinds now. Nothing happens if it is at its end."""
        # Its context managers put torch's modes back to what they were when it began, not to what they are now.
        if not self._call.dead:
            with torch.inference_mode():
                self._call.throw()

    def __del__(self) -> None:
        with suppress(
            AttributeError, GreenletError
        ):  # never begun; or dropped in another thread, then it ends in its own
            self.close()

    def _resume(self) -> Any:
        """Let the call run until it pauses or ends; what it raises is raised here, and whenever it is asked again."""
        if self._error is not None:
            raise self._error
        if not self._call.dead:
            try:
                with torch.inference_mode():
                    self._call.parent = getcurrent()
                    self._value = self._call.switch()
            except Exception as error:
                *_, (last, _) = traceback.walk_tb(error.__traceback__)
                error.add_note(f"{_RAISED_IN}{last.f_globals.get('__name__')}")
                self._error = error.with_traceback(None)  # which holds the failed step's tensors
                raise
        return self._value


def _beneath(call: Callable[[], Any], frames: int) -> Any:
    """Make a call from beneath so many frames of the machine's stack, each of a call from C to Python.

    Below the call's own frames lies whatever its owner does now, and not what began it: who walks down the stack that
    far finds no frames there, and crashes.
    """
    return next(map(partial(_beneath, call), (frames - 1,))) if frames else call()


class _PausingBar:
    """Stands in for the progress bar of a pipeline: each movement lets the owner of the call run."""

    def __init__(self, iterable: Any = None, total: int | None = None) -> None:
        self._iterable = iterable
        if iterable is None:
            _pause(total)

    def __iter__(self) -> Iterator[Any]:
        _pause(len(self._iterable))
        for item in self._iterable:
            yield item
            _pause()

    def __enter__(self) -> _PausingBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: int = 1) -> None:
        """A step was taken."""
        _pause()

    def __getattr__(self, name: str) -> Callable[..., None]:
        return _ignored  # set_postfix, set_description and the rest of what tqdm's bars do


def _pause(value: int | None = None) -> None:
    parent = getcurrent().parent
    assert parent is not None
    parent.switch(value)


def _ignored(*_: object, **__: object) -> None:
    return None
