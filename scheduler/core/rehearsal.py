"""Rehearsals: what each of several rules would have lost on the requests that really came.

A rule is judged by running it: a core of its own, with the same models, latencies, margins and GPUs, is given
recorded arrivals in virtual time (:class:`~scheduler.core.replay.Replay`), and its bad requests are
counted. All rules see the same arrivals, so their differences need far fewer requests than their levels.
Batches last as long as the margins let expect: they are the 95th percentile of what is above l(b).

Nothing here reads a clock or draws at random.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .recording import Ints, Piece

BEGIN_NS: Final = 1_000_000_000
"""When a rehearsal begins in its own time; a core knows no time before 0."""
SLICE: Final = 256
"""Requests that are rehearsed per step, at most; half of them with more than ``MANY`` models."""
MANY: Final = 256
BUILT: Final = 16
"""Models, and four times as many GPUs, that are set up per step."""
DRAWS: Final = 1024
"""Lengths of batches repeat after so many; a power of two."""
REMEMBERED: Final = 0.9
"""Of what was known of the lengths of batches, what still counts half a second later."""
WILDEST: Final = 0.2
"""Standard deviations of lengths, as a share, that are rehearsed at most."""
NOTICED_NS: Final = 100_000
"""Latencies and margins that differ by no more than this, and a quarter, need no new rehearsal."""
MEMORY_S: Final = 10.0
"""Time constant with which losses are forgotten, in rehearsed time."""
SURE: Final = 1.0
"""Standard errors by which a rule must have lost less than the present one to replace it."""
WORTH: Final = 0.0005
"""And the share of the requests by which it must."""
FEW: Final = 4.0
"""So many pieces are few: with n of them the standard error counts √(1 + FEW/n) times."""
WHOLE: Final = 4.0
"""Mean latency budgets that make a whole piece; shorter ones count as a part of one."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a rehearsal needs to know of a core.

    models: one row each, number, SLO in ns, largest batch. profiles: one row for each model and GPU type, the
    model's row, the type, and where in ``latency`` its l(1) … begin (bytes of int64 ns; counted in entries).
    gpus: type and models held (None: all) of every live GPU, in the order of their numbers. Latencies and
    margins in ns.
    """

    models: Ints
    profiles: Ints
    latency: bytes
    gpus: tuple[tuple[int, frozenset[int] | None], ...]
    control: int
    data: int
    result: int
    margin: int
    type_margins: tuple[tuple[int, int], ...]

    def like(self, other: Scene) -> bool:
        """The same models and GPUs, and latencies that differ little: a shard learns them all the time."""
        if self.gpus != other.gpus or self.models.tobytes() != other.models.tobytes():
            return False
        if self.profiles[:, :2].tobytes() != other.profiles[:, :2].tobytes():
            return False
        if any(self._table(a, n) != other._table(b, n) for a, b, n in self._pairs(other)):
            return False
        return all(
            abs(a - b) <= NOTICED_NS + max(a, b) // 4
            for a, b in zip(self._spans(), other._spans(), strict=True)
        )

    def _pairs(self, other: Scene) -> set[tuple[int, int, int]]:
        """Where tables of the same models and types begin in both, and their length."""
        most = self.models[self.profiles[:, 0], 2]
        columns = self.profiles[:, 2], other.profiles[:, 2], most
        return set(zip(*(column.tolist() for column in columns), strict=True))

    def _table(self, begin: int, size: int) -> bytes:
        return self.latency[8 * begin : 8 * (begin + size)]

    def table(self, begin: int, size: int) -> list[int]:
        """l(1) … l(size) in ns that begin there."""
        return [int(length) for length in np.frombuffer(self._table(begin, size), np.int64).tolist()]

    def _spans(self) -> tuple[int, ...]:
        most = max((margin for _, margin in self.type_margins), default=0)
        return self.control, self.data, self.result, self.margin + most


class Stand:
    """One rule's own core, and what it has lost. Only ``core`` is to be touched from outside.

    It is set up in several steps: the iterator ``building`` ends when it is done. ``length_ppm``: the
    lengths of its batches, see :class:`Lengths`.
    """

    def __init__(self, scene: Scene, tuner: Any, length_ppm: Ints) -> None:
        from scheduler.select import core_class, replay_class  # they are built on this package

        core = core_class()("adaptive", scene.control, scene.data, scene.result, scene.margin)
        core.tuner = tuner
        gpus = max(1, len(scene.gpus))
        self.core = core
        self.result = scene.result
        self.replay = replay_class()(
            core,
            gpus,
            scene.control,
            scene.data,
            scene.control,
            0,
            np.zeros(DRAWS, np.int64),
            length_ppm,
        )
        self.slice = SLICE if len(scene.models) <= MANY else SLICE // 2
        self.given = 0
        self.clock = BEGIN_NS
        self.building = self._build(scene)

    def _build(self, scene: Scene) -> Iterator[None]:
        core = self.core
        ends = np.searchsorted(scene.profiles[:, 0], np.arange(len(scene.models)), side="right").tolist()
        first = 0
        for i, (number, slo, most) in enumerate(scene.models.tolist(), 1):
            core.add_model(number, slo, most)
            for _, kind, begin in scene.profiles[first : ends[i - 1]].tolist():
                core.set_profile(0, number, kind, scene.table(begin, most))
            first = ends[i - 1]
            if i % BUILT == 0:
                yield
        for gpu, (kind, models) in enumerate(scene.gpus):
            core.add_gpu(0, gpu, kind, None if models is None else sorted(models))
            if gpu % (4 * BUILT) == 4 * BUILT - 1:
                yield
        for kind, margin in scene.type_margins:
            core.set_type_margin(kind, margin)

    def play(self, piece: Piece, first: int, last: int) -> int:
        """Give it these arrivals of a piece; returns the requests that turned out bad meanwhile.

        With the piece's last ones its own time goes on to the piece's end.
        """
        cut = slice(first, last)
        key = np.arange(self.given + 1, self.given + 1 + last - first, dtype=np.uint64)
        self.given += last - first
        self.replay.run(piece.at[cut] + self.clock, piece.model[cut], piece.deadline[cut] + self.clock, key)
        if last == len(piece.at):
            self.clock += piece.span
        out = self.core.actions.dispatches()
        end = np.frombuffer(memoryview(self.replay.end)[: self.replay.batches], np.int64)
        answered = np.repeat(end + self.result, np.frombuffer(out.size, np.int64))
        bad = int((answered > np.frombuffer(out.deadline, np.int64)).sum()) + self.core.actions.dropped
        del out, end
        self.replay.clear()
        return bad


@functools.cache
def quantiles() -> npt.NDArray[np.float64]:
    """Those of a normal distribution, ``DRAWS`` in number, in an order that looks random but is fixed."""
    normal = NormalDist()
    golden = 0.5 * (5.0**0.5 - 1.0)
    return np.array([normal.inv_cdf((i + 0.5) * golden % 1.0) for i in range(DRAWS)])


class Lengths:
    """How batches' ends deviate from what was predicted, as a share of their lengths, and draws of it.

    ``ppm``: lengths in millionths, normal with the mean and the deviation that were seen, the quantiles in an
    order that looks random but is fixed; it changes in place. ``spread``: the deviation.
    """

    def __init__(self) -> None:
        self.spread = 0.0
        self.seen = 0.0
        self.over = 0.0
        self.squares = 0.0
        self.ppm = np.full(DRAWS, 1_000_000, np.int64)
        self.quantiles = quantiles()

    def note(self, seen: int, over: int, squares: int) -> None:
        """So many batches came back; sum, and sum of squares, of their delays in 2^-20 of a length."""
        self.seen = REMEMBERED * self.seen + seen
        self.over = REMEMBERED * self.over + over / 2**20
        self.squares = REMEMBERED * self.squares + squares / 2**40
        if self.seen >= 1.0:
            mean = self.over / self.seen
            self.spread = min(WILDEST, max(0.0, self.squares / self.seen - mean * mean) ** 0.5)
            share = 1.0 + min(WILDEST, max(-WILDEST, mean)) + self.spread * self.quantiles
            self.ppm[:] = np.rint(1e6 * np.maximum(share, 0.1))


class Losses:
    """Bad requests per rule over rehearsed pieces, older ones forgotten, and which rule to follow.

    The rules are numbered in order of preference: without a difference, the first.
    """

    def __init__(self, rules: int) -> None:
        self.bad = np.zeros(rules)
        self.squares = np.zeros((rules, rules))
        self.offered = 0.0
        self.pieces = 0.0
        self.chosen = 0

    def add(self, bad: npt.NDArray[np.float64], offered: int, seconds: float, whole: float = 1.0) -> None:
        """One piece of arrivals that all have rehearsed, or so much of a ``whole`` one."""
        kept = max(0.0, 1.0 - seconds / MEMORY_S)
        self.bad = kept * self.bad + bad
        self.squares = kept * self.squares + np.outer(bad, bad)
        self.offered = kept * self.offered + offered
        self.pieces = kept * self.pieces + whole
        self.chosen = self._choose()

    def _choose(self) -> int:
        """Another rule if it lost clearly less, an earlier one if it lost no more.

        Clearly: by :data:`SURE` standard errors of the sum of the differences, piece by piece, and by
        :data:`WORTH` of the requests. Two pieces that happen to agree have a small error: few are no proof.
        """
        now = self.chosen
        more = self.bad[now] - self.bad
        own = np.diag(self.squares)
        error = np.sqrt(np.maximum(own + own[now] - 2 * self.squares[now], 0.0) * (1.0 + FEW / self.pieces))
        if (more > np.maximum(SURE * error, WORTH * self.offered)).any():
            return int(np.argmin(self.bad))
        return int(np.flatnonzero(more[: now + 1] >= 0.0)[0])


class Rehearsal:
    """All rules' stands for one scene, and the pieces of arrivals that they have not played yet.

    A step is one rule's next few requests of the first piece, so that no step takes long. The cores begin
    empty, so pieces that begin within the first ``budget_ns`` (a mean latency budget) do not count.
    """

    def __init__(self, rules: int, make: Callable[[int], Stand], budget_ns: int = 0) -> None:
        self.make = make
        self.budget_ns = budget_ns
        self.played = 0
        self.stands: list[Stand | None] = [None] * rules
        self.pieces: list[Piece] = []
        self.turn = 0
        self.place = 0
        self.bad = np.zeros(rules)

    def record(self, piece: Piece) -> None:
        """Arrivals that are to be rehearsed."""
        self.pieces.append(piece)

    def step(self, losses: Losses) -> None:
        """Let the next rule go on with the first piece; when all have played it, it counts."""
        if not self.pieces:
            return
        stand = self.stands[self.turn]
        if stand is None:
            self.stands[self.turn] = self.make(self.turn)
            return
        for _ in stand.building:
            return
        piece = self.pieces[0]
        last = min(len(piece.at), self.place + stand.slice)
        self.bad[self.turn] += stand.play(piece, self.place, last)
        self.place = last
        if last < len(piece.at):
            return
        self.place = 0
        self.turn += 1
        if self.turn == len(self.stands):
            if self.played >= self.budget_ns:
                whole = min(1.0, piece.span / max(1.0, WHOLE * self.budget_ns))
                losses.add(self.bad, len(piece.at), piece.seconds, whole)
            self.played += piece.span
            self.bad = np.zeros(len(self.stands))
            self.turn = 0
            self.pieces.pop(0)
