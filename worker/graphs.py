"""CUDA graphs by batch size, and which one a batch is padded to.

Launching a small batch kernel by kernel may take the CPU longer than the kernels take the GPU; a graph is
launched at once. It is made for one shape, so there are graphs for some sizes, and a batch in between may be
padded up to the next one: when that is faster is decided from measurements, per size (:func:`choose`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from worker.lanes import Lanes

Call = Callable[[Mapping[str, Tensor]], Any]


def choose(eager: Mapping[int, float], graphs: Mapping[int, float], max_batch: int) -> list[int]:
    """Entry b - 1: the graph that a batch of b runs on, padded if need be; 0 where none is faster.

    Args:
        eager: time without a graph by size, any unit, interpolated between; holds 1 and max_batch.
        graphs: time of each graph by its size, the same unit.
        max_batch: how many entries.
    """
    sizes = sorted(eager)
    table = []
    for b in range(1, max_batch + 1):
        low = max(size for size in sizes if size <= b)
        high = min(size for size in sizes if size >= b)
        share = (b - low) / (high - low) if high > low else 0.0
        best, without = 0, eager[low] + share * (eager[high] - eager[low])
        for size, taken in sorted(graphs.items()):
            if size >= b and taken < without:
                best, without = size, taken
        table.append(best)
    return table


def padded(tensor: Tensor, size: int) -> Tensor:
    """The tensor with rows repeated up to ``size``: copies of its last row, so that no new values appear."""
    missing = size - tensor.shape[0]
    if missing <= 0:
        return tensor
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])])


class Graphs:
    """The graphs of one copy of a model.

    Args:
        lanes: captures.
        call: runs the model on tensors by name.
    """

    def __init__(self, lanes: Lanes, call: Call) -> None:
        self._lanes = lanes
        self._call = call
        self._held: Any = None
        self._by_size: dict[int, tuple[dict[str, Tensor], Callable[[], Any]]] = {}
        self.table: list[int] = []
        """As :func:`choose` returns it; empty: no batch runs on a graph."""

    def sizes(self) -> list[int]:
        """Of the graphs that there are."""
        return sorted(self._by_size)

    def size_for(self, count: int) -> int:
        """The graph that a batch of ``count`` runs on; 0: none."""
        return self.table[count - 1] if count <= len(self.table) else 0

    def capture(self, size: int, tensors: Mapping[str, Tensor]) -> None:
        """Make the graph of one size; ``tensors`` have that many rows. On the compute lane, which is idle."""
        static = {name: tensor.clone() for name, tensor in tensors.items()}
        again, self._held = self._lanes.capture(lambda: self._call(static), self._held)
        self._by_size[size] = static, again

    def replay(self, size: int, tensors: Mapping[str, Tensor]) -> Any:
        """Run on the graph of that size; the result is overwritten by the next replay: copy it."""
        static, again = self._by_size[size]
        for name, tensor in tensors.items():
            if static[name].shape != tensor.shape:
                raise ValueError(
                    f"input {name!r} has shape {list(tensor.shape)}, the CUDA graph was captured for "
                    f"{list(static[name].shape)}: cuda_graphs needs inputs of fixed shapes"
                )
            static[name].copy_(tensor)
        return again()
