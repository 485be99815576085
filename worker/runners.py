"""The two ways to run batches, behind one interface: on emulated GPUs, or on a real device."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from symphony.control import Holding
from symphony.status import SymphonyError
from symphony.wire import Tensors
from worker.batch import Batch
from worker.cohorts import Cohorts, Wants
from worker.definition import Definition
from worker.emulated import EmulatedGpus
from worker.executor import Executor
from worker.holdings import Ready
from worker.intake import Fetch, Intake
from worker.lifecycle import Change


class Runner(Protocol):
    """Takes batches and gives them back settled. Times are monotonic ns; no method blocks."""

    columns: EmulatedGpus | None
    """Takes what can be run of a plan as columns, in place of :meth:`accept`; None: batch by batch."""
    fd: int | None
    """Turns readable when :meth:`advance` or :meth:`ready` has news; None if it is by time only."""

    @property
    def gpu_type(self) -> str:
        """The key of its profiles in the catalogue; empty while it is not known yet."""

    @property
    def uuid(self) -> str:
        """Of a real GPU, once :attr:`gpu_type` is known; else empty."""

    def start(self) -> None:
        """Begin to load."""

    def ready(self) -> Ready | None:
        """What serves; None while the first models load, and raises what loading one of them raised.

        Another object as soon as something else serves.
        """

    def want(self, now: int, definitions: Sequence[Definition]) -> None:
        """Hold these models and no others; of those whose files have changed, new versions."""

    def assign(self, now: int, gpus: Collection[int], wants: Wants) -> None:
        """Hold these models on these of the GPUs; GPUs that are not named keep what they have."""

    def holds(self) -> list[Holding]:
        """Which GPUs hold what; empty where each holds all that :meth:`ready` tells."""

    def failed(self) -> dict[str, str]:
        """Models that are wanted and cannot be loaded, and why."""

    def changes(self) -> list[Change]:
        """What has become of models since the last call."""

    def versions(self) -> dict[str, str]:
        """What serves of each model, ``<fingerprint>#<copy>``; empty where files are not followed."""

    def accept(self, batch: Batch, exec_at_ns: int, first_ns: int, last_ns: int) -> list[Fetch]:
        """Take in a batch with its planned start, first and last deadline; returns what to ask for."""

    def arrived(self, slots: Collection[int], message: Tensors, frames: Sequence[Any]) -> int:
        """Inputs came; returns how many keys nobody had asked for. Raises WireError."""

    def lost(self, slot: int) -> None:
        """The frontend with that slot has gone."""

    def advance(self, now: int) -> list[Batch]:
        """Do what is due; returns batches that are over, every row settled."""

    def next_wakeup(self, now: int) -> int | None:
        """When :meth:`advance` has something to do without any news."""

    def failure(self) -> Exception | None:
        """Why no more batches can be run, ever; None if they can."""

    def close(self) -> bool:
        """Stop; False if something would not stop in time."""


class EmulatedRunner:
    """Batches take as long as their profile says. Nothing is fetched and no tensors come out."""

    fd: int | None = None
    uuid: str = ""

    def __init__(self, definitions: Sequence[Definition], gpu_type: str, memory_mb: int = 0) -> None:
        self._first = definitions
        self._models = Cohorts(gpu_type, memory_mb)
        self.columns: EmulatedGpus | None = EmulatedGpus(self._models.profiles)
        self.gpu_type = gpu_type
        self._told: Ready | None = None

    def start(self) -> None:
        """Begin to load; what takes no time is there at once."""
        self._models.want(time.monotonic_ns(), self._first)

    def ready(self) -> Ready | None:
        """Once the first models have been there for their ``load_ms``."""
        ready = self._models.ready()
        if ready is not self._told and self.columns is not None:
            self._told = ready
            slos_ms = [] if ready is None else [d.slo_ms for d in ready.definitions.values()]
            self.columns.changed(round(1e6 * min(slos_ms, default=0.0)))
        return ready

    def want(self, now: int, definitions: Sequence[Definition]) -> None:
        """Each takes its ``load_ms``, one after the other."""
        self._models.want(now, definitions)

    def assign(self, now: int, gpus: Collection[int], wants: Wants) -> None:
        """As :meth:`want`, GPU by GPU."""
        self._models.assign(now, gpus, wants)

    def holds(self) -> list[Holding]:
        """By cohorts."""
        return self._models.holds()

    def failed(self) -> dict[str, str]:
        """For want of memory."""
        return self._models.failed()

    def changes(self) -> list[Change]:
        """What has become of models since the last call."""
        return self._models.changes()

    def versions(self) -> dict[str, str]:
        """There are no files."""
        return {}

    def accept(self, batch: Batch, exec_at_ns: int, first_ns: int, last_ns: int) -> list[Fetch]:
        """Never asked: what can be run comes in columns."""
        raise SymphonyError(f"batch {batch.id} did not come in columns")

    def arrived(self, slots: Collection[int], message: Tensors, frames: Sequence[Any]) -> int:
        """Nobody asked."""
        return int(message.key.size)

    def lost(self, slot: int) -> None:
        """A batch on a GPU goes on, whoever wanted it."""

    def advance(self, now: int) -> list[Batch]:
        """Loads whose end has come; batches end in :attr:`columns`."""
        self._models.advance(now)
        return []

    def next_wakeup(self, now: int) -> int | None:
        """The next end of a batch or a load."""
        ends = self.columns.next_wakeup() if self.columns is not None else None
        return earliest(ends, self._models.next_wakeup())

    def failure(self) -> Exception | None:
        """Emulated GPUs do not break."""
        return None

    def close(self) -> bool:
        """Nothing runs."""
        return True


class DeviceRunner:
    """Inputs are gathered by an :class:`Intake`, batches executed by an :class:`Executor`."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._intake = Intake()
        self.columns: EmulatedGpus | None = None
        self.fd: int | None = executor.fd

    @property
    def gpu_type(self) -> str:
        """Known once the device has been opened."""
        return self._executor.gpu_type

    @property
    def uuid(self) -> str:
        """Likewise."""
        return self._executor.uuid

    def start(self) -> None:
        """Start the executor's threads."""
        self._executor.start()

    def ready(self) -> Ready | None:
        """Once the first models are loaded and have their profiles."""
        return self._executor.ready()

    def want(self, now: int, definitions: Sequence[Definition]) -> None:
        """Loaded in a thread of its own."""
        self._executor.want(definitions)

    def assign(self, now: int, gpus: Collection[int], wants: Wants) -> None:
        """There is one GPU: what it is to hold."""
        for numbers, definitions in wants:
            if set(numbers) & set(gpus):
                self._executor.want(definitions)

    def holds(self) -> list[Holding]:
        """One GPU holds all."""
        return []

    def failed(self) -> dict[str, str]:
        """For any reason."""
        return self._executor.failed()

    def changes(self) -> list[Change]:
        """What has become of models since the last call."""
        return self._executor.changes()

    def versions(self) -> dict[str, str]:
        """Of the models that serve."""
        return self._executor.versions()

    def accept(self, batch: Batch, exec_at_ns: int, first_ns: int, last_ns: int) -> list[Fetch]:
        """Ask every frontend in the batch for its inputs."""
        self._executor.reserve(batch)
        return self._intake.add(batch, exec_at_ns, first_ns, last_ns)

    def arrived(self, slots: Collection[int], message: Tensors, frames: Sequence[Any]) -> int:
        """To the batch that asked."""
        return self._intake.arrived(slots, message, frames)

    def lost(self, slot: int) -> None:
        """Its rows leave the batches that still gather."""
        self._intake.lost(slot)

    def advance(self, now: int) -> list[Batch]:
        """Hand complete batches to the executor, collect finished ones."""
        finished = []
        for batch in self._intake.take(now):
            if batch.has_work():
                self._executor.submit(batch)
            else:  # nothing is left to execute
                self._executor.release(batch)
                batch.started_ns = batch.finished_ns = now
                finished.append(batch)
        return self._executor.finished() + finished

    def next_wakeup(self, now: int) -> int | None:
        """When patience with a silent frontend, a batch on the device or a load ends."""
        due = earliest(self._executor.hang_due(), self._executor.load_due())
        return earliest(self._intake.next_wakeup(now), due)

    def failure(self) -> Exception | None:
        """The device is lost, or a batch on it does not end."""
        if self._executor.hangs(time.monotonic_ns()):
            return SymphonyError("a batch hangs on the device")
        return self._executor.lost

    def close(self) -> bool:
        """After the batch that runs."""
        return self._executor.close()


def earliest(*moments: int | None) -> int | None:
    """The first of those that are known."""
    return min((moment for moment in moments if moment is not None), default=None)
