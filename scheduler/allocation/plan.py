"""What the allocator answers: which model goes where, with which share, on how many GPUs, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["optimal", "feasible", "infeasible"]


@dataclass(frozen=True, slots=True)
class Plan:
    """One epoch's allocation.

    Attributes:
        status: ``optimal``: all load is served and no better plan exists (within ``mip_gap``);
            ``feasible``: all load is served and ``gap`` says how far the plan may be from the best;
            ``infeasible``: not all load can be served, see ``unserved``.
        gap: the largest relative distance between a value of the plan and its proven bound, over the
            objectives (load served, GPUs, balance).
        solve_s: seconds that planning took.
        gpus_needed: GPUs that the whole load needs with these placements, at the planned headroom; more
            than the cluster has where the load is beyond it.
        placements: model → shard → share of the model's requests; shares of a model sum to 1.
        gpus: shard → GPU type → count.
        utilization: shard → predicted busy share of its GPUs.
        memory_mb: shard → memory that its models take on each of its GPUs.
        moved: placements (model, shard) that are new, of models that the current plan already places.
        unserved: model → requests/s that find no room; 0.0 for one without load that is placed nowhere.
        reasons: why, a sentence per decision; the first sums up, then comes one per unserved model.
    """

    status: Status
    gap: float
    solve_s: float
    gpus_needed: int
    placements: Mapping[str, Mapping[str, float]]
    gpus: Mapping[str, Mapping[str, int]]
    utilization: Mapping[str, float]
    memory_mb: Mapping[str, float]
    moved: int
    unserved: Mapping[str, float]
    reasons: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them, in this order."""
        return {**asdict(self), "reasons": list(self.reasons)}
