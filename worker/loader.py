"""The thread that loads, warms up and unloads models, beside the threads that execute batches.

It does one job at a time, as :mod:`worker.lifecycle` asks, and reports each one's outcome; reading files,
building modules and copying weights happen while others serve, runs on the device only in their
:class:`~worker.turns.Turns`. Running out of memory is an outcome like any other.

So is a step (loading; a run or a compilation of the warm-up) that takes longer than the definition's
``load_limit_s``, and a run that batches of other models have waited for longer than a batch may hang. A
thread cannot be stopped from outside: it is left behind, its turn on the device is taken from it, and another
thread goes on with the next job. Should it come to an end after all, it frees what it has loaded and says
nothing.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from symphony.profile import Profile
from symphony.status import SymphonyError
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


class LoadHangs(SymphonyError):
    """A step of loading or warming up a model took longer than its definition allows."""


class _Step(NamedTuple):
    """What the thread is at, since when, and when that is too long (monotonic ns)."""

    action: Action
    began_ns: int
    due_ns: int


class Loader:
    """Jobs in by :meth:`ask`, reports out by :meth:`reports`; :meth:`start` makes the thread.

    Args:
        turns: when it may run something on the device.
        stop: asked between runs.
        notify: called after every report.
        patience_ns: how long batches may wait for one run.
    """

    def __init__(
        self, turns: Turns, stop: Callable[[], bool], notify: Callable[[], None], patience_ns: int
    ) -> None:
        self._turns = turns
        self._patience_ns = patience_ns
        self._stop = stop
        self._notify = notify
        self._jobs: queue.SimpleQueue[tuple[Action, str, Definition | None] | None] = queue.SimpleQueue()
        self._reports: deque[Report] = deque()
        self._definitions: dict[str, Definition] = {}
        self._growth = Growth()
        self._free_bytes: int | None = None
        self._lock = threading.Lock()
        """Of who the last thread is, and of what it is at."""
        self._step: _Step | None = None
        self._threads: list[threading.Thread] = []
        """All but the last have been left behind."""

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

    def start(self, device: Device) -> None:
        """Work until :meth:`close`; the first report says what is free."""
        thread = threading.Thread(target=self._run, args=(device,), name="load", daemon=True)
        with self._lock:
            self._threads.append(thread)
            self._step = None
        thread.start()

    def due(self) -> int | None:
        """Monotonic ns when what the thread is at would count as hanging."""
        step, since = self._step, self._turns.waiting_since()
        if step is None:
            return None
        return step.due_ns if since is None else min(step.due_ns, since + self._patience_ns)

    def give_up(self, now: int, device: Device) -> None:
        """Leave the thread behind if it hangs: its model has failed, the next job gets another thread."""
        due = self.due()
        if due is None or now < due:
            return
        with self._lock:
            step = self._step
            if step is None or step.began_ns > due:  # it has gone on meanwhile
                return
            thread = threading.Thread(target=self._run, args=(device,), name="load", daemon=True)
            self._threads.append(thread)
            self._step = None
        doing = "loading it" if isinstance(step.action, Load) else "a step of its warm-up"
        error = LoadHangs(f"{doing} has not ended after {(now - step.began_ns) / 1e9:.1f} s: given up")
        _log.warning("model %s: %s", step.action.model, error)
        self._turns.take_back()
        self._reports.append(Report(step.action, self._free_bytes, now - step.began_ns, None, error))
        thread.start()

    def close(self, timeout_s: float) -> bool:
        """End the thread after its job; False if it, or one that was left behind, would not end."""
        self._jobs.put(None)
        for thread in self._threads[-1:]:
            thread.join(timeout_s)
        return not any(thread.is_alive() for thread in self._threads)

    # -- in the thread -------------------------------------------------------------------------------

    def _run(self, device: Device) -> None:
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
            report = self._do(device, *job)
            with self._lock:
                left_behind = self._left_behind()
                if not left_behind:
                    self._step = None
            if left_behind:
                device.unload(job[1])
                self._definitions.pop(job[1], None)
                return
            self._report(report)
            self._growth.restart()

    def _left_behind(self) -> bool:
        return threading.current_thread() is not self._threads[-1]

    def _report(self, report: Report) -> None:
        self._free_bytes = report.free_bytes
        self._reports.append(report)
        self._notify()

    def _do(self, device: Device, action: Action, key: str, definition: Definition | None) -> Report:
        began = time.monotonic_ns()
        profile = None

        def step() -> bool:
            """The next step begins, unless it is time to stop."""
            now = time.monotonic_ns()
            with self._lock:
                if self._left_behind():
                    return True
                self._step = _Step(action, now, now + round(self._definitions[key].load_limit_s * 1e9))
            return self._stop()

        try:
            match action:
                case Load():
                    assert definition is not None
                    _log.info("loading %s on %s", definition.name, device.gpu_type)
                    self._definitions[key] = definition
                    step()
                    device.load(key, definition)
                case WarmUp():
                    profile = profile_on(device, key, self._definitions[key], self._turns, step)
                case _:
                    device.unload(key)
                    del self._definitions[key]
        except Exception as error:  # noqa: BLE001 - a model may raise anything; it is reported
            if not self._left_behind():
                _log.warning("model %s: %s", action.model, one_line(error))
            if not isinstance(action, Unload):
                device.unload(key)
                self._definitions.pop(key, None)
            return Report(action, device.free_bytes(), time.monotonic_ns() - began, None, error)
        return Report(action, device.free_bytes(), time.monotonic_ns() - began, profile)
