"""The thread that loads, warms up and unloads models, beside the threads that execute batches.

It does one job at a time, as :mod:`worker.lifecycle` asks, and reports each one's outcome; reading files,
building modules and copying weights happen while others serve, runs on the device only in their
:class:`~worker.turns.Turns`. Running out of memory is an outcome like any other.
"""

from __future__ import annotations

import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from symphony.profile import Profile
from worker.batch import one_line
from worker.definition import Definition
from worker.device import Device, OutOfMemory
from worker.growth import Growth
from worker.lifecycle import Action, Load, Serve, Unload, WarmUp
from worker.profiling import profile_on
from worker.turns import Turns

_log = logging.getLogger(__name__)

MEMORY_S: Final = 2.0
"""How often an idle loader reports what is free."""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of an action; None: this only tells what is free. ``took_ns``: of that one job."""

    action: Action | None
    free_bytes: int | None
    took_ns: int = 0
    profile: Profile | None = None
    error: Exception | None = None

    @property
    def out_of_memory(self) -> bool:
        """Whether more memory might have helped."""
        cause = self.error.__cause__ if self.error is not None else None
        return any(isinstance(error, OutOfMemory | MemoryError) for error in (self.error, cause))


class Loader:
    """Jobs in by :meth:`ask`, reports out by :meth:`reports`; :meth:`run` is the thread.

    Args:
        turns: when it may run something on the device.
        stop: asked between runs.
        notify: called after every report.
    """

    def __init__(self, turns: Turns, stop: Callable[[], bool], notify: Callable[[], None]) -> None:
        self._turns = turns
        self._stop = stop
        self._notify = notify
        self._jobs: queue.SimpleQueue[tuple[Action, str, Definition | None] | None] = queue.SimpleQueue()
        self._reports: deque[Report] = deque()
        self._definitions: dict[str, Definition] = {}
        self._growth = Growth()

    def ask(self, action: Action, key: str, definition: Definition | None) -> None:
        """Do that later; ``key`` names the copy, ``definition`` what to load."""
        if not isinstance(action, Serve):
            self._jobs.put((action, key, definition))

    def reports(self) -> Iterator[Report]:
        """What is over since the last call."""
        while self._reports:
            yield self._reports.popleft()

    def definition(self, key: str) -> Definition:
        """What the copy was loaded from."""
        return self._definitions[key]

    def close(self) -> None:
        """End the thread after its job."""
        self._jobs.put(None)

    # -- in the thread -------------------------------------------------------------------------------

    def run(self, device: Device) -> None:
        """Work until :meth:`close`; the first report says what is free."""
        self._report(Report(None, device.free_bytes()))
        while not self._stop():
            try:
                job = self._jobs.get(timeout=MEMORY_S)
            except queue.Empty:
                self._report(Report(None, device.free_bytes()))
                grown = self._growth.observe(device.used_bytes())
                if grown is not None:
                    _log.warning(
                        "the memory in use has grown by %d MB and never shrunk: a model leaks", grown >> 20
                    )
                continue
            if job is None:
                return
            self._report(self._do(device, *job))
            self._growth.restart()

    def _report(self, report: Report) -> None:
        self._reports.append(report)
        self._notify()

    def _do(self, device: Device, action: Action, key: str, definition: Definition | None) -> Report:
        began = time.monotonic_ns()
        profile = None
        try:
            match action:
                case Load():
                    assert definition is not None
                    _log.info("loading %s on %s", definition.name, device.gpu_type)
                    self._definitions[key] = definition
                    device.load(key, definition)
                case WarmUp():
                    profile = profile_on(device, key, self._definitions[key], self._turns, self._stop)
                case _:
                    device.unload(key)
                    del self._definitions[key]
        except Exception as error:  # noqa: BLE001 - a model may raise anything; it is reported
            _log.warning("model %s: %s", action.model, one_line(error))
            if not isinstance(action, Unload):
                device.unload(key)
                self._definitions.pop(key, None)
            return Report(action, device.free_bytes(), time.monotonic_ns() - began, None, error)
        return Report(action, device.free_bytes(), time.monotonic_ns() - began, profile)
