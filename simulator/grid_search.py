"""Where a policy's bad share crosses 1 % in a cell of the grid, and where the clairvoyant bound does."""

from __future__ import annotations

import numpy as np

from .clairvoyant import least_bad_share
from .experiment import Experiment
from .goodput import LIMIT, bad_share

CLAIRVOYANT = "clairvoyant"
"""In the place of a policy's name: the least bad share that any scheduler could have."""
STEP = 1.01
"""Policies are run at powers of this, times the fluid ideal, and at nothing between them."""
COARSE = 0.02
"""The bisection's precision."""
REACH = 7
"""So many steps below and above its limit a policy that is not behind is run at every rate."""
LOWEST = 0.01
"""Shares of the fluid ideal below this count as nothing."""
BEHIND = 0.9
"""A policy below this share of the cell's best is found to ``COARSE`` only."""


def search(experiment: Experiment, policy: str, best: float) -> float:
    """The factor on the rates at which bad is 1 %; ``best``: the largest that another policy reached.

    Under bursts the bad share of a finite run does not rise steadily with the rate, and a bisection ends
    at any of its crossings of 1 %. So all rates in the neighbourhood are run too, and what counts is where
    the rising curve that fits all these runs best (least squares) crosses 1 %. The neighbourhood moves
    until the crossing lies in its middle, and the rates are the same for all policies: so the result
    does not hang on where the search began, and policies that do the same come out the same.
    """
    bad: dict[float, float] = {}

    def at(step: int) -> float:
        return float(STEP**step)

    def good(step: int) -> bool:
        scale = at(step)
        if scale not in bad and policy == CLAIRVOYANT:
            bad[scale] = least_bad_share(experiment, scale)
        elif scale not in bad:
            bad[scale] = bad_share(experiment, policy, scale)
        return bad[scale] < LIMIT

    high = round(np.log(best or 1.0) / np.log(STEP))
    low, stride = high - 5, 5
    while good(high):
        low, high = high, high + stride
        stride += 5
    stride = 5
    while not good(low):
        low, high = low - stride, low
        stride = min(70, 2 * stride)
        if at(low) < LOWEST:
            return 0.0
    while at(high) - at(low) > COARSE * at(high):
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)
    if at(high) >= BEHIND * best:
        around = range(low - REACH, low + REACH + 1)
        while any(at(step) not in bad for step in around):
            for step in around:
                good(step)
            found = crossing(bad, LIMIT) or at(min(around))
            middle = int(np.floor(np.log(found) / np.log(STEP)))
            around = range(middle - REACH, middle + REACH + 1)
            if at(around[0]) < LOWEST:
                break
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
