"""Gathering the inputs of planned batches, in plan order, for one real device; no I/O.

A batch needs the inputs of all its requests, which lie in several frontends. It leaves the intake
when every row is settled or has its inputs. What may go wrong, and what follows:

* a key has gone (its frontend gave up): the row leaves the batch, the others run;
* a frontend has died: all its rows leave their batches;
* a frontend is silent: once the first deadline of the batch could no longer be met by waiting, the
  batch goes with what has come (never sooner than :data:`PATIENCE_NS` after the plan); if nothing has
  come it is given up :data:`GRACE_NS` after its last deadline. Rows given up are ``UNAVAILABLE``;
* batches leave in plan order, for the scheduler's prediction rests on it. Only a batch that still has
  no inputs :data:`PATIENCE_NS` after its planned start lets others pass: one silent frontend must not
  stop a device that many share.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from symphony.status import Status
from symphony.wire import U64, Tensors, WireError
from worker.batch import GONE, Batch, Payload, shares

PATIENCE_NS: Final = 50_000_000
GRACE_NS: Final = 50_000_000


class Fetch(NamedTuple):
    """Ask the frontend with ``slot`` for the inputs of ``key``; not after ``until_ns``."""

    id: int
    slot: int
    key: U64
    until_ns: int


@dataclass(slots=True, eq=False)
class _Waiting:
    batch: Batch
    missing: dict[int, dict[int, int]]
    """By fetch: key → row of what has not come."""
    partial_ns: int
    give_up_ns: int
    pass_ns: int
    """From then on others may overtake."""

    def has_some(self) -> bool:
        return any(payload is not None for payload in self.batch.inputs)


class Intake:
    """See the module's text. Times are monotonic ns, always given by the caller."""

    def __init__(self) -> None:
        self._waiting: list[_Waiting] = []
        self._fetches: dict[int, tuple[int, _Waiting]] = {}
        self._last_fetch = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, batch: Batch, exec_at_ns: int, first_ns: int, last_ns: int) -> list[Fetch]:
        """Take in a batch; returns what to ask for.

        Args:
            batch: with every row pending.
            exec_at_ns: its planned start.
            first_ns: its earliest deadline.
            last_ns: its latest deadline.
        """
        entry = _Waiting(
            batch,
            {},
            partial_ns=max(first_ns - batch.expected_ns, batch.received_ns + PATIENCE_NS),
            give_up_ns=max(last_ns, batch.received_ns) + GRACE_NS,
            pass_ns=max(exec_at_ns, batch.received_ns) + PATIENCE_NS,
        )
        fetches = []
        seen: set[int] = set()
        for slot, rows in shares(batch.key):
            wanted: dict[int, int] = {}
            for row in rows.tolist():
                key = int(batch.key[row])
                if key in seen:  # planned twice: one answer is enough
                    batch.settle(row, GONE)
                else:
                    seen.add(key)
                    wanted[key] = row
            self._last_fetch += 1
            entry.missing[self._last_fetch] = wanted
            self._fetches[self._last_fetch] = (slot, entry)
            asked = np.fromiter(wanted, dtype=np.uint64, count=len(wanted))
            fetches.append(Fetch(self._last_fetch, slot, asked, entry.give_up_ns))
        self._waiting.append(entry)
        return fetches

    def arrived(self, slots: Collection[int], message: Tensors, frames: Sequence[Any]) -> int:
        """Inputs have come from the frontend that has ``slots``; keys it left out are settled as gone.

        Returns how many of the keys had not been asked for (they are ignored).

        Raises:
            WireError: no such fetch, or another frontend's; nothing has changed then.
        """
        fetch_slot, entry = self._fetches.get(message.fetch, (None, None))
        if entry is None:
            raise WireError("unknown-fetch", str(message.fetch))
        if fetch_slot not in slots:
            raise WireError("foreign-fetch", f"slots {list(slots)} answered a question to {fetch_slot}")
        wanted = entry.missing[message.fetch]
        width = len(message.names)
        strange = 0
        for at, key in enumerate(message.key.tolist()):
            row = wanted.pop(key, None)
            if row is None:
                strange += 1
                continue
            span = slice(at * width, (at + 1) * width)
            entry.batch.inputs[row] = Payload(message.names, message.specs[span], list(frames[span]))
        self._close(message.fetch, entry, GONE, None)
        return strange

    def lost(self, slot: int) -> None:
        """The frontend with ``slot`` has gone: nobody is there to send inputs, nor to be answered."""
        for fetch, (fetch_slot, entry) in list(self._fetches.items()):
            if fetch_slot == slot:
                self._close(fetch, entry, GONE, None)
        for entry in self._waiting:
            for fetch_slot, rows in shares(entry.batch.key):
                if fetch_slot == slot:
                    for row in rows.tolist():
                        entry.batch.settle(row, GONE)

    def _close(self, fetch: int, entry: _Waiting, status: int, error: str | None) -> None:
        for row in entry.missing.pop(fetch).values():
            entry.batch.settle(row, status, error)
        del self._fetches[fetch]

    def take(self, now: int) -> Iterator[Batch]:
        """Batches that leave now, in the order in which they are to run.

        In each, every row that is still pending has its inputs; there may be none.
        """
        blocked = False
        for entry in list(self._waiting):
            if entry.missing and (now >= entry.give_up_ns or (now >= entry.partial_ns and entry.has_some())):
                for fetch in list(entry.missing):
                    self._close(fetch, entry, Status.UNAVAILABLE, "the inputs did not come in time")
            if not entry.missing and not blocked:
                self._waiting.remove(entry)
                yield entry.batch
            elif now < entry.pass_ns:
                blocked = True

    def next_wakeup(self, now: int) -> int | None:
        """When, after ``now``, :meth:`take` may return something although nothing has arrived."""
        moments = [
            moment
            for entry in self._waiting
            if entry.missing
            for moment in (entry.partial_ns, entry.give_up_ns, entry.pass_ns)
            if moment > now
        ]
        return min(moments, default=None)

    def abandon(self) -> list[Batch]:
        """Give everything up, to be answered by the caller; the intake is empty then."""
        batches = [entry.batch for entry in self._waiting]
        self._waiting.clear()
        self._fetches.clear()
        return batches
