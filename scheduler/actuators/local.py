"""Worker processes of this machine as GPUs: started and drained through whoever supervises them.

`symphony up` holds the supervisor; it follows the decisions on the control channel and hands them to this
actuator, which works out which worker processes must come and which can go. A process goes when all GPUs
that it stands for are to be drained: SIGTERM lets it finish what it has, then it leaves.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from scheduler.actuators.base import Outcome, Recent, Request
from symphony.status import SymphonyError


@dataclass(frozen=True, slots=True)
class Process:
    """A worker process that runs or starts and was not told to go.

    gpus: that it stands for; numbers: theirs, empty until it has joined.
    """

    name: str
    shard: str
    gpu_type: str
    gpus: int
    numbers: frozenset[int] = frozenset()


class Launcher(Protocol):
    """What the owner of the processes offers."""

    def processes(self) -> Collection[Process]:
        """Those that run or start, but for those that were told to go."""

    def launch(self, shard: str, gpu_type: str, gpus: int) -> None:
        """Start processes that stand for so many GPUs.

        Raises:
            SymphonyError: this machine has no such GPUs, or no more of them.
        """

    def retire(self, name: str) -> None:
        """Tell a process to drain and end; it is not started again."""


class LocalActuator:
    """See the module's text."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._outcomes: list[Outcome] = []
        self._accepted = Recent()

    def submit(self, request: Request, now: int) -> None:
        """Start what is missing; let go what may go and is more than is wanted."""
        if request.key in self._accepted:
            self._outcomes.append(Outcome(request.key, request.shard, "accepted", "asked before"))
            return
        try:
            detail = self._carry_out(request)
        except SymphonyError as error:
            self._outcomes.append(Outcome(request.key, request.shard, "refused", str(error)))
            return
        self._accepted.add(request.key)
        self._outcomes.append(Outcome(request.key, request.shard, "accepted", detail))

    def poll(self, now: int) -> list[Outcome]:
        """See :class:`~scheduler.actuators.base.Actuator`."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def next_wakeup(self, now: int) -> int | None:
        """See :class:`~scheduler.actuators.base.Actuator`."""
        return now if self._outcomes else None

    def close(self) -> None:
        """The processes are their supervisor's."""

    def _carry_out(self, request: Request) -> str:
        mine = [process for process in self._launcher.processes() if process.shard == request.shard]
        have: dict[str, int] = {}
        for process in mine:
            have[process.gpu_type] = have.get(process.gpu_type, 0) + process.gpus
        drain = set(request.drain)
        started = retired = 0
        for process in sorted(mine, key=lambda process: max(process.numbers, default=-1), reverse=True):
            kind = process.gpu_type
            spare = have[kind] - request.counts.get(kind, 0)
            if process.numbers and process.numbers <= drain and process.gpus <= spare:
                self._launcher.retire(process.name)
                have[kind] -= process.gpus
                retired += process.gpus
        for kind, count in sorted(request.counts.items()):
            if count > have.get(kind, 0):
                self._launcher.launch(request.shard, kind, count - have.get(kind, 0))
                started += count - have.get(kind, 0)
        return f"{started} GPUs starting, {retired} draining"
