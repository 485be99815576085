"""The supervisor with real but tiny child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from helpers import wait_until

from symphony import supervisor as module
from symphony.supervisor import ChildSpec, Died, GaveUp, Started, Supervisor, SupervisorError, describe_exit
from symphony.waiter import Waiter

pytestmark = pytest.mark.live

SLEEPER = "import signal; print('up', flush=True); signal.pause()"
POLITE = """
import signal
def end(*_):
    print("down", flush=True)
    raise SystemExit
signal.signal(signal.SIGTERM, end)
print("up", flush=True)
while True: signal.pause()
"""
STUBBORN = "import signal; signal.signal(15, 1); print('up', flush=True)\nwhile True: signal.pause()"


def _python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


CHATTY = """
import os
while True: os.write(1, b"x" * 65_536)
"""


class Rig:
    """A supervisor and what it said."""

    def __init__(self, waiter: Waiter, *specs: ChildSpec) -> None:
        self.lines: list[tuple[str, str]] = []
        self.events: list[module.ChildEvent] = []
        self.waiter = waiter
        self.supervisor = Supervisor(specs, waiter, lambda name, line: self.lines.append((name, line)))

    def start(self) -> None:
        self.events += self.supervisor.start(time.monotonic_ns())

    def step(self) -> None:
        now = time.monotonic_ns()
        limit = now + 100_000_000
        self.waiter.wait(min(self.supervisor.next_wakeup(now) or limit, limit))
        self.events += self.supervisor.step(time.monotonic_ns())

    def until(self, condition: Callable[[], object], timeout: float = 20.0) -> None:
        def stepped() -> object:
            self.step()
            return condition()

        wait_until(stepped, timeout)

    def stop(self) -> None:
        self.supervisor.stop(time.monotonic_ns())
        self.until(lambda: self.supervisor.stopped)


@pytest.fixture
def make() -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def build(*specs: ChildSpec) -> Rig:
        rigs.append(Rig(Waiter(), *specs))
        return rigs[-1]

    yield build
    for rig in rigs:
        rig.supervisor.kill()
        rig.waiter.close()


def test_output_is_passed_on_by_line(make: Callable[..., Rig]) -> None:
    rig = make(ChildSpec("a", _python("import signal; print('one\\ntwo', flush=True); signal.pause()")))
    rig.start()
    rig.until(lambda: len(rig.lines) == 2)
    assert rig.lines == [("a", "one"), ("a", "two")]
    assert rig.events == [Started("a", rig.supervisor.pid("a") or 0, True)]


def test_a_killed_child_is_started_again(make: Callable[..., Rig]) -> None:
    rig = make(ChildSpec("a", _python(SLEEPER)))
    rig.start()
    rig.until(lambda: rig.lines)
    rig.supervisor.mark_ready("a")
    first = rig.supervisor.pid("a")
    assert first is not None
    os.kill(first, signal.SIGKILL)
    rig.until(lambda: len(rig.lines) == 2)
    assert rig.events[1] == Died("a", "was killed by SIGKILL", module.BACKOFF_NS)
    assert isinstance(rig.events[2], Started)
    assert not rig.events[2].first
    assert rig.supervisor.pid("a") not in (None, first)


def test_a_later_start_may_have_other_arguments(make: Callable[..., Rig]) -> None:
    rig = make(ChildSpec("a", _python("print('later')"), _python("print('first')")))
    rig.supervisor.mark_ready("a")
    rig.start()
    rig.until(lambda: len(rig.lines) >= 2)
    assert rig.lines[:2] == [("a", "first"), ("a", "later")]


def test_one_that_keeps_dying_is_given_up(make: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_NS", 1_000_000)
    rig = make(ChildSpec("a", _python("print('no disk left'); raise SystemExit(3)")))
    rig.supervisor.mark_ready("a")
    rig.start()
    rig.until(lambda: any(isinstance(event, GaveUp) for event in rig.events))
    pauses = [event.pause_ns for event in rig.events if isinstance(event, Died)]
    assert pauses == [1_000_000 << n for n in range(module.MAX_RESTARTS)]
    assert rig.events[-1] == GaveUp("a", "exited with code 3", ("no disk left",) * 6)
    assert rig.supervisor.next_wakeup(0) is None


def test_one_that_was_never_ready_is_given_up_at_once(make: Callable[..., Rig]) -> None:
    rig = make(ChildSpec("a", _python("import sys; sys.exit('no such model')")))
    rig.start()
    rig.until(lambda: len(rig.events) == 2)
    assert rig.events[1] == GaveUp("a", "exited with code 1", ("no such model",))


def test_stages_are_stopped_in_order(make: Callable[..., Rig]) -> None:
    code = POLITE
    rig = make(
        *(ChildSpec(name, _python(code), stop_stage=stage) for name, stage in (("b", 2), ("s", 0), ("w", 1)))
    )
    rig.start()
    rig.until(lambda: len(rig.lines) == 3)
    rig.stop()
    assert [name for name, line in rig.lines if line == "down"] == ["s", "w", "b"]
    assert len(rig.events) == 3  # stopping is no death


def test_one_that_ignores_the_signal_is_killed(
    make: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE_NS", 50_000_000)
    rig = make(ChildSpec("a", _python(STUBBORN)))
    rig.start()
    rig.until(lambda: rig.lines)
    rig.stop()
    assert rig.lines[-1] == ("a", "did not end in time; killing it")


def test_a_command_that_is_not_there(make: Callable[..., Rig]) -> None:
    rig = make(ChildSpec("a", ("/nowhere/python",)))
    with pytest.raises(SupervisorError, match=r"cannot start a \(/nowhere/python\): No such file"):
        rig.start()


def test_a_child_that_closes_its_output_does_not_keep_the_loop_busy(make: Callable[..., Rig]) -> None:
    rig = make(ChildSpec("a", _python("import os, signal; os.close(1); os.close(2); signal.pause()")))
    rig.start()
    rig.until(lambda: rig.supervisor._children["a"].output < 0)
    assert rig.waiter.wait(time.monotonic_ns() + 1_000_000) == []
    rig.stop()


def test_a_child_that_never_ends_its_line_keeps_nobody_waiting(make: Callable[..., Rig]) -> None:
    rig = make(ChildSpec("chatty", _python(CHATTY)), ChildSpec("a", _python(SLEEPER)))
    rig.start()
    rig.until(lambda: len(rig.lines) > 5 and ("a", "up") in rig.lines)
    assert max(len(line) for _, line in rig.lines) <= module.MAX_LINE + 65_536


def test_last_words_are_heard_whenever_they_are_said(
    make: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make(ChildSpec("a", _python("print('no disk left'); raise SystemExit(3)")))
    rig.start()
    read = Supervisor._read

    def read_too_early(supervisor: Supervisor, child: module._Child) -> None:
        if child.process is not None and child.process.poll() is None:
            child.process.wait(20)  # it speaks and ends right after this look at its output
        else:
            read(supervisor, child)

    monkeypatch.setattr(Supervisor, "_read", read_too_early)
    rig.until(lambda: len(rig.events) == 2)
    assert rig.events[1] == GaveUp("a", "exited with code 3", ("no disk left",))


def test_children_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    child = (
        "from symphony.supervisor import die_with_parent; die_with_parent(); import signal; signal.pause()"
    )
    parent = f"""
import sys, time
from symphony.supervisor import ChildSpec, Supervisor
from symphony.waiter import Waiter
supervisor = Supervisor([ChildSpec("a", (sys.executable, "-c", {child!r}))], Waiter(), print)
supervisor.start(time.monotonic_ns())
print(supervisor.pid("a"), flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        _python(parent), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        watched = psutil.Process(pid)
        process.kill()
    wait_until(lambda: not watched.is_running() or watched.status() == psutil.STATUS_ZOMBIE)


def test_exit_in_words() -> None:
    assert describe_exit(2) == "exited with code 2"
    assert describe_exit(-9) == "was killed by SIGKILL"
    assert describe_exit(-250) == "was killed by signal 250"
