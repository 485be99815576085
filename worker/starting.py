# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: annotation_typing=False, infer_types=True
"""The loops of :mod:`worker.emulated` over batches that arrive, meant to be compiled.

Run as Python they do the same; :class:`~worker.emulated.EmulatedGpus` works in NumPy's columns there, which
is faster. ``columns`` are a plan's: batch (int64), gpu, model (uint32), exec_at (int64 ns), size (uint32).
"""

from __future__ import annotations

from typing import Any


def fits(columns: tuple[Any, ...], known: Any, latency: Any, here: Any) -> bool:
    """Whether every batch can be run.

    Args:
        columns: of the plan.
        known: int64, by index into the plan's names: the model's row in ``latency``, or below 0.
        latency: int64 ns by model and size; 0: cannot be run.
        here: uint8 by GPU: whether it is here.
    """
    batch, gpu, model, _, size = columns
    for i in range(len(batch)):
        if gpu[i] >= len(here) or here[gpu[i]] == 0 or model[i] >= len(known):
            return False
        row = known[model[i]]
        if row < 0 or size[i] >= latency.shape[1] or latency[row, size[i]] == 0:
            return False
    return True


def start(
    columns: tuple[Any, ...],
    known: Any,
    latency: Any,
    free_at: Any,
    end: Any,
    fields: Any,
    given: tuple[int, ...],
) -> int:
    """Start batches that fit; returns the earliest of their ends, ns.

    Args:
        columns: of the plan, with a batch at least.
        known, latency: as for :func:`fits`.
        free_at: int64 ns by GPU: when it has finished what it has.
        end: int64 ns by row of the table.
        fields: int64, the table: shard, batch, gpu, model, size, received, exec_at, started, due, slot,
            start.
        given: the first row, the shard, now, the latest deadline, the slot, where the first key is.
    """
    batch, gpu, model, exec_at, size = columns
    at, shard, now, due, slot, place = given
    earliest = 0
    for i in range(len(batch)):
        which = gpu[i]
        begin = free_at[which]
        if begin < now:
            begin = now
        many = size[i]
        row = known[model[i]]
        done = begin + latency[row, many]
        free_at[which] = done
        if i == 0 or done < earliest:
            earliest = done
        end[at] = done
        fields[0, at] = shard
        fields[1, at] = batch[i]
        fields[2, at] = which
        fields[3, at] = row
        fields[4, at] = many
        fields[5, at] = now
        fields[6, at] = exec_at[i]
        fields[7, at] = begin
        fields[8, at] = due
        fields[9, at] = slot
        fields[10, at] = place
        place += many
        at += 1
    return earliest
