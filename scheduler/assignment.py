"""Which GPUs of a worker a shard may use, and with which models: from the cluster's plan; no I/O.

Without a plan a worker's GPUs belong to the shard that it names. With one they belong to the shards of the
active groups they are in, and hold what the worker says that they hold as far as the group names it. A GPU
that is in no active group belongs to nobody for the time being.
"""

from __future__ import annotations

from symphony.control import GpuInfo, Member
from symphony.messages import of_ranges
from symphony.plans import ClusterPlan, Group

Models = tuple[str, ...]


class Assignment:
    """One shard's view; ``shard`` is its id."""

    def __init__(self, shard: str) -> None:
        self.plan: ClusterPlan | None = None
        self._shard = shard
        self._groups: dict[int, frozenset[str]] = {}

    def follow(self, plan: ClusterPlan) -> None:
        """A newer plan."""
        self.plan = plan
        self._groups = {}
        for group in plan.groups:
            if self._uses(group):
                self._groups.update(dict.fromkeys(of_ranges(group.gpus), frozenset(group.models)))

    def _uses(self, group: Group) -> bool:
        return group.active and group.shard == self._shard

    def serves(self, worker: Member) -> bool:
        """Whether any of the worker's GPUs is this shard's, ready or not."""
        if self.plan is None:
            return worker.shard == self._shard
        return any(gpu.number in self._groups for gpu in worker.gpus)

    def of(self, worker: Member) -> dict[int, tuple[GpuInfo, Models]]:
        """The worker's GPUs that this shard may use, by number, with what each holds, in order."""
        if self.plan is None:
            if worker.shard != self._shard:
                return {}
            return self._held(worker, worker.gpus)
        mine = [gpu for gpu in worker.gpus if gpu.number in self._groups]
        held = self._held(worker, mine)
        # One tuple for all GPUs that hold the same of the same group: there are few, and many GPUs.
        known: dict[tuple[Models, frozenset[str]], Models] = {}
        for number, (info, models) in held.items():
            what = (models, self._groups[number])
            if what not in known:
                known[what] = tuple(model for model in models if model in what[1])
            held[number] = info, known[what]
        return held

    def _held(self, worker: Member, gpus: list[GpuInfo]) -> dict[int, tuple[GpuInfo, Models]]:
        if not worker.holds:
            all_models = tuple(worker.models)
            return {gpu.number: (gpu, all_models) for gpu in gpus}
        by_gpu: dict[int, Models] = {}
        for holding in worker.holds:
            by_gpu.update(dict.fromkeys(of_ranges(holding.gpus), tuple(holding.models)))
        return {gpu.number: (gpu, by_gpu.get(gpu.number, ())) for gpu in gpus}
