"""What the leader knows of the cluster: the members' records and the shards' statistics, as facts.

No I/O: records come from the membership, statistics as the maps that shards publish once a second.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from scheduler.offered import SECOND, Meter, Offered
from scheduler.transition import Facts, Gpu
from symphony.control import Member, ModelSpec
from symphony.messages import of_ranges
from symphony.plans import rank

STALE_NS: Final = 5 * SECOND
"""Statistics that old say nothing about now."""


@dataclass(slots=True)
class _Shard:
    at: int = 0
    busy: float = 0.0
    queued: frozenset[str] = frozenset()


def leader_of(members: Iterable[Member]) -> str | None:
    """The live shard that is to lead: the ready one with the lowest id."""
    ready = [m.id for m in members if m.role == "scheduler" and m.state == "ready"]
    return min(ready, key=rank, default=None)


class Census:
    """Statistics of all shards over the last ``window_s`` seconds."""

    def __init__(self, window_s: float) -> None:
        self._meter = Meter(window_s)
        self._shards: dict[str, _Shard] = {}
        self._last: dict[str, float] = {}

    def saw(self, shard: str, body: Mapping[str, Any]) -> bool:
        """One message of topic ``stats.<shard>``; False if it is no such message."""
        try:
            models = {str(name): dict(entry) for name, entry in body["models"].items()}
            at, offered = int(body["at"]), {name: int(entry["offered"]) for name, entry in models.items()}
            queued = frozenset(name for name, entry in models.items() if entry["queued"])
            busy = float(body["busy_share"] or 0.0) * int(body["gpus"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            return False
        if not all(0 <= count < 1 << 63 for count in offered.values()):
            return False
        self._meter.saw(shard, at, offered)
        self._shards[shard] = _Shard(at, busy, queued)
        return True

    def gone(self, shard: str) -> None:
        """The shard has left or died."""
        self._meter.gone(shard)
        self._shards.pop(shard, None)

    def known(self, shards: Collection[str]) -> bool:
        """Whether there are rates of all of these."""
        return self._meter.known(shards)

    def offered(self, reachable: Collection[str]) -> Offered:
        """Requests/s by model, over all shards.

        A model that no shard takes at the moment is not asked for at any shard, whatever its load is:
        its rate is the last one that was known.

        Args:
            reachable: models that some shard takes.
        """
        told = self._meter.offered()
        rates = dict(told.rates)
        for name in self._last.keys() - set(reachable):
            rates[name] = max(rates.get(name, 0.0), self._last[name])
        self._last |= rates
        return replace(told, rates=rates)

    def facts(self, now: int, members: Mapping[str, Member], models: Mapping[str, ModelSpec]) -> Facts:
        """What members and statistics say.

        Args:
            now: cluster time, ns.
            members: the live ones by id.
            models: the catalogue.
        """
        shards = [m for m in members.values() if m.role == "scheduler"]
        recent = {name: known for name, known in self._shards.items() if now - known.at < STALE_NS}
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
