"""Squishy bin packing: Nexus' plan of which sessions share which GPU, with which batch and duty cycle.

Source: Shen et al., "Nexus: A GPU Cluster Engine for Accelerating DNN-Based Video Analysis",
SOSP 2019, as the authors' program has it (uwsampl/nexus: ``ComputeBatchSize``, ``PrepareLoadModel``
and ``UpdateCycle`` of ``backend_delegate.cpp``, ``GetMaxBatch`` of ``model_db.cpp``).

A session whose load saturates GPUs gets whole ones, with the largest B for which 2·l(B) ≤ budget. What
is left, and a session below one GPU, gets the largest b with (b − 1)/rate + l(b) ≤ budget and a duty
cycle of min(b/rate, budget − l(b)). Nodes with such residues are merged, best fit, the fullest first:
the shorter cycle holds for both, each batch is what arrives in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Plan = TypeVar("Plan")


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

    def whole(self) -> int:
        """Largest b with 2·l(b) ≤ budget: a request waits for one batch and runs in the next."""
        best = 0
        for size, length in enumerate(self.latency, 1):
            if 2 * length + size * self.data > self.budget:
                break
            best = size
        return best

    def peak(self, batch: int) -> float:
        """Requests/s of a GPU that runs nothing but such batches."""
        return batch / self.latency[batch - 1] * 1e9


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
    """Plan GPUs of one type for all sessions: whole ones first, then the residues, merged."""
    nodes: list[Node] = []
    residues: list[Node] = []
    for session in sessions:
        if session.rate <= 0:
            continue
        b = session.whole()
        rest = session.rate
        if b:
            peak = session.peak(b)
            whole = int(session.rate / peak + 1e-9)
            rest = max(0.0, session.rate - whole * peak)
            nodes += [full(session)] * whole
        if rest > 1e-9 * session.rate:
            residues.append(residue(session, rest))
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


def full(session: Session) -> Node:
    """A GPU that the session has for itself."""
    b = session.whole()
    return Node(float(session.latency[b - 1]), (Share(session, session.peak(b), b),))


def residue(session: Session, rate: float) -> Node:
    """A node for a load below one GPU."""
    best = 1
    for b, length in enumerate(session.latency, 1):
        if length + b * session.data + (b - 1) / rate * 1e9 > session.budget:
            break
        best = b
    length = session.latency[best - 1]
    duty = min(best / rate * 1e9, float(session.budget - length - best * session.data))
    return Node(max(duty, float(length)), (Share(session, rate, best),))


def merge(one: Node, two: Node) -> Node | None:
    """Both on one GPU: the shorter cycle, batches of what arrives in it; None if that is too much."""
    duty = min(one.duty, two.duty)
    shares: list[Share] = []
    busy = 0
    for share in (*one.shares, *two.shares):
        session = share.session
        batch = max(1, -int(-(duty * share.rate / 1e9 - 1e-3) // 1))
        if batch > len(session.latency):
            return None
        length = session.latency[batch - 1]
        if duty + length + batch * session.data > session.budget:
            return None
        busy += length
        shares.append(Share(session, share.rate, batch))
    return Node(duty, tuple(shares)) if busy <= duty else None


def assign(sessions: Sequence[Sequence[Session]], gpu_type: Sequence[int]) -> list[Node | None] | None:
    """Place sessions on GPUs of several types one by one, the largest rate first.

    ``sessions[m][k]``: model m as it runs on type k. As the authors' ``FindBestBackend`` has it: while
    no GPU can take all that is left of a session, the one that takes most of it; then the one that is
    fullest with it. Ties go to the lowest-numbered GPU.

    Returns:
        A node per GPU (None: idle), or None if not everything can be placed.
    """
    nodes: list[Node | None] = [None] * len(gpu_type)
    for kinds in sorted(sessions, key=lambda kinds: -kinds[0].rate):
        rest = kinds[0].rate
        holds: set[int] = set()
        while rest > 1e-6 * kinds[0].rate:
            most: tuple[float, int, Node] | None = None
            fullest: tuple[float, int, Node] | None = None
            alike: set[tuple[int, int]] = set()
            for gpu, kind in enumerate(gpu_type):
                present = nodes[gpu]
                if gpu in holds or (kind, id(present)) in alike:
                    continue
                alike.add((kind, id(present)))
                node, taken = _with(present, kinds[kind], rest)
                if node is None:
                    continue
                if most is None or taken > most[0]:
                    most = taken, gpu, node
                if taken >= rest and (fullest is None or node.occupancy > fullest[0]):
                    fullest = node.occupancy, gpu, node
            if most is None:
                return None
            taken, gpu, node = most if fullest is None else (rest, fullest[1], fullest[2])
            nodes[gpu] = node
            holds.add(gpu)
            rest -= taken
    return nodes


def _with(present: Node | None, session: Session, rate: float) -> tuple[Node | None, float]:
    """The GPU with as much of the session as goes there, and how much that is."""
    b = session.whole()
    if session.latency[0] + session.data > session.budget:
        return None, 0.0
    if present is None and b and rate >= session.peak(b):
        return full(session), session.peak(b)
    if b and rate >= session.peak(b):
        return None, 0.0
    node = residue(session, rate)
    if present is None:
        return node, rate
    merged = merge(present, node)
    return merged, rate


def plan(sessions: Sequence[Session], gpus: int) -> list[Node]:
    """The packing of the largest multiple of the load that fits GPUs of one type, to 0.1 %."""

    def packed(factor: float) -> list[Node] | None:
        nodes = pack([_scaled(session, factor) for session in sessions])
        return nodes if len(nodes) <= gpus else None

    return _largest(packed) or []


def plan_types(sessions: Sequence[Sequence[Session]], gpu_type: Sequence[int]) -> list[Node | None]:
    """The same for GPUs of several types, by :func:`assign`; a node per GPU."""

    def placed(factor: float) -> list[Node | None] | None:
        return assign([[_scaled(session, factor) for session in kinds] for kinds in sessions], gpu_type)

    return _largest(placed) or [None] * len(gpu_type)


def _scaled(session: Session, factor: float) -> Session:
    return Session(session.model, session.rate * factor, session.budget, session.latency, session.data)


def _largest(make: Callable[[float], Plan | None]) -> Plan | None:
    """What ``make`` gives for the largest factor for which it gives anything, to 0.1 %."""
    low, high = 0.0, 1.0
    best = make(1e-6)
    found = make(high)
    while found is not None and high < 1e6:
        best, low, high = found, high, 2 * high
        found = make(high)
    for _ in range(40):
        if high - low <= 1e-3 * high:
            break
        middle = (low + high) / 2
        found = make(middle)
        if found is None:
            high = middle
        else:
            best, low = found, middle
    return best
