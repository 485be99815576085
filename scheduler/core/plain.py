"""What the core does otherwise where it runs as Python: whole columns at a time instead of loops.

The results are the same. Compiled, the loops are faster; ``PLAIN`` is false there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .limits import BASE, FIELDS, LAST, MASK, PRIORITIES, STOP, TAIL, UNTIL

if TYPE_CHECKING:
    from .lanes import Lanes

PLAIN = True
ENOUGH = 32
"""Columns shorter than this are not worth the trouble."""


def fetch(column: Any, i: int) -> None:
    """Nothing here. Compiled: begin to bring ``column[i]`` into the cache."""


def fetch_signed(column: Any, i: int) -> None:
    """The same for a column of signed numbers."""


def lowest(word: int) -> int:
    """Number of the lowest bit that is set in a word, of which there must be one."""
    return (word & -word).bit_length() - 1


def whole(number: float) -> int:
    """A number from 0 on without its fraction."""
    return int(number)


def append_calm(
    lanes: Lanes, now: int, farthest: int, last_key: Any, columns: tuple[Any, ...], fresh: bool
) -> tuple[Any, ...]:
    """Append what only makes queues longer, and return the rest of the columns and of ``fresh``.

    That is what the loop in ``Core.submit`` finds for one request, for all requests of a lane at once.

    Args:
        lanes: the core.
        now: the time of the event.
        farthest: the last deadline that is taken.
        last_key: of each slot.
        columns: models, deadlines, keys, priorities.
        fresh: whether keys must rise; returned as false if they were found to do so.
    """
    model, due, key, rank = (np.asarray(column) for column in columns)
    n = len(model)
    known = np.frombuffer(lanes.models.known, np.int8)
    if n < ENOUGH or int(model.max()) >= len(known) or int(rank.max()) >= PRIORITIES:
        return (*columns, fresh)
    if fresh:
        # Only the common case: one frontend, keys in order, no unknown model among them.
        slot = int(key[0]) >> 48
        if int(key[0]) <= last_key[slot] or int(key[-1]) >> 48 != slot:
            return (*columns, fresh)
        if not (key[1:] > key[:-1]).all() or not known[model].all():
            return (*columns, fresh)
        last_key[slot] = int(key[-1])
    lane = np.frombuffer(lanes.lane_of, np.int64)[model.astype(np.int64) * PRIORITIES + rank]
    order = np.argsort(lane, kind="stable")
    lane, due_of, key_of = lane[order], due[order], key[order].astype(np.uint64)
    first = np.flatnonzero(np.concatenate(([True], lane[1:] != lane[:-1])))
    count = np.diff(first, append=n)
    last = first + count - 1
    which = lane[first]
    record = np.frombuffer(lanes.queues.record, np.int64).reshape(-1, FIELDS)
    if not len(record):
        return (*columns, False)
    old = record[which]
    calm = (which >= 0) & (old[:, UNTIL] >= now) & (old[:, TAIL] + count <= old[:, STOP])
    calm &= (old[:, LAST] <= due_of[first]) & (due_of[last] <= farthest)
    falls = np.flatnonzero((due_of[1:] < due_of[:-1]) & (lane[1:] == lane[:-1]))
    if len(falls):
        calm[np.searchsorted(first, falls, side="right") - 1] = False
    taken = np.repeat(calm, count)
    number = np.repeat(old[:, TAIL] - first, count) + np.arange(n)
    entry = 2 * (np.repeat(old[:, BASE], count) + (number & np.repeat(old[:, MASK], count)))[taken]
    slab = np.frombuffer(lanes.queues.slab, np.uint64)
    slab[entry] = due_of[taken].astype(np.uint64)
    slab[entry + 1] = key_of[taken]
    record[which[calm], TAIL] += count[calm]
    record[which[calm], LAST] = due_of[last[calm]]
    rest = np.sort(order[~taken])
    return (*(column[rest].tolist() for column in (model, due, key, rank)), False)
