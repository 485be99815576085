"""Squishy bin packing: Nexus' plan of which sessions share which GPU, with which batch and duty cycle.

Source: Shen et al., "Nexus: A GPU Cluster Engine for Accelerating DNN-Based Video Analysis",
SOSP 2019, section 6.1, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Session:
    """A model with its objective and load. rate: requests/s. budget: ns for waiting, inputs and batch.

    ``data``: ns per request, spent before a batch can start.
    """

    model: int
    rate: float
    budget: int
    latency: Sequence[int]
    data: int = 0

    def largest(self, spare: float) -> int:
        """Largest b with l(b) + b·data ≤ spare; 0 if there is none."""
        best = 0
        for b, length in enumerate(self.latency, 1):
            if length + b * self.data <= spare:
                best = b
        return best


@dataclass(frozen=True, slots=True)
class Share:
    """A session's part of a node: so many requests/s in batches of ``batch``."""

    session: Session
    rate: float
    batch: int


@dataclass(frozen=True, slots=True)
class Node:
    """One GPU: its shares run in turn, once per ``duty`` ns."""

    duty: float
    shares: tuple[Share, ...]

    @property
    def occupancy(self) -> float:
        """Busy part of the duty cycle."""
        return sum(share.session.latency[share.batch - 1] for share in self.shares) / self.duty


def pack(sessions: Sequence[Session]) -> list[Node]:
    """Plan GPUs for all sessions: whole ones first, then the residues merged best fit, largest first."""
    nodes: list[Node] = []
    residues: list[Node] = []
    for session in sessions:
        if session.rate <= 0:
            continue
        # A whole GPU: a request waits for one batch and runs in the next, so 2·l(B) ≤ budget.
        b = 0
        for size, length in enumerate(session.latency, 1):
            if 2 * length + size * session.data <= session.budget:
                b = size
        whole = 0
        rest = session.rate
        if b:
            peak = b / session.latency[b - 1] * 1e9
            whole = int(session.rate / peak + 1e-9)
            rest = max(0.0, session.rate - whole * peak)
            duty = float(session.latency[b - 1])
            nodes += [Node(duty, (Share(session, peak, b),)) for _ in range(whole)]
        if rest > 1e-9 * session.rate:
            residues.append(_residue(session, rest))
    packed: list[Node] = []
    for node in sorted(residues, key=lambda node: -node.occupancy):
        best: Node | None = None
        place = -1
        for i, other in enumerate(packed):
            merged = merge(other, node)
            if merged is not None and (best is None or merged.occupancy > best.occupancy):
                best, place = merged, i
        if best is None:
            packed.append(node)
        else:
            packed[place] = best
    return nodes + packed


def _residue(session: Session, rate: float) -> Node:
    """A node for a load below one GPU: the largest b with l(b) + b/rate ≤ budget, duty cycle b/rate."""
    best = 1
    for b, length in enumerate(session.latency, 1):
        if length + b * session.data + b / rate * 1e9 <= session.budget:
            best = b
    duty = best / rate * 1e9
    # A single request per cycle is never worth waiting for: the cycle is what the objective allows.
    if best == 1:
        duty = max(min(duty, float(session.budget - session.latency[0])), float(session.latency[0]))
    return Node(duty, (Share(session, rate, best),))


def merge(one: Node, two: Node) -> Node | None:
    """Both on one GPU: the shorter cycle, batches of what arrives in it; None if that is too much."""
    duty = min(one.duty, two.duty)
    shares: list[Share] = []
    busy = 0
    for share in (*one.shares, *two.shares):
        session = share.session
        batch = max(1, -int(-(duty * share.rate / 1e9 - 1e-9) // 1))
        if batch > len(session.latency):
            return None
        length = session.latency[batch - 1]
        if duty + length + batch * session.data > session.budget:
            return None
        busy += length
        shares.append(Share(session, share.rate, batch))
    return Node(duty, tuple(shares)) if busy <= duty else None


def plan(sessions: Sequence[Session], gpus: int) -> list[Node]:
    """The packing of the largest multiple of the load that fits the GPUs, to 0.1 %."""
    low, high = 0.0, 1.0

    def packed(factor: float) -> list[Node]:
        scaled = [Session(s.model, s.rate * factor, s.budget, s.latency, s.data) for s in sessions]
        return pack(scaled)

    while len(packed(high)) <= gpus and high < 1e6:
        low, high = high, 2 * high
    for _ in range(40):
        if high - low <= 1e-3 * high:
            break
        middle = (low + high) / 2
        low, high = (middle, high) if len(packed(middle)) <= gpus else (low, middle)
    return packed(low)
