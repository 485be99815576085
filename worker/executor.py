"""The threads that work a real device: batches are prepared, executed and collected one after the other.

While batch k is on the device, batch k + 1 is decoded, checked, collated and copied, and what batch
k - 1 returned is copied back and post-processed: three threads, the order of batches in all of them the
same. A fourth thread loads and unloads models (:mod:`worker.loader`). The loop that owns the sockets
hands batches in by :meth:`Executor.submit` and collects finished ones by :meth:`Executor.finished`;
:attr:`Executor.fd` turns readable when there are some.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from symphony import tensors
from symphony.control import TensorSpec
from symphony.status import InvalidRequest, Status, SymphonyError
from worker.batch import Batch, Payload, one_line
from worker.definition import Definition
from worker.device import Device, DeviceLost, Item, OutOfMemory, not_finite
from worker.holdings import Holdings, Ready, key_of
from worker.lifecycle import Change
from worker.loader import Loader
from worker.turns import Turns

_log = logging.getLogger(__name__)

AHEAD: Final = 2
"""Prepared batches that may wait for the device; more would only hold memory."""
ON_DEVICE: Final = 2
"""Batches launched and not finished: one runs, the next follows it without a gap."""
HANG_NS: Final = 30_000_000_000
"""A batch that is on the device for longer, and for longer than :data:`HANG_FACTOR` times l(b), hangs."""
HANG_FACTOR: Final = 20


class _Work(NamedTuple):
    """A batch, the copy that it runs on, what :meth:`Device.prepare` or ``launch`` made of it (None where
    nothing is left to do), and the rows that it is made of."""

    batch: Batch
    key: str
    made: Any
    rows: list[int]


class Executor:
    """Owns a device from its making to its end. Everything public is called from one thread.

    Args:
        make_device: called in the executor's thread; it may import heavy libraries and take seconds.
        definitions: the models to load first.
        hang_ns: see :data:`HANG_NS`.
    """

    def __init__(
        self, make_device: Callable[[], Device], definitions: Sequence[Definition], hang_ns: int = HANG_NS
    ) -> None:
        self._make_device = make_device
        self._hang_ns = hang_ns
        self._stop = threading.Event()
        self._turns = Turns()
        self._loader = Loader(self._turns, self._stop.is_set, self._notify, hang_ns)
        self._holdings = Holdings(definitions, self._loader.ask)
        self._copies: dict[int, int] = {}
        """By id of a batch that was reserved: the copy that it runs on."""
        self._submitted: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._prepared: queue.Queue[_Work | None] = queue.Queue(AHEAD)
        self._launched: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(ON_DEVICE)
        self._finished: deque[tuple[Batch, bool]] = deque()
        self._error: Exception | None = None
        self.gpu_type = ""
        """Known once the device has been made; :attr:`fd` tells."""
        self.uuid = ""
        """The GPU's, known at the same time; empty where there is none."""
        self.lost: DeviceLost | None = None
        """Set once the device can execute nothing more."""
        self.fd, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._device: Device | None = None
        self._on_device: deque[tuple[int, Batch]] = deque()
        loops = {"prepare": self._prepare_loop, "execute": self._execute_loop, "collect": self._collect_loop}
        self._threads = [threading.Thread(target=self._open, name="open", daemon=True)]
        self._threads += [threading.Thread(target=f, name=name, daemon=True) for name, f in loops.items()]

    # -- models --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to load; :attr:`fd` turns readable when :meth:`ready` has something to say."""
        self._threads[0].start()

    def ready(self) -> Ready | None:
        """None while the first models load. Raises what loading raised (DefinitionError, DeviceError …)."""
        if self._error is not None:
            raise self._error
        self._follow_loader()
        return self._holdings.first_ready()

    def want(self, definitions: Sequence[Definition]) -> None:
        """The models to hold from now on; files that have changed since are loaded anew."""
        self._holdings.want(time.monotonic_ns(), definitions)

    def held(self) -> Ready:
        """The models that serve now."""
        return self._holdings.held

    def failed(self) -> dict[str, str]:
        """Models that are wanted and cannot be loaded, and why."""
        return self._holdings.failed()

    def changes(self) -> list[Change]:
        """What has become of models since the last call."""
        return self._holdings.changes()

    def versions(self) -> dict[str, str]:
        """What serves of each model: the fingerprint of its files, and the number of the copy."""
        return self._holdings.versions()

    def _follow_loader(self) -> None:
        if self._device is not None:
            self._loader.give_up(time.monotonic_ns(), self._device)
            for report in self._loader.reports():
                self._holdings.report(time.monotonic_ns(), report)

    @property
    def longest_wait_ns(self) -> int:
        """The longest that a batch has waited for a run of a model that was being loaded."""
        return self._turns.longest_wait_ns

    # -- batches -------------------------------------------------------------------------------------

    def reserve(self, batch: Batch) -> bool:
        """The model stays loaded until this batch is over; False if it is not here."""
        copy = self._holdings.begin(batch.model)
        if copy is not None:
            self._copies[id(batch)] = copy
        return copy is not None

    def submit(self, batch: Batch) -> None:
        """Hand in a batch whose pending rows all have inputs."""
        if id(batch) not in self._copies and not self.reserve(batch):
            batch.settle_pending(Status.UNAVAILABLE, f"model {batch.model!r} is not loaded here")
            self._finished.append((batch, False))
            self._notify()
            return
        self._submitted.put(_Work(batch, key_of(batch.model, self._copies[id(batch)]), None, []))

    def release(self, batch: Batch) -> None:
        """A reserved batch will not be submitted."""
        self._over(batch, out_of_memory=False)

    def finished(self) -> list[Batch]:
        """Batches that have been executed since the last call, every row settled."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.fd, 4096):
                pass
        batches = []
        while self._finished:
            batch, out_of_memory = self._finished.popleft()
            self._over(batch, out_of_memory)
            batches.append(batch)
        self._follow_loader()
        return batches

    def _over(self, batch: Batch, out_of_memory: bool) -> None:
        copy = self._copies.pop(id(batch), None)
        if copy is not None:
            self._holdings.end(time.monotonic_ns(), copy, out_of_memory=out_of_memory, ran=batch.ran > 0)

    def hang_due(self) -> int | None:
        """Monotonic ns when the batch that has been on the device longest would count as hanging."""
        try:
            since, batch = self._on_device[0]
        except IndexError:
            return None
        return since + max(self._hang_ns, HANG_FACTOR * batch.expected_ns)

    def load_due(self) -> int | None:
        """Monotonic ns when what is being loaded would count as hanging; it is given up then."""
        return self._loader.due()

    def hangs(self, now: int) -> bool:
        """Whether a batch is on the device and will not end; its thread cannot be stopped."""
        due = self.hang_due()
        return due is not None and now >= due

    def close(self, timeout_s: float = 5.0) -> bool:
        """Stop the threads after the batch that runs; False if one would not end in time."""
        self._stop.set()
        self._submitted.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout_s)
        if not self._loader.close(timeout_s) or any(thread.is_alive() for thread in self._threads):
            return False
        os.close(self.fd)
        os.close(self._wake)
        return True

    # -- in the threads --------------------------------------------------------------------------

    def _notify(self) -> None:
        with contextlib.suppress(BlockingIOError):  # the pipe is full of wake-ups already
            os.write(self._wake, b"x")

    def _open(self) -> None:
        try:
            device = self._make_device()
        except Exception as error:  # noqa: BLE001 - raised again by ready(), in the owner's thread
            self._error = error
            self._notify()
            return
        self._holdings.opened(device.gpu_type, device.memory_mb)
        self.uuid = device.describe().get("uuid", "")
        self._device, self.gpu_type = device, device.gpu_type
        for thread in self._threads[1:]:
            thread.start()
        self._loader.start(device)
        self._notify()

    def _prepare_loop(self) -> None:
        while (work := self._submitted.get()) is not None and not self._stop.is_set():
            self._prepared.put(self._prepare(work))
        self._prepared.put(None)

    def _execute_loop(self) -> None:
        while (work := self._prepared.get()) is not None:
            self._room.acquire()
            self._launched.put(self._launch(work))
        self._launched.put(None)

    def _collect_loop(self) -> None:
        while (work := self._launched.get()) is not None:
            out_of_memory = self._collect(work)
            self._room.release()
            self._finished.append((work.batch, out_of_memory))
            self._notify()

    def _prepare(self, work: _Work) -> _Work:
        assert self._device is not None
        specs = self._loader.definition(work.key).inputs
        batch = work.batch
        items: list[Item] = []
        for row in batch.pending():
            payload = batch.inputs[row]
            assert payload is not None
            try:
                item = decode_item(specs, payload)
                self._device.check(work.key, item)
            except InvalidRequest as error:
                batch.settle(row, Status.INVALID, str(error))
            except Exception as error:  # noqa: BLE001 - a model's own check may raise anything
                batch.settle(row, Status.FAILED, one_line(f"{type(error).__name__}: {error}"))
            else:
                items.append(item)
        if not items:
            return work
        try:
            return work._replace(made=self._device.prepare(work.key, items), rows=batch.pending())
        except Exception as error:  # noqa: BLE001 - a model that raises fails its batch, not the worker
            return self._failed(work, error)

    def _launch(self, work: _Work) -> _Work:
        assert self._device is not None
        if work.made is None or isinstance(work.made, OutOfMemory):
            return work
        if self._stop.is_set():
            return work._replace(made=None)
        self._turns.enter(time.monotonic_ns)
        self._on_device.append((time.monotonic_ns(), work.batch))
        try:
            if self.lost is not None:
                raise self.lost
            return work._replace(made=self._device.launch(work.key, work.made, len(work.rows)))
        except Exception as error:  # noqa: BLE001 - a model that raises fails its batch, not the worker
            self._on_device.pop()  # the last one: only this thread adds
            self._turns.leave()
            return self._failed(work, error)

    def _collect(self, work: _Work) -> bool:
        """Settle every row; True if the device ran out of memory."""
        if work.made is None or isinstance(work.made, OutOfMemory):
            return work.made is not None
        assert self._device is not None
        try:
            try:
                executed = self._device.collect(work.made)
            finally:
                self._on_device.popleft()
                self._turns.leave()
        except Exception as error:  # noqa: BLE001 - as above
            return self._failed(work, error).made is not None
        batch, outputs = work.batch, executed.outputs
        batch.ran = len(work.rows)
        batch.started_ns, batch.finished_ns = executed.started_ns, executed.finished_ns
        if self._loader.definition(work.key).finite:
            bad = not_finite(outputs, len(work.rows))
            for row, name in bad.items():
                batch.settle(work.rows[row], Status.FAILED, f"output {name!r} is not a finite number")
            if bad:
                kept = [row for row in range(len(work.rows)) if row not in bad]
                outputs = {name: array[kept] for name, array in outputs.items()}
        batch.outputs = outputs
        batch.succeed()
        return False

    def _failed(self, work: _Work, error: Exception) -> _Work:
        """Settle the rows; ``made`` of what comes back is the error if memory was short, else None."""
        if isinstance(error, DeviceLost):
            self.lost = error
        kind = "" if isinstance(error, SymphonyError) else f"{type(error).__name__}: "
        work.batch.settle_pending(Status.FAILED, one_line(f"{kind}{error}"))
        size, text = work.batch.key.size, one_line(error)
        _log.warning("model %s failed a batch of %d: %s", work.batch.model, size, text)
        short = isinstance(error, OutOfMemory | MemoryError)
        return work._replace(made=OutOfMemory(str(error)) if short else None)


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
