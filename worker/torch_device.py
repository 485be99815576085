"""CPU and CUDA devices: PyTorch modules behind the executor's interface.

A batch's way has three steps, each in a thread of the executor's, on three lanes (:mod:`worker.lanes`)::

    prepare   collate, pre-process, fill page-locked buffers, start the copy in
    launch    the compute lane waits for that copy, runs the model, and the copy out follows it
    collect   wait for the copy out, post-process, check

Nothing here waits for a batch before the next one is launched, so that on CUDA one follows the other
without a gap; a batch begins when its inputs are there and the one before has ended, by the lane's order.
How long it kept the device lies between two marks of the compute lane.
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from worker.compiling import compile_for, trial_sizes
from worker.definition import Definition, DefinitionError
from worker.device import DeviceError, DeviceLost, Executed, Item, OutOfMemory, Turn, rows_of
from worker.graphs import Graphs, choose, padded
from worker.lanes import CudaLanes, HostLanes, Lanes
from worker.staging import Staging
from worker.torch_model import Model, by_name, load_model

GRAPH_TRIALS: Final = 5
"""Runs of every captured size with and without its graph, to decide which is faster."""


class Prepared(NamedTuple):
    """Inputs on the device, or on their way."""

    tensors: dict[str, Tensor]
    begun: Any
    copied: Any


class Launched(NamedTuple):
    """A batch that runs, or has run: its marks, and where its outputs arrive."""

    model: Model
    size: int
    prepared: Prepared
    started: Any
    ended: Any
    copied: Any
    outputs: dict[str, Tensor]
    buffers: list[Tensor]


class TorchDevice:
    """``cpu`` or ``cuda:N``.

    Args:
        name: as PyTorch calls the device.
        threads: CPU threads that one operator may use.
        gpu_type: name for profiles; by default ``cpu`` or the GPU's product name.
        lanes: where work goes; by default what fits the device.

    Raises:
        DeviceError: there is no such device here.
    """

    def __init__(self, name: str, threads: int = 1, gpu_type: str = "", lanes: Lanes | None = None) -> None:
        self.device = torch.device(name)
        self._cuda = self.device.type == "cuda"
        self._models: dict[str, Model] = {}
        self.memory_mb = 0
        torch.set_num_threads(threads)
        self.gpu_type = gpu_type or "cpu"
        if self._cuda:
            properties = _cuda_properties(self.device)
            self.gpu_type = gpu_type or str(properties.name).strip().replace(" ", "-")
            self.memory_mb = int(properties.total_memory) >> 20
        self.lanes: Lanes = lanes or (CudaLanes(self.device) if self._cuda else HostLanes())
        self.staging = Staging(self.lanes.buffer, self.lanes.reached)

    # -- models --------------------------------------------------------------------------------------

    def load(self, key: str, definition: Definition) -> None:
        """Raises DefinitionError, OutOfMemory."""
        if definition.cuda_graphs and not self.lanes.staged:
            raise DefinitionError(
                f"model {definition.name!r}: cuda_graphs needs a CUDA device, not {self.device}"
            )
        with self._errors():
            with self.lanes.use("load"):
                model = load_model(definition, self.device)
            self.lanes.wait(self.lanes.mark("load"))
            if definition.cuda_graphs:
                model.graphs = Graphs(self.lanes, lambda tensors: by_name(definition, model.run(**tensors)))
            self._models[key] = model

    def unload(self, key: str) -> None:
        """Forget the module; on CUDA give its memory back to the driver."""
        self._models.pop(key, None)
        gc.collect()
        if self._cuda:
            torch.cuda.empty_cache()

    def tune(self, key: str, items: Callable[[int], Sequence[Item]], turn: Turn) -> None:
        """Compile, which takes long and therefore no turn. Then capture a graph for every power of two, and
        decide from the times with and without which batches run on one."""
        model = self._models[key]
        if model.definition.compile:
            sizes = trial_sizes(model.definition.max_batch)
            with self._errors():
                trials = ((size, self._there(model, items(size))) for size in sizes)
                compile_for(model, trials, self._alone, self._cuda)
        if model.graphs is None:
            return
        graphs, most = model.graphs, model.definition.max_batch
        eager: dict[int, float] = {}
        replayed: dict[int, float] = {}
        for size in sorted({1 << i for i in range(most.bit_length())} | {most}):
            with turn():
                prepared = self.prepare(key, items(size))
                with self._errors(), torch.inference_mode(), self.lanes.use("compute"):
                    self.lanes.after("compute", prepared.copied)
                    self.lanes.wait(prepared.copied)
                    self._capture(model, graphs, size, prepared.tensors)
            for times, table in ((eager, []), (replayed, [size] * size)):
                graphs.table = table
                found = []
                for _ in range(GRAPH_TRIALS):
                    with turn():
                        executed = self.collect(self.launch(key, self.prepare(key, items(size)), size))
                    found.append(executed.finished_ns - executed.started_ns)
                times[size] = float(sorted(found)[len(found) // 2])
        graphs.table = choose(eager, replayed, most)

    def _capture(self, model: Model, graphs: Graphs, size: int, tensors: Mapping[str, Tensor]) -> None:
        """Raises DefinitionError where the model does what cannot be captured; the device is none the worse
        for that, which is tried."""
        try:
            graphs.capture(size, tensors)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # the base of CUDA's errors
            self.lanes.wait(self.lanes.mark("load"))  # raises if the device is lost
            text = " ".join(str(error).split())[:300]
            raise DefinitionError(
                f"model {model.definition.name!r}: cuda_graphs: a batch of {size} cannot be captured: {text}"
            ) from error

    def _there(self, model: Model, items: Sequence[Item]) -> dict[str, Tensor]:
        """Inputs on the device, for a run that is no batch."""
        with self.lanes.use("load"):
            return {name: tensor.to(self.device) for name, tensor in model.inputs(items).items()}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """A run outside of the batches' lanes, over at the end."""
        with torch.inference_mode(), self.lanes.use("load"):
            yield
        self.lanes.wait(self.lanes.mark("load"))

    def graph_sizes(self, key: str) -> list[int]:
        """Entry b - 1: the graph that a batch of b runs on, 0 for none; empty without graphs."""
        graphs = self._models[key].graphs
        return [] if graphs is None else list(graphs.table)

    def weights_bytes(self, key: str) -> int:
        """Of parameters and buffers."""
        return self._models[key].weights_bytes()

    def free_bytes(self) -> int | None:
        """What the driver reports as free, and on a CPU what the kernel could hand out."""
        if self._cuda:
            # What PyTorch keeps without using it is free for models, too.
            kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            return int(torch.cuda.mem_get_info(self.device)[0]) + int(kept)
        return available_bytes()

    def used_bytes(self) -> int:
        """On CUDA PyTorch's own count; on a CPU what of the process is resident."""
        if self._cuda:
            return int(torch.cuda.memory_allocated(self.device))
        return resident("VmRSS")

    def peak_bytes(self, reset: bool = False) -> int:
        """On CUDA PyTorch's own count; on a CPU the process's largest resident size."""
        if self._cuda:
            if reset:
                torch.cuda.reset_peak_memory_stats(self.device)
            return int(torch.cuda.max_memory_allocated(self.device))
        return resident_peak(reset)

    def describe(self) -> dict[str, str]:
        """Of PyTorch, and of the CUDA that it was built for; and which GPU it is."""
        versions = {"torch": str(torch.__version__)}
        if self._cuda:
            uuid = str(torch.cuda.get_device_properties(self.device).uuid)
            versions["uuid"] = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        if torch.version.cuda:
            versions["cuda"] = str(torch.version.cuda)
        return versions

    # -- batches -------------------------------------------------------------------------------------

    def check(self, key: str, item: Item) -> None:
        """The model's own ``check``, if it has one."""
        own = self._models[key].check
        if own is not None:
            own(item)

    def prepare(self, key: str, items: Sequence[Item]) -> Prepared:
        """Collate on the CPU, and start the copy without waiting for it."""
        model = self._models[key]
        size = model.graphs.size_for(len(items)) if model.graphs is not None else 0
        if not self.lanes.staged:
            tensors = {name: padded(tensor, size) for name, tensor in model.inputs(items).items()}
            with self._errors():
                now = self.lanes.mark("in")
                return Prepared(tensors, now, now)
        with self._errors():
            views = self._staged(model, items, size)
            with self.lanes.use("in"):
                begun = self.lanes.mark("in")
                there = {name: self.lanes.to_device(view) for name, (_, view) in views.items()}
                copied = self.lanes.mark("in")
            for tensor in there.values():
                self.lanes.used_on(tensor, "compute")
            for buffer, _ in views.values():
                self.staging.give(buffer, copied)
            return Prepared(there, begun, copied)

    def _staged(self, model: Model, items: Sequence[Item], size: int) -> dict[str, tuple[Tensor, Tensor]]:
        """The inputs in staging buffers, padded to ``size`` rows: by name the buffer and its view."""
        views = {}
        if model.stacks:
            for name, rows in model.rows(items).items():
                shape = (max(size, len(items)), *rows.arrays[0].shape)
                views[name] = self.staging.take(shape, rows.dtype)
                rows.fill(views[name][1])
            return views
        for name, tensor in model.inputs(items).items():
            whole = padded(tensor, size)
            views[name] = self.staging.take(tuple(whole.shape), whole.dtype)
            views[name][1].copy_(whole)
        return views

    def launch(self, key: str, prepared: Prepared, count: int) -> Launched:
        """Give the batch to the compute lane, and its outputs to the lane out."""
        model = self._models[key]
        lanes = self.lanes
        with self._errors(), torch.inference_mode():
            with lanes.use("compute"):
                lanes.after("compute", prepared.copied)
                started = lanes.mark("compute")
                outputs = self._run(model, prepared.tensors, count)
                ended = lanes.mark("compute")
            if not lanes.staged:
                return Launched(model, count, prepared, started, ended, ended, outputs, [])
            buffers, host = [], {}
            with lanes.use("out"):
                lanes.after("out", ended)
                for name, tensor in outputs.items():
                    buffer, host[name] = self.staging.take(tuple(tensor.shape), tensor.dtype)
                    host[name].copy_(tensor, non_blocking=True)
                    lanes.used_on(tensor, "out")
                    buffers.append(buffer)
                copied = lanes.mark("out")
        return Launched(model, count, prepared, started, ended, copied, host, buffers)

    def _run(self, model: Model, tensors: dict[str, Tensor], count: int) -> dict[str, Tensor]:
        graphs = model.graphs
        size = graphs.size_for(count) if graphs is not None else 0
        if graphs is None or not size:
            return by_name(model.definition, model.run(**tensors))
        # The next replay overwrites what this one returned, while it is still being copied out.
        return {name: tensor[:count].clone() for name, tensor in graphs.replay(size, tensors).items()}

    def collect(self, launched: Launched) -> Executed:
        """Wait, post-process, check the outputs against the definition."""
        lanes, model = self.lanes, launched.model
        with self._errors():
            lanes.wait(launched.copied)
            now = time.monotonic_ns()
            copy_out = lanes.between_ns(launched.ended, launched.copied)
            busy = lanes.between_ns(launched.started, launched.ended)
            copy_in = lanes.between_ns(launched.prepared.begun, launched.prepared.copied)
            finished = lanes.time_of(launched.ended)
            outputs = launched.outputs
            if lanes.staged:  # the buffers are to be used again
                outputs = {name: tensor.clone() for name, tensor in outputs.items()}
                for buffer in launched.buffers:
                    self.staging.give(buffer, launched.copied)
            arrays = model.postprocess(outputs)
        rows = rows_of(model.definition, arrays, launched.size)
        post = time.monotonic_ns() - now
        return Executed(rows, finished - busy, finished, copy_in, copy_out, post)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """PyTorch's errors that concern the device, as the executor knows them."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(f"{self.device} is out of memory: {str(error).splitlines()[0]}") from None
        except torch.AcceleratorError as error:
            raise DeviceLost(f"{self.device}: {error}") from error
        except RuntimeError as error:
            if "STATUS_ALLOC_FAILED" in str(error):  # cuBLAS and cuDNN have words of their own
                raise OutOfMemory(f"{self.device} is out of memory: {str(error).splitlines()[0]}") from None
            raise


def _cuda_properties(device: torch.device) -> Any:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise DeviceError(
            f"device {device}: PyTorch sees {count} CUDA device(s) on this machine; "
            "use cpu or emulated, or look at CUDA_VISIBLE_DEVICES and the driver"
        )
    return torch.cuda.get_device_properties(device)


def available_bytes() -> int | None:
    """What Linux could hand out without swapping; None elsewhere."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return None


def resident_peak(reset: bool) -> int:
    """The largest resident size of this process, bytes; since the last reset where Linux allows one."""
    try:
        if reset:
            with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")
    except OSError:
        pass  # the largest size since the start, then
    return resident("VmHWM")


def resident(field: str) -> int:
    """``VmRSS`` or ``VmHWM``, the largest so far, of this process in bytes."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            lines: Mapping[str, str] = dict(line.split(":", 1) for line in file)
        return int(lines[field].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
