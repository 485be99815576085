"""Child processes that are kept running: started in order, restarted with back-off, stopped in order.

No thread and no wait of its own: the owner's loop calls :meth:`Supervisor.step` when its waiter wakes
(a child's exit wakes it at once, by a pidfd) or :meth:`Supervisor.next_wakeup` has come. A child that
dies is started again after a pause that doubles; one that dies :data:`MAX_RESTARTS` times within
:data:`WINDOW_NS`, or before it was ever ready, is given up, because it would only die again.

Children are in sessions of their own, so that Ctrl-C reaches the supervisor alone, which then stops
them in order. They die with their parent whatever kills it: the supervisor tells them its process id
in the environment and they call :func:`die_with_parent`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from symphony.status import SymphonyError
from symphony.waiter import Waiter

MAX_RESTARTS: Final = 5
WINDOW_NS: Final = 60_000_000_000
BACKOFF_NS: Final = 100_000_000
BACKOFF_MAX_NS: Final = 5_000_000_000
GRACE_NS: Final = 5_000_000_000
"""How long the children of one stage may take to drain and end before they are killed."""
TAIL: Final = 20
"""Last lines of a child's output that are kept for the message when it is given up."""

READS: Final = 16
"""Reads of one child's output in one step, 64 KiB each at most."""
MAX_LINE: Final = 65_536
"""Bytes of a line, after which what has come of it is passed on as one."""

PARENT_VARIABLE: Final = "SYMPHONY_PARENT"
_POLL_NS: Final = 50_000_000
_PR_SET_PDEATHSIG: Final = 1

Sink = Callable[[str, str], None]


class SupervisorError(SymphonyError):
    """A child cannot be started at all, or was given up."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run.

    Args:
        name: for people and log lines.
        argv: the command; ``first_argv`` replaces it at the first start, if given.
        stop_stage: children of the lowest stage are stopped first, all of one stage together.
    """

    name: str
    argv: tuple[str, ...]
    first_argv: tuple[str, ...] | None = None
    stop_stage: int = 0


@dataclass(frozen=True, slots=True)
class Started:
    """A child runs (again)."""

    name: str
    pid: int
    first: bool


@dataclass(frozen=True, slots=True)
class Died:
    """A child ended by itself and will be started again ``pause_ns`` from now."""

    name: str
    how: str
    pause_ns: int


@dataclass(frozen=True, slots=True)
class GaveUp:
    """A child ended once too often; ``tail`` holds the last lines that it printed."""

    name: str
    how: str
    tail: tuple[str, ...]


ChildEvent = Started | Died | GaveUp


@dataclass(slots=True)
class _Child:
    spec: ChildSpec
    process: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    output: int = -1
    partial: bytes = b""
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL))
    deaths: deque[int] = field(default_factory=deque)
    due: int | None = None
    starts: int = 0
    retired: bool = False
    was_ready: bool = False


class Supervisor:
    """See the module's text.

    Args:
        specs: the children in the order in which they are started.
        waiter: the owner's; the children's exits and output wake it.
        sink: gets every line that a child prints, with the child's name.
        environment: of the children; None stands for this process's.
    """

    def __init__(
        self,
        specs: Iterable[ChildSpec],
        waiter: Waiter,
        sink: Sink,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._children = {spec.name: _Child(spec) for spec in specs}
        self._waiter = waiter
        self._sink = sink
        self._environment = dict(os.environ if environment is None else environment)
        self._environment[PARENT_VARIABLE] = str(os.getpid())
        self._environment["PYTHONUNBUFFERED"] = "1"
        self._stages: list[int] | None = None
        self._kill_at: int | None = None

    def pid(self, name: str) -> int | None:
        """The process id of a child that runs now."""
        process = self._children[name].process
        return None if process is None else process.pid

    @property
    def running(self) -> list[str]:
        """Names of the children that run now."""
        return [name for name, child in self._children.items() if child.process is not None]

    @property
    def stopping(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._stages is not None

    @property
    def stopped(self) -> bool:
        """Whether :meth:`stop` was called and every child has ended."""
        return self.stopping and not self.running

    def mark_ready(self, name: str) -> None:
        """The child does its work: should it die now, it is worth another start."""
        self._children[name].was_ready = True

    def add(self, spec: ChildSpec, now: int) -> list[ChildEvent]:
        """One more child, started at once.

        Raises:
            SupervisorError: the command cannot be executed, or there is a child of that name.
        """
        if spec.name in self._children:
            raise SupervisorError(f"there is a child {spec.name!r} already")
        child = self._children[spec.name] = _Child(spec)
        return [self._start(child, now)]

    def retire(self, name: str) -> None:
        """SIGTERM to a child that is not started again when it has ended; unknown names are no error."""
        child = self._children.get(name)
        if child is not None and not child.retired:
            child.retired = True
            child.due = None
            _signal(child, signal.SIGTERM)

    def start(self, now: int) -> list[ChildEvent]:
        """Start every child.

        Args:
            now: ``time.monotonic_ns()``.

        Raises:
            SupervisorError: a command cannot be executed; those before it run and are to be stopped.
        """
        return [self._start(child, now) for child in self._children.values()]

    def step(self, now: int) -> list[ChildEvent]:
        """Pass on output, notice the dead, start what is due, go on with stopping."""
        events: list[ChildEvent] = []
        for child in list(self._children.values()):
            if child.process is None:
                if child.due is not None and now >= child.due and not self.stopping:
                    events.append(self._start(child, now))
                continue
            self._read(child)
            code = child.process.poll()
            if code is not None:
                self._read(child)  # what it said between the look at its output and its end
                self._clear(child)
                if child.retired:
                    del self._children[child.spec.name]
                elif not self.stopping:
                    events.append(self._died(child, code, now))
        if self.stopping:
            self._go_on_stopping(now)
        return events

    def next_wakeup(self, now: int) -> int | None:
        """Monotonic ns at which :meth:`step` wants to be called if nothing happens before."""
        if self.stopping:
            return now + _POLL_NS
        moments = [child.due for child in self._children.values() if child.due is not None]
        if any(child.process is not None and child.pidfd < 0 for child in self._children.values()):
            moments.append(now + _POLL_NS)  # no pidfds on this kernel
        return min(moments, default=None)

    def stop(self, now: int) -> None:
        """Begin to stop: SIGTERM stage by stage; SIGKILL to what has not ended within the grace."""
        if self._stages is None:
            self._stages = sorted({child.spec.stop_stage for child in self._children.values()}, reverse=True)
            for child in self._children.values():
                child.due = None
            self._go_on_stopping(now)

    def kill(self) -> None:
        """SIGKILL to every child, and wait for them: nothing is left when this returns."""
        self._stages = []
        for child in self._children.values():
            child.due = None
            if child.process is not None:
                child.process.kill()
                child.process.wait()
                self._read(child)
                self._clear(child)

    def _start(self, child: _Child, now: int) -> ChildEvent:
        spec = child.spec
        argv = spec.first_argv if spec.first_argv is not None and child.starts == 0 else spec.argv
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        except OSError as error:
            raise SupervisorError(f"cannot start {spec.name} ({argv[0]}): {error.strerror}") from None
        assert process.stdout is not None
        child.process, child.due = process, None
        child.starts += 1
        child.output = process.stdout.fileno()
        os.set_blocking(child.output, False)
        self._waiter.register(child.output)
        with contextlib.suppress(OSError, AttributeError):
            child.pidfd = os.pidfd_open(process.pid)
            self._waiter.register(child.pidfd)
        return Started(spec.name, process.pid, child.starts == 1)

    def _read(self, child: _Child) -> None:
        # In turns: a child that never stops printing must not keep the others waiting, nor a signal.
        for _ in range(READS):
            if child.output < 0:
                return
            try:
                data = os.read(child.output, 65_536)
            except BlockingIOError:
                return
            if not data:
                # Closed, though the process may go on: watching it further would never rest.
                self._waiter.unregister(child.output)
                child.output = -1
            *lines, child.partial = (child.partial + data).split(b"\n")
            if child.partial and (not data or len(child.partial) > MAX_LINE):
                lines, child.partial = [*lines, child.partial], b""
            for line in lines:
                text = line.decode("utf-8", "replace").rstrip()
                child.tail.append(text)
                self._sink(child.spec.name, text)

    def _clear(self, child: _Child) -> None:
        assert child.process is not None
        assert child.process.stdout is not None
        if child.output >= 0:
            self._waiter.unregister(child.output)
        if child.pidfd >= 0:
            self._waiter.unregister(child.pidfd)
            os.close(child.pidfd)
        child.process.stdout.close()
        child.process, child.pidfd, child.output, child.partial = None, -1, -1, b""

    def _died(self, child: _Child, code: int, now: int) -> ChildEvent:
        how = describe_exit(code)
        deaths = child.deaths
        deaths.append(now)
        while now - deaths[0] > WINDOW_NS:
            deaths.popleft()
        if len(deaths) > MAX_RESTARTS or not child.was_ready:
            return GaveUp(child.spec.name, how, tuple(child.tail))
        pause = min(BACKOFF_NS << (len(deaths) - 1), BACKOFF_MAX_NS)
        child.due = now + pause
        return Died(child.spec.name, how, pause)

    def _go_on_stopping(self, now: int) -> None:
        assert self._stages is not None
        while self._stages:
            stage = self._stages[-1]
            left = [c for c in self._children.values() if c.process and c.spec.stop_stage == stage]
            if not left:
                self._stages.pop()
                self._kill_at = None
                continue
            if self._kill_at is None:
                self._kill_at = now + GRACE_NS
                for child in left:
                    _signal(child, signal.SIGTERM)
            elif now >= self._kill_at:
                for child in left:
                    self._sink(child.spec.name, "did not end in time; killing it")
                    _signal(child, signal.SIGKILL)
                self._kill_at = now + GRACE_NS
            return


def _signal(child: _Child, number: signal.Signals) -> None:
    if child.process is not None:
        child.process.send_signal(number)


def describe_exit(code: int) -> str:
    """A ``Popen.returncode`` in words."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def die_with_parent() -> None:
    """Called by a child at its very start: ends with the supervisor that started it, if one did.

    Uses Linux's parent-death signal; elsewhere a supervisor that is killed leaves its children.
    """
    parent = os.environ.pop(PARENT_VARIABLE, "")
    if not parent.isdigit() or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):  # it died before we asked
        os._exit(1)
