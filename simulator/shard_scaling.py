"""Several shards whose sub-clusters grow and shrink: an autoscaler for each, under the plans of all.

As the leading shard does it: every shard's statistics go to a scaler of its own. A shard that the plan gives
no model is not decided about: its minimum would otherwise be asked for, given to others by the next plan, and
asked for again. What a plan gives a shard, or takes, its scaler adopts: nothing of it is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from scheduler.evidence import Sample

from .actuation import carry_out
from .autoscaling import Autoscaling, Scaling
from .scalers import Scaler, make_scaler
from .subcluster import SECOND, SubCluster


class ShardScaling:
    """The scalers of one run, and what they did.

    Args:
        settings: limits are per shard. shards: by name.
        free: the lowest GPU number that nobody has.
    """

    def __init__(
        self, settings: Autoscaling, shards: Mapping[str, SubCluster], free: Callable[[], int]
    ) -> None:
        self.settings, self.shards, self.free = settings, shards, free
        self.scaling = Scaling()
        self.scalers: dict[str, Scaler] = {name: make_scaler(settings) for name in shards}

    def step(
        self,
        now: int,
        coming: Mapping[str, Mapping[int, str]],
        held: Callable[[str], tuple[int, ...]],
        load_ms: Sequence[float],
        paid: int,
        moving: bool,
    ) -> None:
        """A second is over: everyone decides.

        Args:
            coming: by shard, GPUs (number → type) that other shards are about to hand it.
            held: the models that the plan wants on a shard's GPUs. load_ms: of every model.
            paid: GPUs that are paid for, wherever they are. moving: a plan is on its way; until it is there
                nothing is decided, since loads and GPUs do not belong together.
        """
        samples = []
        for name, shard in self.shards.items():
            seen = shard.sample(now, 1.0)
            samples.append(seen)
            models = held(name)
            if not models or moving:
                continue
            more = coming.get(name, {})
            seen = replace(seen, starting=seen.starting | more.keys(), types={**seen.types, **more})
            wish = self.scalers[name].step(seen, shard.ongoing)
            if wish is not None:
                loads = sum(load_ms[model] for model in models) / 1e3
                ready = now + round((self.settings.startup_s + loads) * SECOND)
                kinds = more.values()
                carry_out(shard, wish, now, ready, self.free, self.scaling, models, name, kinds)
        self.scaling.samples.append(joined(samples))
        self.scaling.paid.append(paid)

    def adopt(self, now: int, counts: Mapping[str, Mapping[str, int]]) -> None:
        """A plan has given these shards so many GPUs by type."""
        for name, given in counts.items():
            self.scalers[name].adopt(given, now)


def joined(samples: Sequence[Sample]) -> Sample:
    """One sample of the same second over all shards."""
    first = samples[0]
    need = {kind: sum(sample.need[kind] for sample in samples) for kind in first.need}
    busy = {gpu: share for sample in samples for gpu, share in sample.busy.items()}
    types = {gpu: kind for sample in samples for gpu, kind in sample.types.items()}
    return Sample(
        at=first.at,
        seconds=first.seconds,
        offered=sum(sample.offered for sample in samples),
        good=sum(sample.good for sample in samples),
        late=sum(sample.late for sample in samples),
        dropped=sum(sample.dropped for sample in samples),
        need=need,
        busy=busy,
        types=types,
        starting=frozenset().union(*(sample.starting for sample in samples)),
        draining=frozenset().union(*(sample.draining for sample in samples)),
    )
