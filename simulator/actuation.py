"""The actuator in virtual time: starts what is missing in a sub-cluster, lets go what is too much."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from .arrivals import START_NS
from .autoscaling import Scaling
from .scalers import Wish
from .subcluster import SECOND, SubCluster


def carry_out(
    shard: SubCluster,
    wish: Wish,
    now: int,
    ready: int,
    free: Callable[[], int],
    scaling: Scaling,
    models: tuple[int, ...] | None = None,
    name: str = "",
    coming: Collection[str] = (),
) -> None:
    """Do as the autoscaler wishes, and note it in ``scaling``.

    Args:
        shard: the sub-cluster. ready: when a GPU that is started now serves, ns.
        free: the lowest GPU number that nobody has, asked for once per GPU.
        models: what a new GPU holds; None: all. name: of the shard, where there are several. coming: types
            of the GPUs that other shards are about to hand it.
    """
    started = 0
    kinds = [shard.types[state.kind] for state in shard.gpus.values() if not state.draining]
    kinds += coming
    for text, count in wish.counts.items():
        for _ in range(count - kinds.count(text)):
            shard.ask(free(), shard.types.index(text), now, ready, models)
            started += 1
    drain = wish.drain
    if drain is None:
        live = [n for n, state in shard.gpus.items() if not state.draining]
        excess = max(0, len(live) - sum(wish.counts.values()))
        drain = sorted(live, key=lambda n: (shard.gpus[n].joined, -n))[:excess]
    for number in drain:
        if number in shard.gpus:
            shard.drain(number, now)
    if started:
        scaling.windows.append((now, ready))
    decision: dict[str, Any] = {"shard": name} if name else {}
    scaling.decisions.append(
        decision
        | {
            "at_s": (now - START_NS) / SECOND,
            "kind": wish.kind,
            "counts": wish.counts,
            "started": started,
            "drained": len(drain),
            "reason": wish.reason,
            "numbers": wish.numbers,
        }
    )
