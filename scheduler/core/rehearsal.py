"""Rehearsals: what each of several rules would have lost on the requests that really came.

A rule is judged by running it: a core of its own, with the same models, latencies, margins and GPUs, is given
recorded arrivals in virtual time (:class:`~scheduler.core.replay.Replay`), and its bad requests are
counted. All rules see the same arrivals, so their differences need far fewer requests than their levels.
Batches last as long as the margins let expect: they are the 95th percentile of what is above l(b).

Nothing here reads a clock or draws at random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from .limits import LIVE

if TYPE_CHECKING:
    from .window import Window

Ints = npt.NDArray[np.int64]
Columns = tuple[Ints, npt.NDArray[np.uint32], Ints]
"""Arrivals: when, model, deadline."""

DRAWS: Final = 1024
"""Lengths of batches repeat after so many; a power of two."""
LEARNED: Final = 1.645
"""Standard deviations from the mean to the 95th percentile."""
NOTICED_NS: Final = 100_000
"""Latencies and margins that differ by no more than this, and a quarter, need no new rehearsal."""
MEMORY_S: Final = 10.0
"""Time constant with which losses are forgotten, in rehearsed time."""
SURE: Final = 1.0
"""Standard errors by which a rule must have lost less than the present one to replace it."""
WORTH: Final = 0.0005
"""And the share of the requests by which it must."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a rehearsal needs to know of a core.

    models: number, SLO in ns, largest batch, and per GPU type l(1) … as bytes of int64 ns. gpus: type and
    models held (None: all) of every live GPU, in the order of their numbers. Latencies and margins in ns.
    """

    models: tuple[tuple[int, int, int, tuple[tuple[int, bytes], ...]], ...]
    gpus: tuple[tuple[int, frozenset[int] | None], ...]
    control: int
    data: int
    result: int
    margin: int
    type_margins: tuple[tuple[int, int], ...]

    def like(self, other: Scene) -> bool:
        """The same models and GPUs, and latencies that differ little: a shard learns them all the time."""
        if (self.models, self.gpus) != (other.models, other.gpus):
            return False
        return all(
            abs(a - b) <= NOTICED_NS + max(a, b) // 4
            for a, b in zip(self._spans(), other._spans(), strict=True)
        )

    def _spans(self) -> tuple[int, ...]:
        most = max((margin for _, margin in self.type_margins), default=0)
        return self.control, self.data, self.result, self.margin + most


class Stand:
    """One rule's own core, and what it has lost. Only ``core`` is to be touched from outside."""

    def __init__(self, scene: Scene, tuner: Any, longest_ns: float) -> None:
        from scheduler.select import core_class, replay_class  # they are built on this package

        core = core_class()("adaptive", scene.control, scene.data, scene.result, scene.margin)
        core.tuner = tuner
        for number, slo, most, tables in scene.models:
            core.add_model(number, slo, most)
            for kind, table in tables:
                core.set_profile(0, number, kind, np.frombuffer(table, np.int64).tolist())
        for gpu, (kind, models) in enumerate(scene.gpus):
            core.add_gpu(0, gpu, kind, None if models is None else sorted(models))
        for kind, margin in scene.type_margins:
            core.set_type_margin(kind, margin)
        margin = scene.margin + max((m for _, m in scene.type_margins), default=0)
        spread = min(0.2, margin / LEARNED / max(1.0, longest_ns))
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
            _lengths(spread),
        )
        self.given = 0

    def play(self, columns: Columns) -> int:
        """Give it arrivals, later than all before; returns the requests that turned out bad meanwhile."""
        at, model, deadline = columns
        n = len(at)
        key = np.arange(self.given + 1, self.given + n + 1, dtype=np.uint64)
        self.given += n
        self.replay.run(at, model, deadline, key)
        out = self.core.actions.dispatches()
        end = np.frombuffer(memoryview(self.replay.end)[: self.replay.batches], np.int64)
        answered = np.repeat(end + self.result, np.frombuffer(out.size, np.int64))
        bad = int((answered > np.frombuffer(out.deadline, np.int64)).sum()) + self.core.actions.dropped
        del out, end
        self.replay.clear()
        return bad


def _lengths(spread: float) -> Ints:
    """Lengths in millionths: normal around 1, the quantiles in an order that looks random but is fixed."""
    normal = NormalDist()
    golden = 0.5 * (5.0**0.5 - 1.0)
    return np.array(
        [round(1e6 * (1.0 + spread * normal.inv_cdf((i + 0.5) * golden % 1.0))) for i in range(DRAWS)],
        np.int64,
    )


class Losses:
    """Bad requests per rule over rehearsed pieces, older ones forgotten, and which rule to follow.

    The rules are numbered in order of preference: without a difference, the first.
    """

    def __init__(self, rules: int) -> None:
        self.bad = np.zeros(rules)
        self.squares = np.zeros((rules, rules))
        self.offered = 0.0
        self.chosen = 0

    def add(self, bad: npt.NDArray[np.float64], offered: int, seconds: float) -> None:
        """One piece of arrivals that all have rehearsed."""
        kept = max(0.0, 1.0 - seconds / MEMORY_S)
        self.bad = kept * self.bad + bad
        self.squares = kept * self.squares + np.outer(bad, bad)
        self.offered = kept * self.offered + offered
        self.chosen = self._choose()

    def _choose(self) -> int:
        """Another rule if it lost clearly less, an earlier one if it lost no more.

        Clearly: by :data:`SURE` standard errors of the sum of the differences, piece by piece, and by
        :data:`WORTH` of the requests.
        """
        now = self.chosen
        more = self.bad[now] - self.bad
        own = np.diag(self.squares)
        error = np.sqrt(np.maximum(own + own[now] - 2 * self.squares[now], 0.0))
        if (more > np.maximum(SURE * error, WORTH * self.offered)).any():
            return int(np.argmin(self.bad))
        return int(np.flatnonzero(more[: now + 1] >= 0.0)[0])


class Rehearsal:
    """All rules' stands for one scene, and the recorded arrivals that they have not played yet.

    A chunk is played by one rule per call of :meth:`step`, so that no call takes long.
    """

    def __init__(self, rules: int, make: Callable[[int], Stand]) -> None:
        self.make = make
        self.stands: list[Stand | None] = [None] * rules
        self.chunks: list[Columns] = []
        self.turn = 0
        self.bad = np.zeros(rules)
        self.until = -1

    def record(self, columns: Columns) -> None:
        """Arrivals that are to be rehearsed, later than all before."""
        self.chunks.append(columns)

    def step(self, losses: Losses) -> None:
        """Let the next rule play the oldest chunk; when all have, it counts."""
        if not self.chunks:
            return
        chunk = self.chunks[0]
        stand = self.stands[self.turn] or self.make(self.turn)
        self.stands[self.turn] = stand
        self.bad[self.turn] = stand.play(chunk)
        self.turn += 1
        if self.turn == len(self.stands):
            first, last = int(chunk[0][0]), int(chunk[0][-1])
            if self.until < 0:
                self.until = first
            losses.add(self.bad, len(chunk[0]), max(0, last - max(self.until, first)) / 1e9)
            self.until = last
            self.turn = 0
            self.chunks.pop(0)


def scene_of(core: Window) -> Scene:
    """What there is to rehearse with."""
    models, gpus = core.models, core.gpus
    latency = np.frombuffer(memoryview(models.latency), np.int64)
    table = np.frombuffer(memoryview(models.table), np.int64).reshape(models.capacity, -1)
    found = []
    for model in np.flatnonzero(np.frombuffer(memoryview(models.known), np.int8)[: models.capacity]).tolist():
        most = models.max_batch[model]
        kinds = np.flatnonzero(table[model] >= 0).tolist()
        tables = tuple(
            (kind, latency[table[model, kind] + 1 : table[model, kind] + 1 + most].tobytes())
            for kind in kinds
        )
        found.append((model, models.slo[model], most, tables))
    live = np.frombuffer(memoryview(gpus.state), np.int8)[: gpus.capacity] == LIVE
    classes = np.frombuffer(memoryview(gpus.cls), np.int64)[: gpus.capacity][live].tolist()
    kinds_of = [(gpus.class_type[c], gpus.class_models[c]) for c in range(gpus.classes)]
    margins = np.frombuffer(memoryview(core.type_margin), np.int64)
    return Scene(
        tuple(found),
        tuple(kinds_of[c] for c in classes),
        core.control,
        core.data,
        core.result,
        core.margin,
        tuple((kind, int(margins[kind])) for kind in np.flatnonzero(margins).tolist()),
    )
