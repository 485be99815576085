# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: annotation_typing=False, infer_types=True
"""Loops over simulated requests: how many arrive, what becomes of them, how long they take.

All columns are the caller's: NumPy arrays, or anything else that memoryview takes.
"""

from __future__ import annotations

from typing import Any

from . import plain


def count(model: Any, first: int, offered: Any) -> None:
    """Count requests from ``first`` on, by model (uint32), in ``offered`` (int64)."""
    m = memoryview(model)
    o = memoryview(offered)
    for i in range(first, len(m)):
        o[m[i]] += 1


def answer(
    model: Any,
    size: Any,
    answered: Any,
    deadline: Any,
    slo: Any,
    begin: int,
    good: Any,
    late: Any,
    oldest: Any,
    value: Any,
    end: Any,
    stop: Any,
) -> int:
    """Put down batches that are answered; requests that arrived before ``begin`` (ns) do not count.

    Args:
        model, size, answered: int64, per batch; sizes are positive.
        deadline: int64 ns, of all their requests in turn.
        slo: int64 ns, by model.
        good, late: int64, by model, counted up.
        oldest: int64, written per batch: when the first of its requests had arrived.
        value: uint32, written: latencies in ns, 2^32 - 1 for larger ones.
        end: int64, by model: where its next latency is put; counted up. It stays below ``stop``.

    Returns how many batches were put down: all, or those before the first one for which there is no room.
    """
    m = memoryview(model)
    s = memoryview(size)
    a = memoryview(answered)
    d = memoryview(deadline)
    objective = memoryview(slo)
    g = memoryview(good)
    t = memoryview(late)
    o = memoryview(oldest)
    v = memoryview(value)
    e = memoryview(end)
    limit = memoryview(stop)
    most = 0xFFFFFFFF
    start = 0
    for i in range(len(m)):
        which = m[i]
        n = s[i]
        place = e[which]
        if place + n > limit[which]:
            return i
        back = a[i]
        length = objective[which]
        to = place
        first = d[start]
        missed = 0
        for j in range(start, start + n):
            due = d[j]
            if due < first:
                first = due
            if due - length >= begin:
                if due < back:
                    missed += 1
                latency = back + length - due
                v[to] = latency if latency < most else most
                to += 1
        start += n
        e[which] = to
        o[i] = first - length
        t[which] += missed
        g[which] += to - place - missed
    return len(m)


def histogram(value: Any, begin: Any, end: Any, shift: int, bins: Any) -> None:
    """Count latencies (uint32, those at begin[m] to end[m] for every m) without their lowest ``shift`` bits.

    bins: uint32, four columns that are to be added up: equal latencies would wait for each other.
    """
    v = memoryview(value)
    first = memoryview(begin)
    last = memoryview(end)
    h = memoryview(bins)
    size = len(h) >> 2
    for m in range(len(first)):
        for i in range(first[m], last[m]):
            h[(i & 3) * size + (v[i] >> shift)] += 1


def gather(value: Any, begin: Any, end: Any, shift: int, wanted: Any, out: Any) -> int:
    """Collect the latencies of the bins for which ``wanted`` (uint8) is not 0; returns how many."""
    v = memoryview(value)
    first = memoryview(begin)
    last = memoryview(end)
    w = memoryview(wanted)
    x = memoryview(out)
    n = 0
    for m in range(len(first)):
        for i in range(first[m], last[m]):
            if w[v[i] >> shift] != 0:
                x[n] = v[i]
                n += 1
    return n


def points(gaps: Any, reached: float, total: float, factor: float, until: int, at: Any) -> int:
    """Where a process's points lie that are ``gaps`` (double) apart.

    Args:
        gaps: the first one behind ``reached``; each is replaced by its point.
        total: points must be below. factor: from points to ns.
        until: ns, must not be reached.
        at: int64 ns, written.

    Returns how many points there are; if not as many as gaps, they are the last.
    """
    g: Any = memoryview(gaps)
    x = memoryview(at)
    for i in range(len(g)):
        reached += g[i]
        if reached >= total:
            return i
        g[i] = reached
        ns = plain.whole(reached * factor)
        if ns >= until:
            return i
        x[i] = ns
    return len(g)
