"""The fluid ideal on GPUs of several types, a linear program for HiGHS."""

from __future__ import annotations

from collections.abc import Sequence

import highspy
import numpy as np
import numpy.typing as npt

from symphony.status import SymphonyError

from .fluid import gather_budget
from .system import Cluster

Floats = npt.NDArray[np.float64]
STEP = 1.01


def fluid_scale_of_types(cluster: Cluster) -> float:
    """The same where each GPU has one of several types: a model's batches are dealt out to the types.

    A model's requests gather at their whole rate y·r, so b follows from y for each type k as above, and
    a request costs c_k = l_k(b)/b there. Shares x_k ≥ 0 of the models with Σ_k x_k = y and
    Σ r·x_k·c_k ≤ GPUs of type k, for all k, are a linear program; the largest y for which it has a
    solution is searched from above in steps of 1 %, then by bisection to 1e-6.
    """
    kinds = sorted(set(cluster.gpu_type))
    counts = [sum(kind == of for of in cluster.gpu_type) for kind in kinds]
    groups: dict[tuple[int, tuple[tuple[int, ...], ...], float], int] = {}
    for model in cluster.models:
        if model.rate > 0:
            key = (gather_budget(cluster, model), tuple(model.latency[kind] for kind in kinds), model.rate)
            groups[key] = groups.get(key, 0) + 1

    def need(y: float) -> Floats:
        """GPU seconds per second and unit of y, per group and type; infinite where even b = 1 is late."""
        cost = np.full((len(groups), len(kinds)), np.inf)
        for row, ((budget, tables, rate), count) in enumerate(groups.items()):
            for column, latency in enumerate(tables):
                b = np.arange(1, len(latency) + 1)
                table = np.array(latency)
                spare = budget - table - b * cluster.data
                fits = (spare > 0) & ((b == 1) | (b / (y * rate) * 1e9 <= spare))
                if fits[0]:
                    cost[row, column] = count * rate * np.min((table / b)[fits]) / 1e9
        return cost

    high = _largest_share(need(np.inf), counts)  # as if nobody had to wait for a batch to gather
    low = bound = high
    # A larger rate lets larger batches gather, so a rate may fit although a smaller one does not.
    while low > 0 and _largest_share(need(low), counts) < low:
        low, high = (low / STEP, low) if low > 1e-9 * bound else (0.0, 0.0)
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _largest_share(need(middle), counts) >= middle else (low, middle)
    return low


def _largest_share(cost: Floats, counts: Sequence[int]) -> float:
    """Largest z with shares x ≥ 0, Σ_k x[m, k] = z and Σ_m cost[m, k]·x[m, k] ≤ counts[k]."""
    rows, kinds = cost.shape
    if not np.isfinite(cost).any(axis=1).all():
        return 0.0
    places = [(m, k) for m in range(rows) for k in range(kinds) if np.isfinite(cost[m, k])]
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(places) + 1, rows + kinds
    lp.sense_ = highspy.ObjSense.kMaximize
    lp.col_cost_ = np.array([0.0] * len(places) + [1.0])
    lp.col_lower_ = np.zeros(lp.num_col_)
    lp.col_upper_ = np.full(lp.num_col_, highspy.kHighsInf)
    lp.row_lower_ = np.array([0.0] * rows + [-highspy.kHighsInf] * kinds)
    lp.row_upper_ = np.array([0.0] * rows + [float(count) for count in counts])
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = np.append(2 * np.arange(len(places) + 1), 2 * len(places) + rows)
    index: list[int] = []
    value: list[float] = []
    for m, k in places:
        index += [m, rows + k]
        value += [1.0, float(cost[m, k])]
    lp.a_matrix_.index_ = np.array(index + list(range(rows)))
    lp.a_matrix_.value_ = np.array(value + [-1.0] * rows)
    solver = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.silent()
    solver.passModel(lp)
    solver.run()
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        raise SymphonyError(f"the fluid ideal of several GPU types: HiGHS says {solver.getModelStatus()}")
    return float(solver.getInfo().objective_function_value)
