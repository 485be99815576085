"""What the leader knows of the cluster: the members' records and the shards' statistics, as facts.

No I/O: records come from the membership, statistics as the maps that shards publish once a second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from scheduler.transition import Facts, Gpu
from symphony.control import Member, ModelSpec
from symphony.messages import of_ranges
from symphony.plans import rank

SECOND: Final = 1_000_000_000
STALE_NS: Final = 5 * SECOND
"""Statistics that old say nothing about now."""


@dataclass(slots=True, frozen=True)
class _Sample:
    """One shard's counters at ``at`` (cluster time, ns)."""

    at: int
    offered: Mapping[str, int]


@dataclass(slots=True)
class _Shard:
    samples: deque[_Sample] = field(default_factory=lambda: deque(maxlen=128))
    busy: float = 0.0
    queued: frozenset[str] = frozenset()


def leader_of(members: Iterable[Member]) -> str | None:
    """The live shard that is to lead: the ready one with the lowest id."""
    ready = [m.id for m in members if m.role == "scheduler" and m.state == "ready"]
    return min(ready, key=rank, default=None)


class Census:
    """Statistics of all shards over the last ``window_s`` seconds."""

    def __init__(self, window_s: float) -> None:
        self._window_ns = int(window_s * SECOND)
        self._shards: dict[str, _Shard] = {}
        self._last: dict[str, float] = {}

    def saw(self, shard: str, body: Mapping[str, Any]) -> bool:
        """One message of topic ``stats.<shard>``; False if it is no such message."""
        try:
            models = {str(name): dict(entry) for name, entry in body["models"].items()}
            sample = _Sample(int(body["at"]), {name: int(entry["offered"]) for name, entry in models.items()})
            queued = frozenset(name for name, entry in models.items() if entry["queued"])
            busy = float(body["busy_share"] or 0.0) * int(body["gpus"])
        except (KeyError, TypeError, ValueError, AttributeError):
            return False
        known = self._shards.setdefault(shard, _Shard())
        if known.samples and (
            sample.at <= known.samples[-1].at
            or any(count < known.samples[-1].offered.get(name, 0) for name, count in sample.offered.items())
        ):
            known.samples.clear()  # another run of the shard, or another clock: its counters began anew
        known.samples.append(sample)
        known.busy, known.queued = busy, queued
        return True

    def gone(self, shard: str) -> None:
        """The shard has left or died."""
        self._shards.pop(shard, None)

    def known(self, shards: Iterable[str]) -> bool:
        """Whether there are rates of all of these."""
        return all(len(self._shards[s].samples) > 1 if s in self._shards else False for s in shards)

    def rates(self, reachable: Iterable[str]) -> dict[str, float]:
        """Requests/s by model, over all shards.

        A model that no shard takes at the moment is not asked for at any shard, whatever its load is:
        its rate is the last one that was known.

        Args:
            reachable: models that some shard takes.
        """
        rates: dict[str, float] = {}
        for known in self._shards.values():
            if len(known.samples) < 2:
                continue
            last = known.samples[-1]
            first = next(s for s in known.samples if last.at - s.at <= self._window_ns or s is last)
            if first is last:
                first = known.samples[-2]
            seconds = (last.at - first.at) / SECOND
            for name, count in last.offered.items():
                rates[name] = rates.get(name, 0.0) + (count - first.offered.get(name, 0)) / seconds
        there = set(reachable)
        for name in self._last.keys() - there:
            rates[name] = max(rates.get(name, 0.0), self._last[name])
        self._last |= rates
        return rates

    def facts(self, now: int, members: Mapping[str, Member], models: Mapping[str, ModelSpec]) -> Facts:
        """What members and statistics say.

        Args:
            now: cluster time, ns.
            members: the live ones by id.
            models: the catalogue.
        """
        shards = [m for m in members.values() if m.role == "scheduler"]
        recent = {
            name: known
            for name, known in self._shards.items()
            if known.samples and now - known.samples[-1].at < STALE_NS
        }
        return Facts(
            gpus=gpus_of(members.values()),
            owner={gpu: shard.id for shard in shards for gpu in of_ranges(shard.owns)},
            adopted={shard.id: shard.adopted for shard in shards if shard.state == "ready"},
            takes={shard.id: frozenset(name for name in shard.models if name) for shard in shards},
            busy={name: known.busy for name, known in recent.items()},
            queued=frozenset((name, model) for name, known in recent.items() for model in known.queued),
            memory_mb={name: spec.memory_mb for name, spec in models.items()},
        )


def gpus_of(members: Iterable[Member]) -> dict[int, Gpu]:
    """The GPUs of workers that take part."""
    gpus: dict[int, Gpu] = {}
    for worker in members:
        if worker.role != "worker" or worker.state != "ready":
            continue
        failed = frozenset(worker.failed)
        everything = frozenset(worker.models)
        known: dict[tuple[str, int, frozenset[str]], Gpu] = {}
        holds: dict[int, frozenset[str]] = {}
        for holding in worker.holds:
            holds.update(dict.fromkeys(of_ranges(holding.gpus), frozenset(holding.models)))
        for info in worker.gpus:
            held = holds.get(info.number, frozenset()) if worker.holds else everything
            what = (info.type, info.memory_mb, held)
            if what not in known:
                known[what] = Gpu(info.type, float(info.memory_mb), held, failed)
            gpus[info.number] = known[what]
    return gpus
