"""Where a policy's bad share crosses 1 % in a cell of the grid, and where the clairvoyant bound does."""

from __future__ import annotations

import numpy as np

from .clairvoyant import least_bad_share
from .experiment import Experiment
from .goodput import LIMIT, bad_share

CLAIRVOYANT = "clairvoyant"
"""In the place of a policy's name: the least bad share that any scheduler could have."""
COARSE = 0.02
"""The bisection's precision."""
NEAR = (-0.08, -0.06, -0.045, -0.03, -0.02, -0.01, 0.0, 0.01, 0.02, 0.03, 0.045, 0.06)
"""Rates around its end at which a policy that is not behind is run, too."""
LOWEST = 0.01
"""Shares of the fluid ideal below this count as nothing."""
BEHIND = 0.95
"""A policy below this share of the cell's best is found to ``COARSE`` only."""


def search(experiment: Experiment, policy: str, best: float) -> float:
    """The factor on the rates at which bad is 1 %; ``best``: the largest that another policy reached.

    Under bursts the bad share of a finite run does not rise steadily with the rate, and a bisection ends
    at any of its crossings of 1 %. So the neighbourhood of the first one is looked at too, and what counts
    is where the rising curve that fits all these runs best (least squares) crosses 1 %.
    """
    bad: dict[float, float] = {}

    def good(scale: float) -> bool:
        if policy == CLAIRVOYANT:
            bad[scale] = least_bad_share(experiment, scale)
        else:
            bad[scale] = bad_share(experiment, policy, scale)
        return bad[scale] < LIMIT

    low, high = 0.0, best or 1.0
    step = 1.05
    while good(high):
        low, high = high, high * step
        step *= 1.05
    step = 0.05
    while low == 0.0:
        below = high * (1 - step)
        if below < LOWEST:
            return 0.0
        if good(below):
            low = below
        else:
            high = below
            step = min(0.5, 2 * step)
    while high - low > COARSE * high:
        middle = (low + high) / 2
        low, high = (middle, high) if good(middle) else (low, middle)
    if high >= BEHIND * best:
        for offset in NEAR:
            good((1 + offset) * low)
    while crossing(bad, LIMIT) == 0.0 and min(bad) > LOWEST:
        good(0.95 * min(bad))
    return crossing(bad, LIMIT)


def crossing(bad: dict[float, float], limit: float) -> float:
    """Where the non-decreasing fit of these shares (isotonic regression) crosses the limit; 0 if nowhere."""
    scales = sorted(bad)
    pools: list[list[float]] = []  # mean, runs
    for scale in scales:
        pools.append([bad[scale], 1.0])
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            share, runs = pools.pop()
            pools[-1][0] = (pools[-1][0] * pools[-1][1] + share * runs) / (pools[-1][1] + runs)
            pools[-1][1] += runs
    fitted = np.repeat([pool[0] for pool in pools], [int(pool[1]) for pool in pools])
    above = int(np.searchsorted(fitted, limit))
    if above == 0:
        return 0.0
    if above == len(scales):
        return scales[-1]
    left, right = scales[above - 1], scales[above]
    share = (limit - fitted[above - 1]) / (fitted[above] - fitted[above - 1])
    return float(left + share * (right - left))
