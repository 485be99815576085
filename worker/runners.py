"""The two ways to run batches, behind one interface: on emulated GPUs, or on a real device."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from symphony.profile import Profile
from symphony.wire import Tensors
from worker.batch import Batch
from worker.emulated import EmulatedGpus
from worker.executor import Executor, Ready
from worker.intake import Fetch, Intake


class Runner(Protocol):
    """Takes batches and gives them back settled. Times are monotonic ns; no method blocks."""

    fd: int | None
    """Turns readable when :meth:`advance` or :meth:`ready` has news; None if it is by time only."""

    @property
    def gpu_type(self) -> str:
        """The key of its profiles in the catalogue; empty while it is not known yet."""

    def start(self) -> None:
        """Begin to load."""

    def ready(self) -> Ready | None:
        """None while models load; raises what loading raised."""

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

    def __init__(self, profiles: Mapping[str, Profile], gpu_type: str) -> None:
        self._ready = Ready(dict(profiles), gpu_type, 0)
        self._gpus = EmulatedGpus(profiles)
        self.gpu_type = gpu_type

    def start(self) -> None:
        """There is nothing to load."""

    def ready(self) -> Ready | None:
        """At once."""
        return self._ready

    def accept(self, batch: Batch, exec_at_ns: int, first_ns: int, last_ns: int) -> list[Fetch]:
        """Start it when its GPU is free; there is nothing to ask for."""
        self._gpus.start(batch)
        return []

    def arrived(self, slots: Collection[int], message: Tensors, frames: Sequence[Any]) -> int:
        """Nobody asked."""
        return int(message.key.size)

    def lost(self, slot: int) -> None:
        """A batch on a GPU goes on, whoever wanted it."""

    def advance(self, now: int) -> list[Batch]:
        """Batches whose end has come."""
        return list(self._gpus.finish(now))

    def next_wakeup(self, now: int) -> int | None:
        """The next end."""
        return self._gpus.next_wakeup()

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
        self.fd: int | None = executor.fd

    @property
    def gpu_type(self) -> str:
        """Known once the device has been opened."""
        return self._executor.gpu_type

    def start(self) -> None:
        """Start the executor's threads."""
        self._executor.start()

    def ready(self) -> Ready | None:
        """Once every model is loaded and has its profile."""
        return self._executor.ready()

    def accept(self, batch: Batch, exec_at_ns: int, first_ns: int, last_ns: int) -> list[Fetch]:
        """Ask every frontend in the batch for its inputs."""
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
                batch.started_ns = batch.finished_ns = now
                finished.append(batch)
        return self._executor.finished() + finished

    def next_wakeup(self, now: int) -> int | None:
        """When patience with a silent frontend ends."""
        return self._intake.next_wakeup(now)

    def failure(self) -> Exception | None:
        """The device is lost."""
        return self._executor.lost

    def close(self) -> bool:
        """After the batch that runs."""
        return self._executor.close()
