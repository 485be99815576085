"""CPU and CUDA devices: PyTorch modules behind the executor's interface.

A loader returns a ``torch.nn.Module``. What it may have besides ``forward``:

* ``check(item)``: raise :class:`~symphony.status.InvalidRequest` for one request's bad contents;
* ``preprocess(items)``: list of ``{input: array}`` → ``{argument of forward: CPU tensor}``, by default
  each input stacked along a new first dimension;
* ``postprocess(outputs)``: ``{output: CPU tensor}`` → ``{output: array}`` with one row per item.

``forward`` returns one tensor, a tuple in the order of the definition's outputs, or a dict by name.

On CUDA inputs go through pinned memory on a stream of their own, so that they are copied while the
batch before runs; the compute stream waits for them by event, and events time the batch.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from symphony.tensors import BYTES
from worker.definition import Definition, DefinitionError
from worker.device import DeviceError, DeviceLost, Executed, Item, OutOfMemory, rows_of
from worker.loading import call

_PRECISION: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class _Model(NamedTuple):
    definition: Definition
    module: nn.Module


class _Prepared(NamedTuple):
    tensors: dict[str, Tensor]
    pinned: list[Tensor]
    """Kept until the copy from them has been executed."""
    copied: Any
    """CUDA event, or None."""


class TorchDevice:
    """``cpu`` or ``cuda:N``.

    Args:
        name: as PyTorch calls the device.
        threads: CPU threads that one operator may use.
        gpu_type: name for profiles; by default ``cpu`` or the GPU's product name.

    Raises:
        DeviceError: there is no such device here.
    """

    def __init__(self, name: str, threads: int = 1, gpu_type: str = "") -> None:
        self.device = torch.device(name)
        self._cuda = self.device.type == "cuda"
        self._models: dict[str, _Model] = {}
        self.memory_mb = 0
        torch.set_num_threads(threads)
        self._compute: Any = None
        self._copy: Any = None
        if not self._cuda:
            self.gpu_type = gpu_type or "cpu"
            return
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (self.device.index or 0) >= count:
            raise DeviceError(
                f"device {name}: PyTorch sees {count} CUDA device(s) on this machine; "
                "use cpu or emulated, or look at CUDA_VISIBLE_DEVICES and the driver"
            )
        properties = torch.cuda.get_device_properties(self.device)
        self.gpu_type = gpu_type or str(properties.name).strip().replace(" ", "-")
        self.memory_mb = int(properties.total_memory) >> 20
        self._compute = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._copy = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def free_bytes(self) -> int | None:
        """What the driver reports as free, and on a CPU what the kernel could hand out."""
        if self._cuda:
            return int(torch.cuda.mem_get_info(self.device)[0])
        return available_bytes()

    def unload(self, key: str) -> None:
        """Forget the module; on CUDA give its memory back to the driver."""
        self._models.pop(key, None)
        gc.collect()
        if self._cuda:
            torch.cuda.empty_cache()

    def load(self, key: str, definition: Definition) -> None:
        """Call the definition's loader. Raises DefinitionError, OutOfMemory."""
        try:
            self._models[key] = self._load(definition)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(f"model {definition.name!r}: {error}") from None

    def _load(self, definition: Definition) -> _Model:
        module = call(definition, "loader", definition.loader, self.device, **definition.options)
        if not isinstance(module, nn.Module):
            raise DefinitionError(
                f"model {definition.name!r}: loader: {definition.loader!r} returned "
                f"{type(module).__name__}; expected a torch.nn.Module"
            )
        for spec in definition.inputs:
            if (spec.dtype == BYTES or -1 in spec.shape) and not hasattr(module, "preprocess"):
                raise DefinitionError(
                    f"model {definition.name!r}: input {spec.name!r} cannot be stacked as it is "
                    f"({spec.dtype} {spec.shape}): its module needs preprocess(items)"
                )
        module = module.to(self.device, _PRECISION[definition.precision]).eval()
        return _Model(definition, module)

    def check(self, key: str, item: Item) -> None:
        """The module's own ``check``, if it has one."""
        own = getattr(self._models[key].module, "check", None)
        if own is not None:
            own(item)

    def prepare(self, key: str, items: Sequence[Item]) -> _Prepared:
        """Collate on the CPU; on CUDA start the copy and do not wait for it."""
        definition, module = self._models[key]
        own = getattr(module, "preprocess", None)
        tensors: dict[str, Tensor] = own(items) if own is not None else _stack(definition, items)
        wanted = _PRECISION[definition.precision]
        tensors = {k: t.to(wanted) if t.is_floating_point() else t for k, t in tensors.items()}
        if not self._cuda:
            return _Prepared(tensors, [], None)
        with torch.cuda.stream(self._copy):
            pinned = {k: t.pin_memory() for k, t in tensors.items()}
            there = {k: t.to(self.device, non_blocking=True) for k, t in pinned.items()}
            for tensor in there.values():
                tensor.record_stream(self._compute)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._copy)
        return _Prepared(there, list(pinned.values()), copied)

    def launch(self, key: str, prepared: _Prepared, count: int) -> Executed:
        """Forward, copy back, post-process."""
        definition, module = self._models[key]
        try:
            with torch.inference_mode():
                run = self._run_cuda if self._cuda else self._run_cpu
                outputs, started = run(definition, module, prepared)
                own = getattr(module, "postprocess", None)
                arrays: Mapping[str, npt.NDArray[Any]]
                arrays = own(outputs) if own is not None else {k: _to_numpy(t) for k, t in outputs.items()}
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(str(error)) from None
        except torch.AcceleratorError as error:
            raise DeviceLost(f"{self.device}: {error}") from error
        rows = rows_of(definition, arrays, count)
        return Executed(rows, started, time.monotonic_ns())

    def collect(self, launched: Executed) -> Executed:
        """It is all there."""
        return launched

    def _run_cpu(
        self, definition: Definition, module: nn.Module, prepared: _Prepared
    ) -> tuple[dict[str, Tensor], int]:
        started = time.monotonic_ns()
        return _by_name(definition, module(**prepared.tensors)), started

    def _run_cuda(
        self, definition: Definition, module: nn.Module, prepared: _Prepared
    ) -> tuple[dict[str, Tensor], int]:
        with torch.cuda.stream(self._compute):
            self._compute.wait_event(prepared.copied)
            start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            start.record(self._compute)
            outputs = _by_name(definition, module(**prepared.tensors))
            host = {}
            for name, tensor in outputs.items():
                host[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                host[name].copy_(tensor, non_blocking=True)
            end.record(self._compute)
            end.synchronize()
        return host, time.monotonic_ns() - round(start.elapsed_time(end) * 1e6)


def available_bytes() -> int | None:
    """What Linux could hand out without swapping; None elsewhere."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return None


def _stack(definition: Definition, items: Sequence[Item]) -> dict[str, Tensor]:
    return {
        spec.name: torch.from_numpy(np.stack([item[spec.name] for item in items]))
        for spec in definition.inputs
    }


def _by_name(definition: Definition, outputs: Any) -> dict[str, Tensor]:
    names = [spec.name for spec in definition.outputs]
    if isinstance(outputs, Mapping):
        return dict(outputs)
    values = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
    if len(values) != len(names):
        raise ValueError(f"the model returned {len(values)} outputs; its definition says {', '.join(names)}")
    return dict(zip(names, values, strict=True))


def _to_numpy(tensor: Tensor) -> npt.NDArray[Any]:
    # NumPy knows no bfloat16.
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
