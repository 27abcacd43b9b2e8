"""Which inputs are being prepared: beside the generations that compute, and never in their way."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from cosmorama.engine.prepare import PreparedRequest
from cosmorama.engine.scheduler import PREPARING, PREPARING_PER_OWNER


@dataclass(slots=True, eq=False)
class _Preparation:
    name: str
    owner: str
    prepare: Callable[[], PreparedRequest]
    future: Future[PreparedRequest] = field(default_factory=Future)


class Preparing:
    """Runs preparations in threads, so many at once and so many of an owner; the rest waits in the order it came.

    Args:
        stop: Ends the preparation of that name, wherever it is; its thread then fails soon.
        slots, per_owner: How many are under way at once, and of one owner.
    """

    def __init__(
        self, stop: Callable[[str], None], *, slots: int = PREPARING, per_owner: int = PREPARING_PER_OWNER
    ) -> None:
        self._stop = stop
        self._slots, self._per_owner = slots, per_owner
        self._lock = threading.Lock()
        self._waiting: list[_Preparation] = []
        self._running: dict[str, _Preparation] = {}

    def begin(self, name: str, owner: str, prepare: Callable[[], PreparedRequest]) -> Future[PreparedRequest]:
        """Prepare as soon as there is room; the future has the result or the error. "" is an owner like others."""
        preparation = _Preparation(name, owner, prepare)
        with self._lock:
            self._waiting.append(preparation)
        self._start_next()
        return preparation.future

    def drop(self, name: str) -> None:
        """Nobody wants it any more: it is not begun, or is ended; its place is free at once."""
        with self._lock:
            self._waiting = [waiting for waiting in self._waiting if waiting.name != name]
            running = self._running.pop(name, None)
        if running is not None:
            self._stop(name)
            self._start_next()

    def _start_next(self) -> None:
        with self._lock:
            owners = Counter(running.owner for running in self._running.values())
            for waiting in list(self._waiting):
                if len(self._running) >= self._slots:
                    return
                if owners[waiting.owner] < self._per_owner:
                    owners[waiting.owner] += 1
                    self._waiting.remove(waiting)
                    self._running[waiting.name] = waiting
                    threading.Thread(target=self._run, args=(waiting,), name="prepare", daemon=True).start()

    def _run(self, preparation: _Preparation) -> None:
        try:
            prepared = preparation.prepare()
        except BaseException as error:  # noqa: BLE001  # it is raised where it is waited for
            self._release(preparation)
            preparation.future.set_exception(error)
        else:
            self._release(preparation)
            preparation.future.set_result(prepared)
        self._start_next()

    def _release(self, preparation: _Preparation) -> None:
        with self._lock:
            if self._running.get(preparation.name) is preparation:
                del self._running[preparation.name]
