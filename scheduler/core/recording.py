"""Which arrivals are recorded for rehearsals, how bursty they are, and more of the same kind.

What came in the last seconds says how the load behaves, but it is one course of events out of many: with
eight models, how often two bursts meet is known only roughly after a few seconds. So besides the arrivals as
they came, :class:`History` makes others of them, in which each model's arrivals are shifted by a time of
their own: the same processes, other coincidences.

Nothing here reads a clock or draws at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from .limits import SAMPLE_NS, SAMPLES, TAPE

Ints = npt.NDArray[np.int64]
Columns = tuple[Ints, npt.NDArray[np.uint32], Ints]
"""Arrivals: when, model, deadline."""

CHUNK_NS: Final = 200_000_000
"""Arrivals of so long are rehearsed in one piece, if they are no more than ``TAPE``."""
BACKLOG: Final = 16
"""Pieces that wait for their rehearsal before recording stops."""
FREE: Final = 40_000
"""Requests per second that are rehearsed whatever the load, over all rules."""
SHARE: Final = 0.25
"""And beyond these, so many for each request that comes."""
RESERVE: Final = 10_000
"""Of these, what is kept for the arrivals as they come when others are made of them."""
COST: Final = 2
"""A request of those counts as so many: they get half of the time that is left at most."""
KEPT_NS: Final = 5_000_000_000
"""Shifted arrivals are made from the last so long of what was recorded,"""
KEPT: Final = 16_384
"""and from no more than so many requests."""
GOLDEN: Final = 0.5 * (5.0**0.5 - 1.0)
MOST_SAMPLES: Final = 20
"""Samples in one piece, at most: it ends at the first look after ``CHUNK_NS``, so longer ones are gaps."""
FEW: Final = 4
"""Samples behind the dispersion, at least."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Arrivals of a span of time, in ns since its begin: ``at`` never falls, nor passes ``span``.

    ``seconds``: by how much older this makes what is known; 0 for arrivals that were made.
    """

    at: Ints
    model: npt.NDArray[np.uint32]
    deadline: Ints
    span: int
    seconds: float


class Recorder:
    """When arrivals are recorded: always, if they are few; else so often that rehearsing them stays cheap.

    ``rules``: how often each is rehearsed. ``room``: how many to record until the next look. ``window_ns``:
    for how long at a time, at least. ``models``: only numbers below are known.
    """

    def __init__(self, rules: int) -> None:
        self.rules = rules
        self.room = 0
        self.window_ns = 0
        self.credit = 0.0
        self.seen = -1
        self.submitted = 0
        self.since = -1
        self.begun = -1
        self.models = 0
        self.parts: list[Columns] = []
        self.history = History()
        self.dispersion = Dispersion()

    def take(self, now: int, submitted: int, tape: Columns, waiting: int) -> list[Piece]:
        """What is complete of the recorded arrivals, in pieces; ``waiting``: pieces not yet rehearsed."""
        if self.seen >= 0:
            self.credit += FREE * (now - self.seen) / 1e9 + SHARE * (submitted - self.submitted)
            self.credit = min(self.credit, float(FREE))
        self.seen, self.submitted = now, submitted
        cut = len(tape[0]) > 0 and len(tape[0]) >= self.room
        known = tape[1] < self.models
        n = int(known.sum())
        if n:
            self.credit -= self.rules * n
            self.parts.append((tape[0][known], tape[1][known], tape[2][known]))
        size = sum(len(part[0]) for part in self.parts)
        done: list[Piece] = []
        if self.room and now - self.since >= self.window_ns and self.credit < 0:
            cut = True
        if size and (cut or size >= TAPE or now - self.begun >= CHUNK_NS):
            last = int(self.parts[-1][0][-1])
            done.append(_piece(self.parts, self.begun, last if cut else now))
            self.history.add(done[-1])
            self.dispersion.add(done[-1], cut)
            self.parts = []
            self.begun = now
        if cut or waiting + len(done) >= BACKLOG:
            self.room = 0
            self.parts = []
        if self.room == 0 and self.credit >= 0 and waiting + len(done) == 0:
            self.since = self.begun = now
            self.room = TAPE
            self.dispersion.begin()
        return done

    def more(self) -> Piece | None:
        """Shifted arrivals, if there is time to rehearse them and they would say anything new."""
        if self.credit < RESERVE:
            return None
        piece = self.history.more()
        if piece is not None:
            self.credit -= COST * self.rules * len(piece.at)
        return piece


def _piece(parts: list[Columns], begun: int, end: int) -> Piece:
    at, model, deadline = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Piece(at - begun, model, deadline - begun, end - begun, (end - begun) / 1e9)


class History:
    """The last recorded arrivals, one piece behind the other, and shifted ones made of them.

    Of M models with equal shares of the requests, up to M − 1 times as many are made as came: with fewer
    shares that matter there are fewer coincidences to try.
    """

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.span = 0
        self.requests = 0
        self.made = 0
        self.left = 0.0
        self.joined: Columns | None = None
        self.models: Ints = np.empty(0, np.int64)

    def add(self, piece: Piece) -> None:
        """What came last."""
        self.pieces.append(piece)
        self.span += piece.span
        self.requests += len(piece.at)
        while len(self.pieces) > 1 and (self.span > KEPT_NS or self.requests > KEPT):
            oldest = self.pieces.pop(0)
            self.span -= oldest.span
            self.requests -= len(oldest.at)
        self.joined = None
        count = np.bincount(piece.model)
        share = count / max(1, count.sum())
        self.left = (1.0 / float((share * share).sum()) - 1.0) * piece.span

    def more(self) -> Piece | None:
        """As long a piece as the last one was, or None if enough were made since it came."""
        if not self.pieces or self.span < 2 * CHUNK_NS:
            return None
        span = min(self.pieces[-1].span, self.span)
        if self.left < span or span == 0:
            return None
        self.left -= span
        self.made += 1
        at, model, deadline = self._joined()
        # Each model by its own share of the whole, no two alike and others each time.
        shift = np.modf((np.arange(int(model.max()) + 1) + 1) * GOLDEN * self.made + GOLDEN * self.made)[0]
        moved = at + (shift * self.span).astype(np.int64)[model]
        moved = np.where(moved >= self.span, moved - self.span, moved)
        found = np.flatnonzero(moved < span)
        found = found[np.argsort(moved[found], kind="stable")]
        if not len(found):
            return None
        return Piece(moved[found], model[found], moved[found] + deadline[found], span, 0.0)

    def _joined(self) -> Columns:
        """When, model, and how long until the deadline, of all that is kept."""
        if self.joined is None:
            begin = np.cumsum([0] + [piece.span for piece in self.pieces])
            at = np.concatenate([p.at + t for p, t in zip(self.pieces, begin, strict=False)])
            model = np.concatenate([piece.model for piece in self.pieces])
            self.joined = at, model, np.concatenate([piece.deadline - piece.at for piece in self.pieces])
        return self.joined


class Dispersion:
    """Index of dispersion of the recorded arrivals per sample of 50 ms: variance / mean, over all models.

    ``value`` is 1, as of Poisson arrivals, until there are a few samples. Older ones are forgotten.
    """

    def __init__(self) -> None:
        self.value = 1.0
        self.clock = 0
        self.open: Ints = np.zeros(0, np.int64)
        self.weight = 0.0
        self.weights = 0.0
        self.total = np.zeros(0)
        self.squares = np.zeros(0)

    def begin(self) -> None:
        """Recording begins anew: the sample that was being filled does not count."""
        self.clock = 0
        self.open[:] = 0

    def add(self, piece: Piece, last: bool) -> None:
        """A piece behind the last one. Of one in which nothing came for long, nothing is learned."""
        if piece.span > MOST_SAMPLES * SAMPLE_NS:
            self.begin()
            return
        grow = int(piece.model.max()) + 1 - len(self.open)
        if grow > 0:
            self.open = np.pad(self.open, (0, grow))
            self.total, self.squares = np.pad(self.total, (0, grow)), np.pad(self.squares, (0, grow))
        sample = (self.clock + piece.at) // SAMPLE_NS
        ends = (self.clock + piece.span) // SAMPLE_NS
        size = len(self.open)
        for number in range(ends):
            inside = piece.model[sample == number]
            self._count(self.open + np.bincount(inside, minlength=size))
            self.open[:] = 0
        self.open += np.bincount(piece.model[sample >= ends], minlength=size)
        self.clock = self.clock + piece.span - ends * SAMPLE_NS
        if last:
            self.begin()

    def _count(self, count: Ints) -> None:
        kept = 1.0 - 1.0 / SAMPLES
        self.weight = kept * self.weight + 1.0
        self.weights = kept * kept * self.weights + 1.0
        self.total = kept * self.total + count
        self.squares = kept * self.squares + count * count
        mean = self.total / self.weight
        unbiased = 1.0 - self.weights / self.weight**2
        offered = float(mean.sum())
        if self.weight >= FEW * kept and offered > 0:
            variance = float((self.squares / self.weight - mean * mean).sum()) / unbiased
            self.value = variance / offered
