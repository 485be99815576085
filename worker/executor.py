"""The threads that work a real device: one prepares batches, one executes them, in the same order.

While batch k is on the device, batch k + 1 is decoded, checked, collated and copied. The loop that
owns the sockets hands batches in by :meth:`Executor.submit` and collects finished ones by
:meth:`Executor.finished`; :attr:`Executor.fd` turns readable when there are some.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from symphony import tensors
from symphony.control import TensorSpec
from symphony.profile import Profile
from symphony.status import InvalidRequest, Status, SymphonyError
from worker.batch import Batch, Payload, one_line
from worker.definition import Definition
from worker.device import Device, DeviceLost, Item
from worker.profiling import profile_on

_log = logging.getLogger(__name__)

AHEAD: Final = 2
"""Prepared batches that may wait for the device; more would only hold memory."""


@dataclass(slots=True, frozen=True)
class Ready:
    """Every model is loaded; ``profiles`` by model."""

    profiles: dict[str, Profile]
    gpu_type: str
    memory_mb: int


class Executor:
    """Owns a device from its making to its end. Everything public is called from one thread.

    Args:
        make_device: called in the executor's thread; it may import heavy libraries and take seconds.
        definitions: the models to load.
    """

    def __init__(self, make_device: Callable[[], Device], definitions: Sequence[Definition]) -> None:
        self._make_device = make_device
        self._definitions = list(definitions)
        self._inputs: Mapping[str, list[TensorSpec]] = {d.name: d.inputs for d in definitions}
        self._submitted: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._prepared: queue.Queue[tuple[Batch, Any] | None] = queue.Queue(AHEAD)
        self._finished: deque[Batch] = deque()
        self._stop = threading.Event()
        self._outcome: Ready | Exception | None = None
        self.gpu_type = ""
        """Known once the device has been made; :attr:`fd` tells."""
        self.lost: DeviceLost | None = None
        """Set once the device can execute nothing more."""
        self.fd, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._device: Device | None = None
        self._threads = [
            threading.Thread(target=self._execute_loop, name="execute", daemon=True),
            threading.Thread(target=self._prepare_loop, name="prepare", daemon=True),
        ]

    def start(self) -> None:
        """Begin to load; :attr:`fd` turns readable when :meth:`ready` has something to say."""
        self._threads[0].start()

    def ready(self) -> Ready | None:
        """None while models load. Raises what loading raised (DefinitionError, DeviceError …)."""
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def submit(self, batch: Batch) -> None:
        """Hand in a batch whose pending rows all have inputs."""
        self._submitted.put(batch)

    def finished(self) -> list[Batch]:
        """Batches that have been executed since the last call, every row settled."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.fd, 4096):
                pass
        batches = []
        while self._finished:
            batches.append(self._finished.popleft())
        return batches

    def close(self, timeout_s: float = 5.0) -> bool:
        """Stop the threads after the batch that runs; False if one would not end in time."""
        self._stop.set()
        self._submitted.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout_s)
        if any(thread.is_alive() for thread in self._threads):
            return False
        os.close(self.fd)
        os.close(self._wake)
        return True

    # -- in the threads --------------------------------------------------------------------------

    def _notify(self) -> None:
        with contextlib.suppress(BlockingIOError):  # the pipe is full of wake-ups already
            os.write(self._wake, b"x")

    def _load(self) -> Ready:
        self._device = device = self._make_device()
        self.gpu_type = device.gpu_type
        self._notify()
        profiles = {}
        for definition in self._definitions:
            if self._stop.is_set():
                raise SymphonyError("stopped while loading")
            _log.info("loading %s on %s", definition.name, device.gpu_type)
            device.load(definition)
            profiles[definition.name] = profile_on(device, definition, self._stop.is_set)
        return Ready(profiles, device.gpu_type, device.memory_mb)

    def _execute_loop(self) -> None:
        try:
            self._outcome = self._load()
        except Exception as error:  # noqa: BLE001 - raised again by ready(), in the owner's thread
            self._outcome = error
            self._notify()
            return
        self._threads[1].start()
        self._notify()
        while (work := self._prepared.get()) is not None:
            self._execute(*work)

    def _execute(self, batch: Batch, prepared: Any) -> None:
        assert self._device is not None
        if batch.has_work() and not self._stop.is_set():
            try:
                if self.lost is not None:
                    raise self.lost
                executed = self._device.run(batch.model, prepared, len(batch.pending()))
            except Exception as error:  # noqa: BLE001 - a model that raises fails its batch, not the worker
                if isinstance(error, DeviceLost):
                    self.lost = error
                self._fail(batch, error)
            else:
                batch.ran = len(batch.pending())
                batch.outputs = executed.outputs
                batch.started_ns, batch.finished_ns = executed.started_ns, executed.finished_ns
                batch.succeed()
        self._finished.append(batch)
        self._notify()

    def _fail(self, batch: Batch, error: Exception) -> None:
        batch.settle_pending(Status.FAILED, one_line(f"{type(error).__name__}: {error}"))
        _log.warning("model %s failed a batch of %d: %s", batch.model, batch.key.size, one_line(error))

    def _prepare_loop(self) -> None:
        while (batch := self._submitted.get()) is not None and not self._stop.is_set():
            self._prepared.put((batch, self._prepare(batch)))
        self._prepared.put(None)

    def _prepare(self, batch: Batch) -> Any:
        assert self._device is not None
        items: list[Item] = []
        for row in batch.pending():
            payload = batch.inputs[row]
            assert payload is not None
            try:
                item = decode_item(self._inputs[batch.model], payload)
                self._device.check(batch.model, item)
            except InvalidRequest as error:
                batch.settle(row, Status.INVALID, str(error))
            except Exception as error:  # noqa: BLE001 - a model's own check may raise anything
                batch.settle(row, Status.FAILED, one_line(f"{type(error).__name__}: {error}"))
            else:
                items.append(item)
        if not items:
            return None
        try:
            return self._device.prepare(batch.model, items)
        except Exception as error:  # noqa: BLE001 - a model that raises fails its batch, not the worker
            self._fail(batch, error)
            return None


def decode_item(specs: Sequence[TensorSpec], payload: Payload) -> Item:
    """One request's inputs as arrays.

    Raises:
        InvalidRequest: names, types or shapes are not the model's, or a frame does not hold its tensor.
    """
    tensors.check_names(specs, payload.names)
    by_name = {spec.name: spec for spec in specs}
    item = {}
    for name, (dtype, shape), frame in zip(payload.names, payload.specs, payload.frames, strict=True):
        tensors.check(by_name[name], dtype, shape)
        item[name] = tensors.decode(dtype, shape, frame)
    return item
