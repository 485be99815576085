# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: annotation_typing=False, infer_types=True
"""The loops of :mod:`scheduler.outstanding` over batches that leave and come back, meant to be compiled.

Each touches a batch once, where whole columns would be gone through a dozen times. Run as Python they do the
same; :class:`~scheduler.outstanding.Outstanding` works in NumPy's columns there, which is faster.

A batch's columns (``rows``) lie at its number modulo their length, the keys and deadlines of its requests at
``start`` modulo the length of ``keys`` and ``dues``; both lengths are powers of two.
"""

from __future__ import annotations

from typing import Any


def record(d: tuple[Any, ...], rows: tuple[Any, ...], keys: Any, dues: Any, head: int) -> int:
    """Write down batches that leave, into rows that are free; returns where the next request's place is.

    Args:
        d: columns of :class:`~scheduler.core.actions.Dispatches`, in its order.
        rows: batch, gpu, model, priority, size, finish_at, first_due, start.
        keys, dues: of requests; they have room for all of these.
        head: the place of the first request.
    """
    model, priority, gpu, size, batch, _, finish_at, key, deadline = d
    row_batch, row_gpu, row_model, row_priority, row_size, row_finish_at, row_first_due, row_start = rows
    mask = len(row_batch) - 1
    ring = len(keys) - 1
    done = 0
    for i in range(len(batch)):
        many = size[i]
        place = (head + done) & ring
        here = many  # as far as the ring's end
        if place + many > ring + 1:
            here = ring + 1 - place
        for k in range(here):
            keys[place + k] = key[done + k]
        for k in range(here):
            dues[place + k] = deadline[done + k]
        for k in range(here, many):
            keys[place + k - ring - 1] = key[done + k]
            dues[place + k - ring - 1] = deadline[done + k]
        first = deadline[done]
        for k in range(done, done + many):
            if deadline[k] < first:
                first = deadline[k]
        row = batch[i] & mask
        row_batch[row] = batch[i]
        row_gpu[row] = gpu[i]
        row_model[row] = model[i]
        row_priority[row] = priority[i]
        row_size[row] = many
        row_finish_at[row] = finish_at[i]
        row_first_due[row] = first
        row_start[row] = head + done
        done += many
    return head + done


def take(came: tuple[Any, ...], result: int, rows: tuple[Any, ...], dues: Any, taken: Any, odd: Any) -> int:
    """Look up batches that have come back and clear their rows; returns how many were out.

    Args:
        came: batch (uint64), gpu (uint32) and end (int64 ns) as completions say them; anything may come.
        result: ns from a batch's end to its results' arrival.
        rows: as for :func:`record`; of equal batches the first counts.
        dues: as for :func:`record`.
        taken: int64, five columns one behind the other, each as long as those of ``came``: position in
            them, model, size, finish_at and how many requests were in time, of those that were out.
        odd: int64: the positions of the others.
    """
    batch, gpu, finished = came
    row_batch, row_gpu, row_model, _, row_size, row_finish_at, row_first_due, row_start = rows
    mask = len(row_batch) - 1
    ring = len(dues) - 1
    n = len(batch)
    found = 0
    strange = 0
    for i in range(n):
        number = batch[i]
        row = number & mask
        if number >> 63 != 0 or row_batch[row] != number or row_gpu[row] != gpu[i]:
            odd[strange] = i
            strange += 1
            continue
        row_batch[row] = -1
        good = row_size[row]
        due = finished[i] + result
        if row_first_due[row] < due:
            start = row_start[row]
            for k in range(start, start + good):
                if dues[k & ring] < due:
                    good -= 1
        taken[found] = i
        taken[n + found] = row_model[row]
        taken[2 * n + found] = row_size[row]
        taken[3 * n + found] = row_finish_at[row]
        taken[4 * n + found] = good
        found += 1
    return found
