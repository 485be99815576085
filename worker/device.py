"""What the executor asks of a real device; :mod:`worker.torch_device` is the one that ships."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from symphony.status import SymphonyError
from symphony.tensors import DTYPES
from worker.definition import Definition

Item = Mapping[str, npt.NDArray[Any]]
Turn = Callable[[], AbstractContextManager[object]]


class DeviceError(SymphonyError):
    """The device is not there, or it cannot be used."""


class DeviceLost(SymphonyError):
    """The device can execute nothing more in this process (a sticky CUDA error): start it anew."""


class OutOfMemory(SymphonyError):
    """The device has no memory left for a load or a batch; it goes on working."""


def open_device(name: str, threads: int, gpu_type: str) -> Device:
    """The real device ``cpu`` or ``cuda:N``; imports PyTorch, which takes seconds.

    Raises:
        DeviceError: there is no such device, or no PyTorch.
    """
    try:
        from worker.torch_device import TorchDevice
    except ModuleNotFoundError as error:
        raise DeviceError(
            f"device {name} needs {error.name!r}, which is not installed: "
            "pip install 'symphony-serving[worker]' (with [zoo] for the zoo's models)"
        ) from None
    return TorchDevice(name, threads, gpu_type)


@dataclass(slots=True, frozen=True)
class Executed:
    """One executed batch: outputs by name with one row per item, and when the device was busy with it.

    Times are monotonic ns. ``copy_in_ns``, ``copy_out_ns`` and ``post_ns`` lasted what else was done for it.
    """

    outputs: dict[str, npt.NDArray[Any]]
    started_ns: int
    finished_ns: int
    copy_in_ns: int = 0
    copy_out_ns: int = 0
    post_ns: int = 0


class Device(Protocol):
    """Holds copies of models, told apart by ``key``, and executes batches.

    ``load`` and ``unload`` are called from one thread, each of ``prepare``, ``launch`` and ``collect``
    from one of its own; for a copy that is being loaded all three from the loading thread, at times when
    no other batch is on the device.
    """

    @property
    def gpu_type(self) -> str:
        """The key of its latency profiles in the catalogue."""

    @property
    def memory_mb(self) -> int:
        """The device's own memory; 0 where it has none."""

    def free_bytes(self) -> int | None:
        """Memory that is free for models now; None where that cannot be told."""

    def used_bytes(self) -> int:
        """Memory that models use now; where only the process can be asked, the process's."""

    def peak_bytes(self, reset: bool = False) -> int:
        """The most memory that models have used since the last reset; where only the process can be asked,
        the process's."""

    def weights_bytes(self, key: str) -> int:
        """Of a copy's parameters and buffers."""

    def graph_sizes(self, key: str) -> list[int]:
        """Entry b - 1: the size that a batch of b is padded to, 0: none; empty where nothing is padded."""

    def describe(self) -> dict[str, str]:
        """For reports: ``torch`` (its version); of a GPU also ``uuid``, as NVML knows it."""

    def tune(self, key: str, items: Callable[[int], Sequence[Item]], turn: Turn) -> None:
        """Prepare whatever depends on the batch size, once per copy and before its first batch.

        Args:
            items: makes that many requests' inputs.
            turn: every run on the device happens inside ``with turn():``.
        """

    def load(self, key: str, definition: Definition) -> None:
        """Make a copy of a model ready to be executed. Raises DefinitionError, OutOfMemory."""

    def unload(self, key: str) -> None:
        """Forget a copy and free its memory; one that is not there is no error."""

    def check(self, key: str, item: Item) -> None:
        """Raises InvalidRequest if the model has its own reason to refuse one request's inputs."""

    def prepare(self, key: str, items: Sequence[Item]) -> Any:
        """Collate and pre-process, and start the copy to the device. May raise whatever the model does."""

    def launch(self, key: str, prepared: Any, count: int) -> Any:
        """Begin to execute what :meth:`prepare` returned for ``count`` items; on an asynchronous device
        it returns before the batch has run. May raise whatever the model does, and OutOfMemory."""

    def collect(self, launched: Any) -> Executed:
        """Wait for what :meth:`launch` returned, and post-process. May raise as ``launch`` does."""


def rows_of(
    definition: Definition, outputs: Mapping[str, npt.NDArray[Any]], count: int
) -> dict[str, npt.NDArray[Any]]:
    """A model's outputs, checked against its definition, in the definition's order and types.

    Raises:
        ValueError: a name, a number of rows or a shape is not what the definition says.
    """
    if set(outputs) != {spec.name for spec in definition.outputs}:
        wanted = ", ".join(spec.name for spec in definition.outputs)
        raise ValueError(f"the model returned {', '.join(sorted(outputs))}; its definition says {wanted}")
    checked: dict[str, npt.NDArray[Any]] = {}
    for spec in definition.outputs:
        array = np.asarray(outputs[spec.name])
        shape = list(array.shape)
        fits = len(shape) == len(spec.shape) + 1 and shape[0] == count
        if not fits or any(w not in (-1, s) for w, s in zip(spec.shape, shape[1:], strict=True)):
            raise ValueError(f"output {spec.name!r} has shape {shape}; expected {[count, *spec.shape]}")
        checked[spec.name] = cast(array, spec.dtype)
    return checked


def cast(array: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """``array`` in the wire's type; BYTES stay objects."""
    target = DTYPES.get(dtype)
    return array if target is None else array.astype(target, copy=False)


def not_finite(outputs: Mapping[str, npt.NDArray[Any]], count: int) -> dict[int, str]:
    """Rows that hold a NaN or an infinity → the name of the first such output."""
    bad: dict[int, str] = {}
    for name, array in outputs.items():
        if array.dtype.kind != "f":
            continue
        fine = np.isfinite(array).reshape(count, -1).all(axis=1)
        for row in np.flatnonzero(~fine).tolist():
            bad.setdefault(row, name)
    return bad
