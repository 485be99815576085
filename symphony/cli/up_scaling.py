"""The local actuator of `symphony up`: decisions on the control channel start and drain emulated workers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from symphony import local
from symphony.config import Config, WorkerConfig
from symphony.control import Member, ScaleDecision
from symphony.membership import Published
from symphony.plans import rank
from symphony.status import SymphonyError
from symphony.supervisor import ChildEvent, Supervisor
from symphony.topics import decode_body
from symphony.wire import WireError

if TYPE_CHECKING:
    from scheduler.actuators.local import Process

Say = Callable[[str], None]


class LocalScaling:
    """Takes decisions in; makes workers like those of the configuration, one GPU each.

    Args:
        config: workers of the file are the pattern of new ones.
        supervisor: has the processes.
        say: tells people.
    """

    def __init__(self, config: Config, supervisor: Supervisor, say: Say) -> None:
        from scheduler.actuators.local import LocalActuator

        self.events: list[ChildEvent] = []
        """What the supervisor told of children that were started here; the owner clears it."""
        self._config, self._supervisor, self._say = config, supervisor, say
        self._actuator = LocalActuator(self)
        self._members: Mapping[str, Member] = {}
        self._workers: dict[str, WorkerConfig] = {str(worker.id): worker for worker in config.workers}
        self._retired: set[str] = set()
        self._newest: tuple[int, str] | None = None
        self._count = 0
        self._now = 0

    def take(self, event: Published, members: Mapping[str, Member], now: int) -> None:
        """A message of the control channel; ``now`` is monotonic ns."""
        family, _, publisher = event.topic.partition(".")
        try:
            decision = decode_body(family, publisher, event.body)
        except WireError:
            return  # the broker checks what is published; one of another version is none of ours
        if not isinstance(decision, ScaleDecision) or decision.kind == "hold":
            return
        if not self._is_in_force(decision):
            self._say(f"  {decision.shard:<10} refused: a decision of epoch {decision.epoch}, which is over")
            return
        from scheduler.actuators.base import request_of

        self._members, self._now = members, now
        self._say(f"  {decision.shard:<10} {decision.kind} to {decision.requested}: {decision.reason}")
        self._actuator.submit(request_of(decision), now)
        for outcome in self._actuator.poll(now):
            self._say(f"  {decision.shard:<10} {outcome.code}: {outcome.detail}")

    def _is_in_force(self, decision: ScaleDecision) -> bool:
        """Of two leaders the one of the newer epoch is heard, of the same epoch the lower id."""
        given = decision.epoch, decision.leader
        newest = self._newest
        if newest is not None and (
            given[0] < newest[0] or (given[0] == newest[0] and rank(given[1]) > rank(newest[1]))
        ):
            return False
        self._newest = given
        return True

    def started(self, name: str) -> bool:
        """Whether that worker was started here and not by the configuration."""
        return name in self._workers and all(name != worker.id for worker in self._config.workers)

    # -- what the actuator asks of it ------------------------------------------------------------

    def processes(self) -> Collection[Process]:
        """Workers that run or start, but for those that were told to go."""
        from scheduler.actuators.local import Process

        found = []
        for name in self._supervisor.running:
            worker = self._workers.get(name)
            if worker is None or name in self._retired:
                continue
            member = self._members.get(name)
            numbers = frozenset(gpu.number for gpu in member.gpus) if member is not None else frozenset()
            found.append(Process(name, worker.shard, _type(worker), worker.gpus, numbers))
        return found

    def launch(self, shard: str, gpu_type: str, gpus: int) -> None:
        """Start emulated workers; a real device is not made by wishing."""
        patterns = [w for w in self._config.workers if w.device == "emulated" and _type(w) == gpu_type]
        mine = [worker for worker in patterns if worker.shard == shard] or patterns
        if not mine:
            raise SymphonyError(
                f"no emulated worker of type {gpu_type!r} in the configuration to make more of"
            )
        for _ in range(gpus):
            self._count += 1
            name = f"{shard}-more-{self._count}"
            worker = mine[0].model_copy(update={"id": name, "shard": shard, "gpus": 1})
            self._workers[name] = worker
            self.events += self._supervisor.add(local.worker_child(self._config, worker), self._now)

    def retire(self, name: str) -> None:
        """Told to drain and end."""
        self._retired.add(name)
        self._supervisor.retire(name)


def _type(worker: WorkerConfig) -> str:
    return worker.gpu_type or "emulated"
