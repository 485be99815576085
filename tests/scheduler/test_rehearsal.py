"""Rehearsals of ``adaptive``: how a rule is chosen, what a stand counts, when arrivals are recorded."""

from __future__ import annotations

import numpy as np
from rig import MS, linear

from scheduler.core.limits import NEVER, SAMPLE_NS, TAPE
from scheduler.core.plans import Load, make_plan
from scheduler.core.recording import FREE, Columns, Dispersion, History, Piece, Recorder
from scheduler.core.rehearsal import BUILT, WHOLE, Lengths, Losses, Rehearsal, Scene, Stand
from scheduler.core.rules import RULES, Follower


class Always:
    """A slow loop that tells every lane the same."""

    def __init__(self, early: int) -> None:
        self.early = early

    def tune(self, core: object, now: int) -> int:
        core.early = self.early  # type: ignore[attr-defined]
        return NEVER


def scene(gpus: int = 1, margin: int = 0) -> Scene:
    table = np.array(linear(1.0, 5.0, 8), np.int64).tobytes()
    models, profiles = np.array([[0, 20 * MS, 8]]), np.array([[0, 0, 0]])
    return Scene(models, profiles, table, ((0, None),) * gpus, 0, 0, 0, margin, ())


def arrivals(*at_ms: int) -> Columns:
    at = np.array(at_ms, np.int64) * MS
    return at, np.zeros(len(at), np.uint32), at + 20 * MS


def piece(*at_ms: int, span_ms: int = 0, seconds: float = 0.2) -> Piece:
    at, model, deadline = arrivals(*at_ms)
    return Piece(at, model, deadline, (span_ms or at_ms[-1]) * MS, seconds)


def ready_stand() -> Stand:
    stand = Stand(scene(), Always(1), Lengths().ppm)
    assert list(stand.building) == []
    return stand


def test_a_stand_counts_what_its_rule_loses() -> None:
    stand = ready_stand()
    # Started at 1 ms, alone, until 7; the others wait for the GPU and fit into one batch until 20.
    assert stand.play(piece(1, 2, 2, 2, 2, 2, 2, 2, 2, 100), 0, 10) == 0
    # 30 at once: at most two batches of 8 end within 20 ms, the first of them at 13 ms.
    many = piece(*[100] * 30, 200)
    assert stand.play(many, 0, 30) + stand.play(many, 30, 31) > 10


def test_a_stand_of_many_is_set_up_in_steps() -> None:
    stand = Stand(scene(gpus=1000), Always(1), Lengths().ppm)
    assert len(list(stand.building)) == 1000 // (4 * BUILT)
    assert stand.play(piece(1, 2, 30), 0, 3) == 0


def test_lengths_follow_what_was_seen() -> None:
    lengths = Lengths()
    assert lengths.spread == 0
    assert set(lengths.ppm.tolist()) == {1_000_000}
    for _ in range(50):  # half of them 2 % above, half of them 4 %
        lengths.note(100, 3 * 2**20, 50 * (4 + 16) * 2**40 // 10_000)
    assert abs(lengths.spread - 0.01) < 1e-4
    assert abs(lengths.ppm.mean() - 1_030_000) < 1000


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


def test_two_pieces_that_agree_are_too_few() -> None:
    losses = Losses(2)
    for _ in range(2):
        losses.add(np.array([20.0, 0.0]), 1000, 0.2)
    assert losses.chosen == 0
    losses.add(np.array([20.0, 0.0]), 1000, 0.2)
    assert losses.chosen == 1


def test_short_pieces_count_less() -> None:
    losses = Losses(2)
    for _ in range(5):
        losses.add(np.array([20.0, 0.0]), 1000, 0.02, 0.1)
    assert losses.chosen == 0
    for _ in range(5):
        losses.add(np.array([20.0, 0.0]), 1000, 0.02, 0.1)
    assert losses.chosen == 1


def test_what_is_rehearsed_on_empty_cores_does_not_count() -> None:
    losses = Losses(1)
    rehearsal = Rehearsal(1, lambda rule: Stand(scene(), Always(1), Lengths().ppm), 20 * MS)
    for _ in range(3):
        rehearsal.record(piece(1, 2, 3, span_ms=15))
    while rehearsal.pieces:
        rehearsal.step(losses)
    assert losses.offered == 3
    assert losses.pieces == 15 / (WHOLE * 20)


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
    rehearsal = Rehearsal(2, lambda rule: Stand(scene(), Always(1), Lengths().ppm))
    rehearsal.record(piece(1, 2, 3))
    steps = 0
    while losses.offered == 0:
        assert rehearsal.pieces
        rehearsal.step(losses)
        steps += 1
    assert steps == 4  # two are set up, two play
    assert losses.offered == 3
    assert not rehearsal.pieces


def test_few_requests_are_all_recorded_and_many_in_windows() -> None:
    for per_look, share in ((FREE // 7 // 200, 1.0), (TAPE, 0.2)):
        recorder = Recorder(7)
        recorder.models = 1
        recorder.window_ns = 100 * MS
        submitted = kept = 0
        for look in range(1, 2000):
            now = look * 10 * MS
            taken = min(recorder.room, per_look)
            tape = arrivals(*[look * 10 - 1] * taken)
            submitted += per_look
            kept += sum(len(piece.at) for piece in recorder.take(now, submitted, tape, 0))
        assert kept >= 0.9 * submitted if share == 1.0 else 0 < kept <= share * submitted


def test_scenes_with_other_gpus_or_much_other_margins_are_unlike() -> None:
    assert scene().like(scene(margin=MS // 20))
    assert not scene().like(scene(margin=5 * MS))
    assert not scene().like(scene(gpus=2))


def stream(rng: np.random.Generator, models: int, shape: float, seconds: float) -> list[Piece]:
    """100 requests/s for each model, in pieces of 200 ms."""
    whole = int(seconds * 1e9)
    times = [
        np.cumsum(rng.gamma(shape, 1e7 / shape, int(200 * seconds))).astype(np.int64) for _ in range(models)
    ]
    at = np.concatenate(times)
    model = np.repeat(np.arange(models, dtype=np.uint32), [len(t) for t in times])
    order = np.argsort(at, kind="stable")
    at, model = at[order], model[order]
    found = []
    for begin in range(0, whole, 200 * MS):
        inside = (at >= begin) & (at < begin + 200 * MS)
        t = at[inside] - begin
        found.append(Piece(t, model[inside], t + 20 * MS, 200 * MS, 0.2))
    return found


def test_the_dispersion_of_poisson_arrivals_is_1_and_that_of_bursts_is_more() -> None:
    rng = np.random.default_rng(5)
    for shape, low, high in ((1.0, 0.8, 1.2), (0.1, 4.0, 10.0)):
        dispersion = Dispersion()
        assert dispersion.value == 1.0
        for part in stream(rng, 8, shape, 20.0):
            dispersion.add(part, False)
        assert low < dispersion.value < high


def test_regular_arrivals_have_no_dispersion_whatever_the_pieces() -> None:
    dispersion = Dispersion()
    for _ in range(100):  # 10 ms each: five make a sample
        dispersion.add(piece(*range(10), span_ms=10), False)
    assert 5 * 10 * MS == SAMPLE_NS
    assert abs(dispersion.value) < 1e-9


def test_made_arrivals_are_the_same_models_at_other_times() -> None:
    history = History()
    for part in stream(np.random.default_rng(1), 4, 1.0, 3.0):
        history.add(part)
    made = []
    while (more := history.more()) is not None:
        made.append(more)
    assert 1 <= len(made) <= 3  # four models: three times as much as came last
    came = {
        (int(m), int(d - t))
        for p in history.pieces
        for t, m, d in zip(p.at, p.model, p.deadline, strict=True)
    }
    for more in made:
        assert more.seconds == 0
        assert (np.diff(more.at) >= 0).all()
        assert 0 <= more.at[0] <= more.at[-1] < more.span
        assert {(int(m), 20 * MS) for m in more.model} <= came
    last = history.pieces[-1]
    assert all(more.at.tolist() != last.at.tolist() for more in made)


def test_one_model_gives_nothing_new() -> None:
    history = History()
    for part in stream(np.random.default_rng(1), 1, 0.1, 3.0):
        history.add(part)
    assert history.more() is None


def test_to_linger_pays_where_requests_come_in_bursts() -> None:
    """Six within half a millisecond, each time: eager starts the first alone, and the others then."""
    rng = np.random.default_rng(3)
    begin = np.cumsum(rng.exponential(12 * MS, 800)).astype(np.int64)
    at = np.sort((begin[:, np.newaxis] + np.arange(6) * MS // 10).ravel())
    stream = Piece(at, np.zeros(len(at), np.uint32), at + 20 * MS, int(at[-1]), 10.0)
    table = np.array(linear(1.0, 5.0, 8)) / 1e9
    zero = np.zeros(1, np.int64)
    rate = np.array([1e9 * len(at) / at[-1]])
    plan = make_plan(Load(rate, np.array([0.02]), zero, zero + 8, table, 0.0, 2, 5.0))
    bad = {}
    for rule, (start, _, cushioned) in enumerate(RULES):
        stand = Stand(scene(gpus=2), Follower(rule), Lengths().ppm)
        assert list(stand.building) == []
        stand.core.tuner.plan, stand.core.tuner.row = plan, zero
        bad[start, cushioned] = stand.play(stream, 0, len(at))
    assert 0 < bad["linger", False] < 0.7 * min(bad["eager", False], bad["deferred", False])
