"""Epoch allocation: models to sub-clusters and GPUs to shards, by compute and memory.

A pure function from a :class:`Cluster` to a :class:`Plan`; docs/allocation.md defines the model and the
objective.
"""

from .cluster import (
    ANY_TYPE,
    AllocationError,
    Cluster,
    Current,
    GpuGroup,
    Model,
    Network,
)
from .plan import Plan
from .solve import allocate

__all__ = [
    "ANY_TYPE",
    "AllocationError",
    "Cluster",
    "Current",
    "GpuGroup",
    "Model",
    "Network",
    "Plan",
    "allocate",
]
