"""What the cluster's plan wants of this worker's GPUs; no I/O."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from symphony.messages import of_ranges
from symphony.plans import ClusterPlan
from worker.cohorts import Wants
from worker.definition import Definition


class Following:
    """Turns plans into definitions by GPU.

    Args:
        definitions: every model that this worker could hold.
    """

    def __init__(self, definitions: Sequence[Definition]) -> None:
        self.unknown: dict[str, str] = {}
        """Models that the last plan wants here and that this worker has no definition of, and why."""
        self._definitions = {definition.name: definition for definition in definitions}
        self._last: object = None

    def wants(self, plan: ClusterPlan, gpus: Collection[int]) -> Wants | None:
        """What each of ``gpus`` is to hold by the plan; None if that is what was wanted before."""
        mine = set(gpus)
        wanted: list[tuple[tuple[int, ...], tuple[str, ...]]] = []
        for group in plan.groups:
            numbers = tuple(number for number in of_ranges(group.gpus) if number in mine)
            if numbers:
                wanted.append((numbers, tuple(group.models)))
        if wanted == self._last:
            return None
        self._last = wanted
        names = {name for _, models in wanted for name in models}
        self.unknown = dict.fromkeys(
            sorted(names - self._definitions.keys()), "this worker has no definition of it"
        )
        return [
            (numbers, [self._definitions[name] for name in models if name in self._definitions])
            for numbers, models in wanted
        ]
