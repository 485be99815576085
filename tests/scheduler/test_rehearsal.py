"""Rehearsals of ``adaptive``: how a rule is chosen, what a stand counts, when arrivals are recorded."""

from __future__ import annotations

import numpy as np
from rig import MS, linear

from scheduler.core.adaptive import FREE, Recorder
from scheduler.core.limits import NEVER, TAPE
from scheduler.core.rehearsal import Columns, Losses, Rehearsal, Scene, Stand
from scheduler.core.rules import RULES


class Always:
    """A slow loop that tells every lane the same."""

    def __init__(self, early: int) -> None:
        self.early = early

    def tune(self, core: object, now: int) -> int:
        core.early = self.early  # type: ignore[attr-defined]
        return NEVER


def scene(gpus: int = 1, margin: int = 0) -> Scene:
    table = np.array(linear(1.0, 5.0, 8), np.int64).tobytes()
    return Scene(((0, 20 * MS, 8, ((0, table),)),), ((0, None),) * gpus, 0, 0, 0, margin, ())


def arrivals(*at_ms: int) -> Columns:
    at = np.array(at_ms, np.int64) * MS
    return at, np.zeros(len(at), np.uint32), at + 20 * MS


def test_a_stand_counts_what_its_rule_loses() -> None:
    stand = Stand(scene(), Always(1), 13.0 * MS)
    # Started at 1 ms, alone, until 7; the others wait for the GPU and fit into one batch until 20.
    assert stand.play(arrivals(1, 2, 2, 2, 2, 2, 2, 2, 2, 100)) == 0
    # 30 at once: at most two batches of 8 end within 20 ms, the first of them at 13 ms.
    assert stand.play(arrivals(*[200] * 30, 300)) > 10


def test_losses_without_a_difference_leave_the_first() -> None:
    losses = Losses(3)
    for _ in range(10):
        losses.add(np.zeros(3), 100, 0.2)
    assert losses.chosen == 0


def test_losses_clear_and_lasting_choose_the_least() -> None:
    losses = Losses(3)
    for _ in range(10):
        losses.add(np.array([9.0, 1.0, 4.0]), 100, 0.2)
    assert losses.chosen == 1


def test_losses_by_chance_choose_nobody() -> None:
    losses = Losses(2)
    losses.add(np.array([0.0, 20.0]), 1000, 0.2)
    losses.add(np.array([21.0, 0.0]), 1000, 0.2)
    assert losses.chosen == 0


def test_an_earlier_rule_is_taken_back_when_it_is_no_worse() -> None:
    losses = Losses(2)
    for _ in range(5):
        losses.add(np.array([9.0, 0.0]), 100, 0.2)
    assert losses.chosen == 1
    for _ in range(60):
        losses.add(np.array([0.0, 3.0]), 100, 0.5)
    assert losses.chosen == 0


def test_every_rule_plays_a_piece_before_it_counts() -> None:
    losses = Losses(2)
    rehearsal = Rehearsal(2, lambda rule: Stand(scene(), Always(1), 13.0 * MS))
    rehearsal.record(arrivals(1, 2, 3))
    rehearsal.step(losses)
    assert losses.offered == 0
    rehearsal.step(losses)
    assert losses.offered == 3
    assert not rehearsal.chunks


def test_few_requests_are_all_recorded_and_many_in_windows() -> None:
    for per_look, share in ((FREE // len(RULES) // 200, 1.0), (TAPE, 0.2)):
        recorder = Recorder()
        recorder.window_ns = 100 * MS
        submitted = kept = 0
        for look in range(1, 2000):
            now = look * 10 * MS
            taken = min(recorder.room, per_look)
            tape = arrivals(*[look * 10 - 1] * taken)
            submitted += per_look
            kept += sum(len(piece[0]) for piece in recorder.take(now, submitted, tape, 0))
        assert kept >= 0.9 * submitted if share == 1.0 else 0 < kept <= share * submitted


def test_scenes_with_other_gpus_or_much_other_margins_are_unlike() -> None:
    assert scene().like(scene(margin=MS // 20))
    assert not scene().like(scene(margin=5 * MS))
    assert not scene().like(scene(gpus=2))
