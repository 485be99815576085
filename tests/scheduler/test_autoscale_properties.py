"""The autoscaler against any load: in a cheap model of a cluster in which work is a fluid.

GPUs take the load in the order of their numbers, as the `deferred` policy does; what they cannot take is
bad; a new GPU serves after the start-up time; a drained one is gone at the next second.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from scheduler.autoscale import Decision, State, decide
from scheduler.evidence import SECOND, Sample
from symphony.scaling import AutoscaleConfig

CONFIG = AutoscaleConfig(min=2, max=40, startup_s=20)
NOISE = st.floats(0.0, 0.06)
QUICK = settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
"""A minute of a fluid cluster says more than a shrunk example: no shrinking."""
SEEDS = st.integers(0, 1 << 30)


def serve(
    need: Sequence[float],
    gpus: int,
    config: AutoscaleConfig = CONFIG,
    noise: float = 0.0,
    seed: int = 0,
    check: Callable[[list[Sample], Decision], None] = lambda samples, decision: None,
) -> tuple[list[Decision], int]:
    """Run through the seconds of ``need``; the decisions that were no holds, and the GPUs in the end."""
    rng = random.Random(seed)
    ready = set(range(gpus))
    coming: dict[int, int] = {}
    samples: list[Sample] = []
    made: list[Decision] = []
    state = State()
    for at, level in enumerate(need):
        for gpu in [gpu for gpu, when in coming.items() if when <= at]:
            ready.add(gpu)
            del coming[gpu]
        load = max(0.0, level * (1 + rng.gauss(0, noise)))
        left, busy = load, {}
        for gpu in sorted(ready):
            busy[gpu] = min(1.0, max(0.0, left))
            left -= 1.0
        # A second's chance is levelled out within the objectives; only what is too much for good is lost.
        lost = min(load, max(0.0, level - len(ready)))
        offered = round(1_000 * load)
        samples.append(
            Sample(
                at=(1_000 + at) * SECOND,
                seconds=1.0,
                offered=offered,
                good=offered - round(1_000 * lost),
                late=0,
                dropped=round(1_000 * lost),
                need={"a": load},
                busy=busy,
                types=dict.fromkeys([*ready, *coming], "a"),
                starting=frozenset(coming),
            )
        )
        decision, state = decide(samples[-int(config.window_s) :], state, config)
        check(samples, decision)
        if decision.kind == "hold":
            continue
        made.append(decision)
        ready -= set(decision.drain)
        for _ in range(decision.total - len(ready) - len(coming)):
            coming[next(n for n in range(1_000) if n not in ready and n not in coming)] = at + int(
                config.startup_s
            )
    return made, len(ready) + len(coming)


def reversals(made: Sequence[Decision]) -> int:
    return sum(a.kind != b.kind for a, b in pairwise(made))


@QUICK
@given(level=st.floats(0.5, 35.0), gpus=st.integers(2, 40), noise=NOISE, seed=SEEDS)
def test_a_constant_load_is_settled_once_and_for_all(
    level: float, gpus: int, noise: float, seed: int
) -> None:
    made, left = serve([level] * 700, gpus, noise=noise, seed=seed)
    late = [decision.kind for decision in made if decision.at >= 1_300 * SECOND]
    # A load that lies just below `up` may pass it by chance, once: the GPUs then added end that.
    assert late in ([], ["up"])
    assert late == [] or level > 0.9 * CONFIG.up * (made[-2].total if len(made) > 1 else gpus)
    assert reversals(made) <= 1
    assert left >= min(CONFIG.max, max(CONFIG.min, level))


SHAPES = st.lists(st.tuples(st.integers(30, 200), st.floats(0.0, 60.0)), min_size=1, max_size=4)


def shape(pieces: Sequence[tuple[int, float]]) -> list[float]:
    """Levels that hold for some seconds each."""
    return [level for seconds, level in pieces for _ in range(seconds)]


@QUICK
@given(pieces=SHAPES, gpus=st.integers(2, 40), noise=NOISE, seed=SEEDS)
def test_whatever_the_load_the_limits_hold_and_no_busy_gpu_is_drained(
    pieces: list[tuple[int, float]], gpus: int, noise: float, seed: int
) -> None:
    def check(samples: list[Sample], decision: Decision) -> None:
        assert CONFIG.min <= decision.total <= CONFIG.max
        window = samples[-int(CONFIG.window_s) :]
        half = len(window) // 2
        needs = [sample.need["a"] for sample in window]
        for gpu in decision.drain:
            busy = [sample.busy.get(gpu, 1.0) for sample in window]
            if math.fsum(busy) > CONFIG.idle_share * len(busy) + 1e-9:
                # Not idle through all of it, or not there: so only after a load that has fallen by half.
                assert max(needs[half:]) < max(needs[:half])
                assert math.fsum(busy[half:]) <= CONFIG.idle_share * len(busy[half:]) + 1e-9
        if decision.drain:
            staying = [gpu for gpu in samples[-1].busy if gpu not in decision.drain]
            assert len(staying) >= CONFIG.min

    serve(shape(pieces), gpus, noise=noise, seed=seed, check=check)


@QUICK
@given(pieces=SHAPES, gpus=st.integers(2, 40), noise=NOISE, seed=SEEDS)
def test_the_direction_changes_no_more_often_than_the_load(
    pieces: list[tuple[int, float]], gpus: int, noise: float, seed: int
) -> None:
    made, _ = serve(shape(pieces), gpus, noise=noise, seed=seed)
    assert reversals(made) <= 2 * len(pieces)


@QUICK
@given(level=st.floats(1.0, 30.0), more=st.floats(1.1, 3.0), gpus=st.integers(2, 40))
def test_more_load_never_ends_with_fewer_gpus(level: float, more: float, gpus: int) -> None:
    _, less = serve([level] * 200, gpus)
    _, enough = serve([level * more] * 200, gpus)
    assert enough >= less


@QUICK
@given(level=st.floats(2.0, 12.0), gpus=st.integers(13, 20))
def test_a_step_up_is_answered_within_seconds_and_a_step_down_within_two_windows(
    level: float, gpus: int
) -> None:
    calm = 100
    made, left = serve([level] * calm + [3 * level] * 150 + [level] * 150, gpus)
    up = [d for d in made if d.kind == "up" and d.at >= (1_000 + calm) * SECOND]
    assert up
    assert up[0].at < (1_000 + calm + 10) * SECOND
    down = [d for d in made if d.kind == "down" and d.at >= (1_000 + calm + 150) * SECOND]
    assert down
    assert down[0].at <= (1_000 + calm + 150 + 2 * CONFIG.window_s) * SECOND
    assert left <= max(CONFIG.min, math.ceil(level / CONFIG.down) + 1)
