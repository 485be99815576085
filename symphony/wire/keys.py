# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: annotation_typing=False, infer_types=True
"""Loops over request keys, meant to be compiled: each key is touched once, where whole columns would be gone
through a dozen times. Run as Python they do the same, a hundred times slower: their users work in NumPy's
columns there.
"""

from __future__ import annotations

from typing import Any

from . import loads


def gather(ring: Any, start: Any, size: Any, found: Any) -> int:
    """Copy runs of keys out of a ring, one behind another; returns how many keys these are.

    Args:
        ring: uint64, its length a power of two.
        start: int64: where each run begins, modulo the ring's length.
        size: int64: how many keys each has, at most the ring's length.
        found: uint64, with room for all.
    """
    length = len(ring)
    done = 0
    for i in range(len(start)):
        many = size[i]
        place = start[i] & (length - 1)
        here = many  # as far as the ring's end
        if place + many > length:
            here = length - place
        for k in range(here):
            found[done + k] = ring[place + k]
        for k in range(here, many):
            found[done + k] = ring[place + k - length]
        done += many
    return done


def settle(keys: Any, statuses: Any, deadlines: Any, span: tuple[int, ...], sums: Any) -> int:
    """Account for answers: of several for the same request the first counts; returns how many came.

    Args:
        keys: bytes of uint64, little-endian.
        statuses: uint8, one for each.
        deadlines: int64 ns by number modulo their length, a power of two; below 0 where there is no request
            without an answer. What is answered becomes -1.
        span: the bits of a key that hold its sequence number, that of request 0, the number of the next
            request, that of the first that counts, now in ns, the statuses of a result and of a drop.
        sums: int64: results in time and late, drops, other answers; and answers that nobody waited for,
            which always count.
    """
    bits, first, following, counted, now, ok, dropped = span
    length = len(deadlines)
    oldest = following - length
    if oldest < 0:
        oldest = 0
    good = late = gone = other = strange = 0
    n = len(statuses)
    for i in range(n):
        number = (loads.load64s(keys, 8 * i) & bits) - first
        if number < oldest or number >= following:
            strange += 1
            continue
        place = number & (length - 1)
        due = deadlines[place]
        if due < 0:
            strange += 1
            continue
        deadlines[place] = -1
        if number < counted:
            continue
        status = statuses[i]
        if status == ok:
            if due >= now:
                good += 1
            else:
                late += 1
        elif status == dropped:
            gone += 1
        else:
            other += 1
    sums[0] += good
    sums[1] += late
    sums[2] += gone
    sums[3] += other
    sums[4] += strange
    return n
