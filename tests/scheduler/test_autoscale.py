"""The autoscaler's rules, each on a hand-made window."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from scheduler.autoscale import Decision, State, adopt, decide, refuse
from scheduler.evidence import SECOND, ModelLoad, Sample, fluid_need, weigh
from symphony.scaling import AutoscaleConfig, TypeLimits

SETTINGS = AutoscaleConfig(min=1, max=100, startup_s=30, up=0.95, target=0.88, down=0.88)
START = 1_000 * SECOND


def second(
    at: int,
    need: float,
    gpus: int,
    *,
    bad: int = 0,
    idle: int = 0,
    starting: int = 0,
    draining: int = 0,
    each: float | None = None,
) -> Sample:
    """One second on ``gpus`` GPUs of type a; the last ``idle`` are idle, the others share the need."""
    if each is None:
        each = min(1.0, need / max(1, gpus - idle))
    busy = {gpu: each if gpu < gpus - idle else 0.0 for gpu in range(gpus)}
    coming = frozenset(range(1_000, 1_000 + starting))
    going = frozenset(range(2_000, 2_000 + draining))
    return Sample(
        at=START + at * SECOND,
        seconds=1.0,
        offered=1_000,
        good=1_000 - bad,
        late=0,
        dropped=bad,
        need={"a": need},
        busy=busy,
        types=dict.fromkeys([*busy, *coming, *going], "a"),
        starting=coming,
        draining=going,
    )


def window(seconds: int = 30, **what: object) -> list[Sample]:
    return [second(at, **what) for at in range(seconds)]  # type: ignore[arg-type]


def first(
    samples: list[Sample], settings: AutoscaleConfig = SETTINGS, state: State | None = None
) -> Decision:
    return decide(samples, state or State(), settings)[0]


def test_a_load_that_fits_is_left_alone() -> None:
    decision = first(window(need=9.0, gpus=10))
    assert (decision.kind, decision.reason) == ("hold", "the load fits")
    assert decision.planned == decision.requested == decision.observed == {"a": 10}


def test_a_load_above_up_gets_as_many_gpus_as_bring_it_to_the_target() -> None:
    decision, state = decide(window(need=19.5, gpus=10, bad=400), State(), SETTINGS)
    assert decision.kind == "up"
    assert decision.requested == {"a": math.ceil(19.5 / 0.88)} == state.requested
    assert decision.observed == {"a": 10}
    assert "195%" in decision.reason


def test_what_was_asked_for_is_not_asked_for_again() -> None:
    samples = window(need=19.5, gpus=10, bad=400)
    _, state = decide(samples, State(), SETTINGS)
    later = [second(at, need=19.5, gpus=10, starting=3, bad=400) for at in range(20, 50)]
    decision, _ = decide(later, state, SETTINGS)
    assert (decision.kind, decision.reason) == ("hold", "waiting for what was asked for")
    assert (decision.requested, decision.observed) == ({"a": 23}, {"a": 13})


def test_fluid_need_is_the_rate_times_the_time_per_request_at_the_largest_batch_in_time() -> None:
    table = [5_000_000 + 1_000_000 * b for b in range(1, 33)]
    load = ModelLoad(
        rate=1_000.0, budget_ns=20_000_000, latency_ns={"a": table, "b": [x // 2 for x in table]}
    )
    # b/rate + l(b) = b + 5 + b ms ≤ 20 ms: b = 7, 12 ms for 7 requests
    need = fluid_need([load], ["a", "b"])
    assert need["a"] == pytest.approx(1_000 * 0.012 / 7)
    # half the time: 2.5 + 0.5 b + b ≤ 20: b = 11, 8 ms
    assert need["b"] == pytest.approx(1_000 * 0.008 / 11)
    assert fluid_need([replace(load, rate=1.0)], ["a"])["a"] == pytest.approx(0.006)
    assert fluid_need([replace(load, budget_ns=5_000_000)], ["a"])["a"] == math.inf
    assert fluid_need([load], ["c"])["c"] == math.inf
    assert fluid_need([replace(load, rate=0.0)], ["c"])["c"] == 0


def test_nothing_is_decided_on_nothing() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        decide([], State(), SETTINGS)


def test_a_second_of_overload_is_not_enough_to_go_by() -> None:
    assert first(window(seconds=2, need=30.0, gpus=10, bad=600)).kind == "hold"


def test_additions_stop_at_the_maximum_and_say_so() -> None:
    settings = SETTINGS.model_copy(update={"max": 12})
    decision, state = decide(window(need=30.0, gpus=10, bad=600), State(), settings)
    assert decision.requested == {"a": 12}
    assert decision.planned == {"a": math.ceil(30 / 0.88)}
    later = [second(at, need=30.0, gpus=12, bad=600) for at in range(60, 90)]
    decision, _ = decide(later, state, settings)
    assert decision.kind == "hold"
    assert decision.reason.startswith("the maximum of 12 GPUs")


def test_the_minimum_is_filled_at_once_and_the_maximum_enforced_on_idle_gpus_only() -> None:
    decision = first(window(seconds=1, need=0.0, gpus=1), SETTINGS.model_copy(update={"min": 3}))
    assert (decision.kind, decision.requested) == ("up", {"a": 3})
    above = SETTINGS.model_copy(update={"max": 8})
    decision = first(window(need=9.0, gpus=10, idle=1), above)
    assert (decision.kind, decision.requested, decision.drain) == ("down", {"a": 9}, [9])
    assert first(window(need=9.0, gpus=10), above).kind == "hold"


def test_the_highest_numbered_idle_gpus_go_as_far_as_the_utilization_allows() -> None:
    decision = first(window(need=5.0, gpus=10, idle=4))
    # 5 / 0.88 = 5.7: six must stay
    assert (decision.kind, decision.requested, decision.drain) == ("down", {"a": 6}, [9, 8, 7, 6])
    assert "idle for 30 s" in decision.reason
    decision = first(window(need=7.5, gpus=10, idle=2))
    assert (decision.requested, decision.drain) == ({"a": 9}, [9])


def test_idle_gpus_stay_until_they_were_idle_through_a_whole_window_in_which_nothing_changed() -> None:
    assert first(window(seconds=20, need=5.0, gpus=10, idle=4)).kind == "hold"
    samples = window(need=5.0, gpus=10, idle=4)
    busy = dict(samples[-3].busy) | {9: 1.0, 8: 1.0, 7: 1.0, 6: 1.0}
    woken = [*samples[:-5], *(replace(sample, busy=busy) for sample in samples[-5:])]
    assert first(woken).kind == "hold"
    joined = [second(at, need=5.0, gpus=9, idle=3) for at in range(10)] + samples[10:]
    assert first(joined).kind == "hold"


def test_no_gpus_go_before_the_pause_after_a_change_is_over() -> None:
    samples = window(need=5.0, gpus=10, idle=4)
    recent = State(requested={"a": 10}, changed_at=samples[-1].at - 29 * SECOND)
    assert first(samples, state=recent).kind == "hold"
    assert first(samples, state=replace(recent, changed_at=samples[-1].at - 30 * SECOND)).kind == "down"


def test_after_a_load_has_fallen_off_what_was_before_counts_no_more() -> None:
    """All GPUs were busy 16 s ago; they go together, neither some at first nor only after a whole window."""

    def fallen(since: int) -> list[Sample]:
        return [second(at, 1.0 if at >= 30 - since else 18.0, 20, idle=18) for at in range(30)]

    assert [first(fallen(since)).kind for since in (2, 8, 14)] == ["hold"] * 3
    decision = first(fallen(16))
    assert (decision.kind, decision.total) == ("down", 2)
    assert decision.numbers["need"] == 1.0
    shallow = [second(at, 10.0 if at >= 14 else 18.0, 20, idle=6) for at in range(30)]
    assert first(shallow).numbers["need"] == pytest.approx((14 * 18 + 16 * 10) / 30)


def test_a_load_that_has_just_risen_is_looked_at_again_once_it_is_level() -> None:
    """While the window holds both loads nothing goes; that is no finding about either of them."""
    state = State()
    rising = [second(at, 5.0 if at < 18 else 15.0, 20, idle=2) for at in range(60)]
    kinds = []
    for end in range(30, 61):
        decision, state = decide(rising[end - 30 : end], state, SETTINGS)
        kinds.append(decision.kind)
    assert kinds.count("down") == 1
    assert decision.total == 18


def test_gpus_of_one_process_only_go_together() -> None:
    samples = window(need=5.0, gpus=10, idle=4)
    units = [
        replace(sample, unit={gpu: f"worker-{gpu // 3}" for gpu in sample.busy}) for sample in samples
    ]  # 0-2, 3-5, 6-8, 9
    assert first(units).drain == [9, 8, 7, 6]
    whole = [replace(sample, unit=dict.fromkeys(sample.busy, "one")) for sample in samples]
    assert first(whole).kind == "hold"
    samples = window(need=6.0, gpus=10, idle=4)  # seven must stay
    tight = [replace(sample, unit=units[0].unit) for sample in samples]
    assert first(tight).drain == [9]


def test_a_rising_line_is_followed_ahead_by_the_start_up_time_and_a_jump_is_not() -> None:
    rising = [second(at, need=7.0 + 0.1 * at, gpus=12) for at in range(30)]
    decision = first(rising)
    assert decision.kind == "up"
    assert "will be in 30 s" in decision.reason
    ahead = 9.7 + 0.1 * (30 + 0.5)
    assert decision.requested == {"a": math.ceil(ahead / 0.88)}
    jump = [second(at, need=7.0 if at < 15 else 9.9, gpus=12) for at in range(30)]
    assert first(jump).kind == "hold"


def test_bad_service_without_idle_gpus_lowers_what_is_held_to_be_usable() -> None:
    decision, state = decide(window(need=8.0, gpus=10, bad=30), State(), SETTINGS)
    assert decision.kind == "up"
    assert state.usable == pytest.approx(0.8 / 0.95 * 0.97)
    assert decision.requested == {"a": math.ceil(8.0 / 0.88 / state.usable)}
    # served well on these: nothing more happens, and nothing goes back
    later = [second(at, need=8.0, gpus=12, idle=1) for at in range(60, 90)]
    decision, _ = decide(later, state, SETTINGS)
    assert decision.kind == "hold"
    # the load has moved by more than a quarter: half is forgotten
    moved = [second(at, need=4.0, gpus=12, idle=7) for at in range(100, 130)]
    _, moved_state = decide(moved, state, SETTINGS)
    assert moved_state.usable == pytest.approx((1 + state.usable) / 2)


def test_bad_service_with_idle_gpus_is_not_answered_with_more() -> None:
    decision, state = decide(window(need=9.0, gpus=12, idle=1, bad=30), State(), SETTINGS)
    assert (decision.kind, state.usable) == ("hold", 1.0)
    assert "although GPUs are idle" in decision.reason


def test_bad_service_while_gpus_come_teaches_nothing() -> None:
    samples = window(need=8.0, gpus=10, bad=30, starting=2)
    decision, state = decide(samples, State(requested={"a": 12}, asked_at=START), SETTINGS)
    assert (decision.kind, state.usable) == ("hold", 1.0)


def test_a_fluid_need_that_the_gpus_beat_is_scaled_down() -> None:
    """Many small models: they say 14 GPUs, and 10 serve all in time with one of them idle."""
    decision, state = decide(window(need=14.0, gpus=10, idle=1, each=0.9), State(), SETTINGS)
    assert decision.kind == "hold"
    assert state.calibration == pytest.approx(8.1 / 14)


def test_what_does_not_come_is_asked_for_again_after_pauses_that_double() -> None:
    settings = SETTINGS.model_copy(update={"patience_s": 20.0, "backoff_max_s": 50.0})
    state, asked = State(), []
    samples = [second(at, need=19.5, gpus=10, bad=400) for at in range(250)]
    for end in range(1, 251):
        decision, state = decide(samples[max(0, end - 30) : end], state, settings)
        if decision.kind != "hold":
            asked.append((end, decision.attempt, decision.requested))
    assert [attempt for _, attempt, _ in asked] == [1, 2, 3, 4, 5, 6]
    assert {frozenset(requested.items()) for _, _, requested in asked} == {frozenset({("a", 23)})}
    at = [end for end, _, _ in asked]
    assert [b - a for a, b in pairwise(at)] == [20, 40, 50, 50, 50]


def test_what_was_refused_is_asked_for_again_soon() -> None:
    samples = [second(at, need=19.5, gpus=10, bad=400) for at in range(60)]
    _, state = decide(samples[:30], State(), SETTINGS)
    assert decide(samples[5:35], state, SETTINGS)[0].kind == "hold"
    decision, state = decide(samples[5:35], refuse(state), SETTINGS)
    assert (decision.kind, decision.attempt, state.refused) == ("up", 2, False)


def test_what_did_not_come_and_is_no_longer_needed_is_forgotten() -> None:
    state = State(requested={"a": 23}, asked_at=START - 100 * SECOND, changed_at=START)
    decision, state = decide(window(need=7.0, gpus=10), state, SETTINGS)
    assert (decision.kind, state.requested) == ("hold", {"a": 10})


def test_gpus_that_should_have_gone_are_asked_to_go_again_or_kept_if_they_are_used() -> None:
    state = State(requested={"a": 8}, asked_at=START - 100 * SECOND, changed_at=START, up_at=0)
    decision, after = decide(window(need=5.0, gpus=10, idle=3), state, SETTINGS)
    assert (decision.kind, decision.attempt, decision.drain) == ("down", 2, [9, 8])
    decision, after = decide(window(need=8.7, gpus=10), state, SETTINGS)
    assert (decision.kind, after.requested) == ("hold", {"a": 10})
    stuck = window(need=7.0, gpus=8, draining=2)
    decision, after = decide(stuck, state, SETTINGS)
    assert (decision.kind, decision.drain) == ("down", [2_000, 2_001])
    assert "have not gone" in decision.reason


def test_an_epoch_that_moves_gpus_is_no_loss() -> None:
    state = adopt(State(requested={"a": 20}, asked_at=START - 100 * SECOND), {"a": 10}, START)
    decision, _ = decide(window(need=8.5, gpus=10), state, SETTINGS)
    assert (decision.kind, decision.requested) == ("hold", {"a": 10})


def test_lost_gpus_are_asked_for_again() -> None:
    state = State(requested={"a": 10}, asked_at=START - 100 * SECOND)
    decision, _ = decide(window(need=8.5, gpus=9), state, SETTINGS)
    assert (decision.kind, decision.requested, decision.attempt) == ("up", {"a": 10}, 2)
    assert "1 GPUs of type a did not come" in decision.reason


def mixed(need: dict[str, float], fast: int, slow: int, idle: int = 0, bad: int = 0) -> list[Sample]:
    """``slow`` GPUs of type s with the lowest numbers, then ``fast`` ones of type f."""
    samples = window(need=0.0, gpus=slow + fast, idle=idle, bad=bad, each=0.9)
    types = {gpu: "s" if gpu < slow else "f" for gpu in range(slow + fast)}
    return [replace(sample, need=need, types=types) for sample in samples]


def test_several_types_are_added_by_the_cost_of_their_capacity() -> None:
    # one f carries what two s carry; 12 s or 6 f are needed; there are 4 s
    samples = mixed({"s": 12.0, "f": 6.0}, fast=0, slow=4, bad=600)
    cheap = [TypeLimits(type="s", cost=1.0), TypeLimits(type="f", cost=1.5, max=3)]
    decision = first(samples, SETTINGS.model_copy(update={"types": cheap}))
    # 12 / 0.88 = 13.6 in GPUs of type s: three f are worth six, four s are there, four more are missing
    assert decision.requested == {"s": 8, "f": 3}
    dear = [TypeLimits(type="s", cost=1.0), TypeLimits(type="f", cost=2.5)]
    assert first(samples, SETTINGS.model_copy(update={"types": dear})).requested == {"s": 14}
    assert first(samples, SETTINGS.model_copy(update={"types": [TypeLimits(type="f")]})).requested == {
        "s": 4,
        "f": 5,
    }


def test_a_type_that_cannot_serve_the_load_is_not_asked_for() -> None:
    samples = mixed({"s": 12.0, "f": math.inf}, fast=0, slow=4, bad=600)
    assert first(samples).requested == {"s": 14}


def test_types_keep_their_minima_when_gpus_go() -> None:
    samples = mixed({"s": 4.0, "f": 2.0}, fast=4, slow=4, idle=6)
    limits = [TypeLimits(type="s"), TypeLimits(type="f", min=3)]
    decision = first(samples, SETTINGS.model_copy(update={"types": limits}))
    # f is the reference (as many, first by name): 2 / 0.88 = 2.3; three f alone are enough
    assert decision.drain == [7, 3, 2]
    assert decision.requested == {"s": 2, "f": 3}


def test_settings_that_would_swing_are_refused() -> None:
    with pytest.raises(ValueError, match="would swing"):
        AutoscaleConfig(up=0.9, target=0.9)
    with pytest.raises(ValueError, match=r"min \(5\) is above max \(3\)"):
        AutoscaleConfig(min=5, max=3)
    with pytest.raises(ValueError, match="belong together"):
        AutoscaleConfig(actuator="command")
    with pytest.raises(ValueError, match="twice"):
        AutoscaleConfig(types=[TypeLimits(type="a"), TypeLimits(type="a")])


def test_the_errors_of_means_do_not_mind_a_jump_much() -> None:
    flat = weigh([second(at, need=10.0 + at % 2, gpus=12) for at in range(30)], 30, 5, 0.4)
    assert flat.need_error == pytest.approx((1 / 2) ** 0.5 / 30**0.5)
    jump = weigh([second(at, need=10.0 if at < 29 else 30.0, gpus=12) for at in range(30)], 30, 5, 0.4)
    assert jump.fast_error < 1.2
