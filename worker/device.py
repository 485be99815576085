"""What the executor asks of a real device; :mod:`worker.torch_device` is the one that ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from symphony.status import SymphonyError
from symphony.tensors import DTYPES
from worker.definition import Definition

Item = Mapping[str, npt.NDArray[Any]]


class DeviceError(SymphonyError):
    """The device is not there, or it cannot be used."""


class DeviceLost(SymphonyError):
    """The device can execute nothing more in this process (a sticky CUDA error): start it anew."""


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

    Times are monotonic ns.
    """

    outputs: dict[str, npt.NDArray[Any]]
    started_ns: int
    finished_ns: int


class Device(Protocol):
    """Loads models and executes batches. ``prepare`` and ``run`` are called from one thread each."""

    @property
    def gpu_type(self) -> str:
        """The key of its latency profiles in the catalogue."""

    @property
    def memory_mb(self) -> int:
        """The device's own memory; 0 where it has none."""

    def load(self, definition: Definition) -> None:
        """Make a model ready to be executed. Raises DefinitionError."""

    def check(self, model: str, item: Item) -> None:
        """Raises InvalidRequest if the model has its own reason to refuse one request's inputs."""

    def prepare(self, model: str, items: Sequence[Item]) -> Any:
        """Collate and pre-process, and start the copy to the device. May raise whatever the model does."""

    def run(self, model: str, prepared: Any, count: int) -> Executed:
        """Execute what :meth:`prepare` returned for ``count`` items. May raise whatever the model does."""


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
