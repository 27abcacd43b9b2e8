"""A call of a diffusers pipeline, advanced from outside: it stands still whenever its progress bar moves."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from threading import Semaphore, Thread
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from cosmorama.errors import WorkerError


class PausedPipeline:
    """A call of a pipeline that stands still whenever its progress bar moves.

    It runs in a thread of its own, but never at the same time as its owner: one of the two always waits for the other.
    When the call is dropped half-way, it unwinds as on an exception, and the thread ends before the drop is over.
    """

    def __init__(self, pipeline: Any, arguments: dict[str, Any]) -> None:
        self._turns = _Turns()
        call = copy.copy(pipeline)  # the modules are shared; what the pipeline notes about one call is not
        for name, component in pipeline.components.items():
            if isinstance(component, SchedulerMixin):
                setattr(call, name, copy.deepcopy(component))
        call.progress_bar = partial(_PausingBar, self._turns)
        # The thread must not refer to this object, or it would never be dropped.
        thread = Thread(target=_run, args=(self._turns, partial(call, **arguments)), name="pipeline", daemon=True)
        thread.start()
        self._drop = weakref.finalize(self, _drop, self._turns, thread)
        self._name = type(pipeline).__name__

    def begin(self) -> int:
        """Run up to the first step; how many steps there will be.

        Raises:
            WorkerError: the pipeline does not tell.
        """
        total = self._turns.resume()
        if self._turns.over or not isinstance(total, int) or total < 1:
            raise WorkerError(f"{self._name} does not report its steps, so it cannot be advanced by them")
        return total

    def step(self) -> None:
        """Take one step. A pipeline that came to its end earlier than it said stays there."""
        if not self._turns.over:
            self._turns.resume()

    def finish(self) -> Any:
        """What the call returns, as a tuple."""
        while not self._turns.over:
            self._turns.resume()
        self._drop()
        return self._turns.value


class _Turns:
    """Who runs: the owner or the call.

    Attributes:
        value: What the call handed over when it paused, or what it returned.
        over: Whether it is at its end.
        dropped: Whether it is to unwind.
    """

    def __init__(self) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        self.over = False
        self.dropped = False
        self._calls, self._owners = Semaphore(0), Semaphore(0)

    def resume(self) -> Any:
        """The owner's: let the call run until it pauses or ends; whatever it raised is raised here."""
        self._calls.release()
        self._owners.acquire()
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return self.value

    def pause(self, value: int | None = None) -> None:
        """The call's: let the owner run until it resumes."""
        self.value = value
        self._owners.release()
        self.await_owner()

    def await_owner(self) -> None:
        """The call's: wait for its turn."""
        self._calls.acquire()
        if self.dropped:
            raise _DroppedError

    def end(self) -> None:
        """The call's last word."""
        self.over = True
        self._owners.release()

    def drop(self) -> None:
        """The owner's: let the call unwind."""
        self.dropped = True
        self._calls.release()


class _DroppedError(BaseException):
    """Unwinds a call that nobody wants any more; pipelines do not catch it."""


def _run(turns: _Turns, call: Callable[[], Any]) -> None:
    try:
        turns.await_owner()
        with torch.inference_mode():
            turns.value = call()
    except _DroppedError:
        pass
    except BaseException as error:
        turns.error = error
    del call  # with the copied scheduler, before the owner goes on
    turns.end()


def _drop(turns: _Turns, thread: Thread) -> None:
    turns.drop()
    thread.join()


class _PausingBar:
    """Stands in for the progress bar of a pipeline: each movement lets the owner of the call run."""

    def __init__(self, turns: _Turns, iterable: Any = None, total: int | None = None) -> None:
        self._turns, self._iterable = turns, iterable
        if iterable is None:
            turns.pause(total)

    def __iter__(self) -> Iterator[Any]:
        self._turns.pause(len(self._iterable))
        for item in self._iterable:
            yield item
            self._turns.pause()

    def __enter__(self) -> _PausingBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: int = 1) -> None:
        """A step was taken."""
        self._turns.pause()

    def __getattr__(self, name: str) -> Callable[..., None]:
        return _ignored  # set_postfix, set_description and the rest of what tqdm's bars do


def _ignored(*_: object, **__: object) -> None:
    return None
