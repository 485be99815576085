"""The GPUs of one emulated device by what they hold: a plan may want other models on each; no I/O, no clock.

GPUs that were always told the same are one *cohort* with one :class:`~worker.emulated_models.EmulatedModels`
for all; when a plan tells some of them something else, the cohort is divided, and cohorts that hold the
same and load nothing become one again. So a thousand GPUs cost as much as the few kinds of them there are.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from symphony.control import Holding
from symphony.messages import to_ranges
from symphony.profile import Profile
from worker.definition import Definition
from worker.emulated_models import EmulatedModels
from worker.holdings import Ready
from worker.lifecycle import Change

Wants = Sequence[tuple[Collection[int], Sequence[Definition]]]
"""GPUs by number, and what they are to hold."""


@dataclass(slots=True)
class _Cohort:
    """``gpus`` is empty for the one that holds all GPUs while they have no numbers yet."""

    gpus: set[int]
    models: EmulatedModels


class Cohorts:
    """See the module's text. Times are the caller's clock in ns.

    Args:
        gpu_type: of all GPUs.
        memory_mb: of each; 0: it never runs out.
    """

    def __init__(self, gpu_type: str, memory_mb: int = 0) -> None:
        self.profiles: dict[str, Profile] = {}
        """Of every model that some GPU has served; always the same object."""
        self._type, self._memory_mb = gpu_type, memory_mb
        self._cohorts = [_Cohort(set(), EmulatedModels(gpu_type, memory_mb))]
        self._told: tuple[Ready, ...] = ()
        self._ready: Ready | None = None

    def want(self, now: int, definitions: Sequence[Definition]) -> None:
        """Every GPU is to hold these and no others."""
        for cohort in self._cohorts:
            cohort.models.want(now, definitions)

    def assign(self, now: int, gpus: Collection[int], wants: Wants) -> None:
        """What each GPU is to hold; those that are not told keep what they have.

        Args:
            now: ns.
            gpus: the numbers of all GPUs.
            wants: no GPU twice.
        """
        if len(self._cohorts) == 1 and not self._cohorts[0].gpus:
            self._cohorts[0].gpus = set(gpus)
        for numbers, definitions in wants:
            names = {definition.name for definition in definitions}
            for cohort in list(self._cohorts):
                mine = cohort.gpus & set(numbers)
                if not mine or cohort.models.wanted() == names:
                    continue
                if mine != cohort.gpus:
                    cohort.gpus -= mine
                    cohort = _Cohort(mine, copy.deepcopy(cohort.models))
                    self._cohorts.append(cohort)
                cohort.models.want(now, definitions)
        self._unite()

    def _unite(self) -> None:
        """Make one of cohorts that are alike."""
        alike: dict[frozenset[str], _Cohort] = {}
        for cohort in list(self._cohorts):
            if not cohort.models.settled():
                continue
            wanted = frozenset(cohort.models.wanted())
            other = alike.setdefault(wanted, cohort)
            if other is not cohort:
                other.gpus |= cohort.gpus
                self._cohorts.remove(cohort)

    def ready(self) -> Ready | None:
        """What serves somewhere; another object as soon as it is something else anywhere.

        Raises:
            SymphonyError: one of the first models cannot be loaded.
        """
        parts = [cohort.models.ready() for cohort in self._cohorts]
        told = tuple(part for part in parts if part is not None)
        if len(told) < len(parts):
            return self._ready
        if self._ready is None or len(told) != len(self._told) or any(map(_differ, told, self._told)):
            self._told = told
            self._ready = Ready({}, self._type, self._memory_mb)
            for part in told:
                self._ready.profiles.update(part.profiles)
                self._ready.definitions.update(part.definitions)
                self._ready.load_ms.update(part.load_ms)
            self.profiles.update(self._ready.profiles)
        return self._ready

    def holds(self) -> list[Holding]:
        """Which GPUs hold what; empty while they have no numbers or all hold the same."""
        if len(self._cohorts) < 2:
            return []
        ordered = sorted(self._cohorts, key=lambda cohort: min(cohort.gpus))
        return [
            Holding(gpus=to_ranges(cohort.gpus), models=sorted(held.profiles))
            for cohort in ordered
            if (held := cohort.models.ready()) is not None
        ]

    def changes(self) -> list[Change]:
        """What has become of models since the last call."""
        return [change for cohort in self._cohorts for change in cohort.models.changes()]

    def failed(self) -> dict[str, str]:
        """Models that are wanted on some GPU and cannot be loaded there, and why."""
        return {model: why for cohort in self._cohorts for model, why in cohort.models.failed().items()}

    def next_wakeup(self) -> int | None:
        """When the first load that is under way ends."""
        moments = [due for cohort in self._cohorts if (due := cohort.models.next_wakeup()) is not None]
        return min(moments, default=None)

    def advance(self, now: int) -> None:
        """Loads whose time is over."""
        for cohort in self._cohorts:
            cohort.models.advance(now)


def _differ(one: Ready, other: Ready) -> bool:
    return one is not other
