# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: annotation_typing=False, infer_types=True
"""Policies by name: each answers only when a candidate batch is ready to take a GPU.

All times are int ns. ``deferred`` is the rule of the Symphony paper (arXiv 2308.07470); ``timeout``
is that of Triton's dynamic batcher; the others are the ablations of the dispatch moment.
"""

from __future__ import annotations

from .adaptive import Tuner
from .limits import LARGEST_BATCH, LONGEST


class Policy:
    """What a policy is asked; answers as ``deferred`` does, but looks at every arrival."""

    def __init__(self) -> None:
        self.name = "deferred"

    def calm(self, target: int, most: int) -> int:
        """With fewer requests than this the opening needs no look at an arrival behind the last.

        To be above 0, :meth:`opens` must not depend on ``now`` but where it answers ``now``, nor on
        anything but its arguments; below that many requests, answer ``now`` only if it would for any
        number; and answer no later for a larger size, nor earlier than for the size at which one more
        would not fit. 0: look at every arrival.
        """
        return 0

    def opens(
        self, now: int, size: int, target: int, full: bool, frontrun: int, latest: int, arrived: int
    ) -> int:
        """The moment from which the candidate may take a GPU; a past moment means now.

        Args:
            now: the time of the event.
            size: requests in the candidate.
            target: the batch size that the model's rate calls for.
            full: the candidate has the model's largest batch size.
            frontrun: from then on one more request could not join in time.
            latest: from then on the candidate itself would be late.
            arrived: when the candidate's head came, taken as its deadline less the model's SLO.
        """
        if full:
            return now
        return frontrun


class Deferred(Policy):
    """Ready when waiting longer could not let the batch grow."""

    def calm(self, target: int, most: int) -> int:
        """Until the batch is full."""
        return most


class Eager(Policy):
    """Ready at once: work-conserving."""

    def __init__(self) -> None:
        self.name = "eager"

    def calm(self, target: int, most: int) -> int:
        """Always: it never waits."""
        return most

    def opens(
        self, now: int, size: int, target: int, full: bool, frontrun: int, latest: int, arrived: int
    ) -> int:
        """Always now."""
        return now


class Target(Policy):
    """Ready at the target size, or when waiting longer could not let the batch grow."""

    def __init__(self) -> None:
        self.name = "target"

    def calm(self, target: int, most: int) -> int:
        """Until the target size is reached."""
        return target if target < most else most

    def opens(
        self, now: int, size: int, target: int, full: bool, frontrun: int, latest: int, arrived: int
    ) -> int:
        """Now at the target size, else the frontrun moment."""
        if full or size >= target:
            return now
        return frontrun


class Latest(Policy):
    """Ready only when the candidate could not be started any later."""

    def __init__(self) -> None:
        self.name = "latest"

    def calm(self, target: int, most: int) -> int:
        """Until the batch is full."""
        return most

    def opens(
        self, now: int, size: int, target: int, full: bool, frontrun: int, latest: int, arrived: int
    ) -> int:
        """Now for a full batch, else the latest moment."""
        if full:
            return now
        return latest


class Timeout(Policy):
    """Ready after a fixed wait of the oldest request, or at a preferred size."""

    def __init__(self, wait_ns: int, preferred: int = 0) -> None:
        self.name = "timeout"
        self.wait_ns = wait_ns
        self.preferred = preferred

    def calm(self, target: int, most: int) -> int:
        """Until the preferred size, or the largest, is reached."""
        return self.preferred if 0 < self.preferred < most else most

    def opens(
        self, now: int, size: int, target: int, full: bool, frontrun: int, latest: int, arrived: int
    ) -> int:
        """Now at the preferred size, else when the head has waited long enough."""
        if full or 0 < self.preferred <= size:
            return now
        return arrived + self.wait_ns


class Adaptive(Policy):
    """As deferred; what starts earlier than that is decided by its slow loop (:mod:`.adaptive`).

    ``dial``: 0 (lowest latency) … 1 (fewest GPUs).
    """

    def __init__(self, dial: float = 0.0) -> None:
        self.name = "adaptive"
        self.dial = dial

    def calm(self, target: int, most: int) -> int:
        """Until the batch is full; the queue from which the lane may start early, if less, is the lane's."""
        return most


def make_tuner(policy: Policy) -> Tuner | None:
    """The slow loop of the policy; None where it has none."""
    return Tuner(policy.dial) if isinstance(policy, Adaptive) else None


def make_policy(name: str) -> Policy:
    """A policy from its name: deferred, eager, target, latest, timeout:MS[:PREFERRED], or adaptive[:DIAL].

    Raises:
        ValueError: no such policy; the text lists those that there are.
    """
    kind, _, rest = name.partition(":")
    simple = {"deferred": Deferred, "eager": Eager, "target": Target, "latest": Latest}
    if kind in simple and not rest:
        return simple[kind]()
    if kind == "timeout" and rest:
        wait, _, preferred = rest.partition(":")
        try:
            wait_ns, size = int(float(wait) * 1e6), int(preferred or 0)
        except (ValueError, OverflowError):
            wait_ns, size = -1, 0
        if 0 <= wait_ns < LONGEST and 0 <= size <= LARGEST_BATCH:
            return Timeout(wait_ns, size)
    if kind == "adaptive":
        try:
            dial = float(rest or 0)
        except ValueError:
            dial = -1.0
        if 0 <= dial <= 1:
            return Adaptive(dial)
    raise ValueError(
        f"unknown policy {name!r}: choose deferred, eager, target, latest or timeout:MS[:PREFERRED_SIZE], or"
        " adaptive[:DIAL], the dial from 0 (lowest latency) to 1 (fewest GPUs)"
    )
