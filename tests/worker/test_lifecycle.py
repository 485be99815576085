"""Models come and go on one device: order, memory, versions, failures; and random histories."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.lifecycle import (
    OUT_OF_MEMORY_LIMIT,
    Action,
    Lifecycle,
    Load,
    Serve,
    State,
    Unload,
    Wanted,
    WarmUp,
)

A1, A2, B = Wanted("a-1", 400), Wanted("a-2", 400), Wanted("b-1", 300)


def bring_up(life: Lifecycle, model: str, wanted: Wanted, free: int | None = None) -> int:
    """Load one more model and return its copy."""
    current = {copy.model: Wanted(copy.fingerprint, copy.need_bytes) for copy in life.copies()}
    (load,) = life.want(0, current | {model: wanted})
    assert isinstance(load, Load)
    assert life.loaded(0, load.copy, free) == [WarmUp(load.copy, model)]
    assert life.warmed(0, load.copy, free)[0] == Serve(load.copy, model)
    return load.copy


def states(life: Lifecycle) -> dict[int, State]:
    return {copy.number: copy.state for copy in life.copies()}


def test_a_model_is_loaded_warmed_up_and_only_then_serves() -> None:
    life = Lifecycle()
    assert life.want(1, {"a": A1}) == [Load(1, "a")]
    assert life.begin("a") is None
    assert life.loaded(2, 1) == [WarmUp(1, "a")]
    assert life.begin("a") is None
    assert life.warmed(3, 1) == [Serve(1, "a")]
    assert life.begin("a") == 1
    assert [(c.at, c.state) for c in life.take_changes()] == [
        (1, State.WAITING),
        (1, State.LOADING),
        (2, State.WARMING),
        (3, State.READY),
    ]
    assert life.take_changes() == []


def test_one_load_at_a_time_in_the_order_of_names() -> None:
    life = Lifecycle()
    assert life.want(0, {"b": B, "a": A1}) == [Load(1, "a")]
    assert life.loaded(0, 1) == [WarmUp(1, "a")]
    assert life.warmed(0, 1) == [Serve(1, "a"), Load(2, "b")]


def test_what_is_not_wanted_any_more_finishes_its_batches_and_leaves() -> None:
    life = Lifecycle()
    bring_up(life, "a", A1)
    assert life.begin("a") == 1
    assert life.want(0, {}) == [Serve(None, "a")]
    assert life.begin("a") is None
    assert states(life) == {1: State.DRAINING}
    assert life.end(0, 1) == [Unload(1, "a")]
    assert life.unloaded(0, 1) == []
    assert life.copies() == []


def test_a_draining_model_that_is_wanted_again_goes_on() -> None:
    life = Lifecycle()
    bring_up(life, "a", A1)
    life.begin("a")
    life.want(0, {})
    assert life.want(0, {"a": A1}) == [Serve(1, "a")]
    assert life.end(0, 1) == []
    assert states(life) == {1: State.READY}


def test_a_new_version_loads_beside_the_old_one_then_the_old_one_leaves() -> None:
    life = Lifecycle()
    bring_up(life, "a", A1)
    life.begin("a")
    assert life.want(0, {"a": A2}) == [Load(2, "a")]
    assert life.begin("a") == 1, "the old version serves while the new one loads"
    life.loaded(0, 2)
    assert life.warmed(0, 2) == [Serve(2, "a")]
    assert life.begin("a") == 2
    assert states(life) == {1: State.DRAINING, 2: State.READY}
    assert life.end(0, 1) == []
    assert life.end(0, 1) == [Unload(1, "a")]


def test_a_new_version_that_fails_leaves_the_old_one_serving() -> None:
    life = Lifecycle()
    bring_up(life, "a", A1)
    life.want(0, {"a": A2})
    assert life.failed(0, 2, "not a model") == []
    assert life.serving() == {"a": 1}
    assert life.take_changes()[-1].reason == "not a model"
    assert life.want(0, {"a": A2}) == [], "not again: nothing has changed"
    assert life.want(0, {"a": Wanted("a-3")}) == [Load(3, "a")]


def test_back_to_the_old_version_while_the_new_one_loads() -> None:
    life = Lifecycle()
    bring_up(life, "a", A1)
    life.want(0, {"a": A2})
    assert life.want(0, {"a": A1}) == []
    assert life.loaded(0, 2) == [Unload(2, "a")]
    assert life.unloaded(0, 2) == []
    assert life.serving() == {"a": 1}


def test_a_load_that_is_not_wanted_any_more_ends_first() -> None:
    life = Lifecycle()
    life.want(0, {"a": A1})
    assert life.want(0, {"b": B}) == []
    assert life.loaded(0, 1) == [Unload(1, "a")]
    assert life.unloaded(0, 1) == [Load(2, "b")]


def test_what_does_not_fit_is_refused_with_the_numbers() -> None:
    life = Lifecycle(reserve_bytes=100 << 20)
    life.memory(0, 450 << 20)
    assert life.want(0, {"a": Wanted("a", 400 << 20)}) == []
    change = life.take_changes()[-1]
    assert (change.state, change.out_of_memory) == (State.FAILED, True)
    assert change.reason == "needs 400 MB, 450 MB are free and 100 MB stay reserved"
    assert life.memory(0, 499 << 20) == []
    assert life.memory(0, 500 << 20) == [Load(1, "a")]


def test_it_waits_for_room_while_something_leaves() -> None:
    life = Lifecycle()
    bring_up(life, "a", A1, free=200)
    assert life.want(0, {"b": B}) == [Serve(None, "a"), Unload(1, "a")]
    assert states(life)[2] == State.WAITING
    assert life.unloaded(0, 1, 600) == [Load(2, "b")]


def test_a_smaller_model_passes_one_that_does_not_fit() -> None:
    life = Lifecycle()
    life.memory(0, 350)
    assert life.want(0, {"a": A1, "b": B}) == [Load(2, "b")]
    life.loaded(0, 2, 50)
    life.warmed(0, 2, 50)
    assert states(life) == {1: State.FAILED, 2: State.READY}


def test_out_of_memory_while_loading_is_tried_again_with_more_memory_only() -> None:
    life = Lifecycle()
    life.memory(0, 500)
    life.want(0, {"a": A1})
    assert life.failed(0, 1, "CUDA out of memory", out_of_memory=True, free_bytes=500) == []
    assert life.memory(0, 500) == []
    assert life.memory(0, 501) == [Load(1, "a")]


def test_out_of_memory_on_a_device_that_reports_none_is_not_tried_again() -> None:
    life = Lifecycle()
    life.want(0, {"a": A1})
    assert life.failed(0, 1, "MemoryError", out_of_memory=True) == []
    assert life.want(0, {"a": A1}) == []
    assert life.want(0, {}) == []
    assert life.want(0, {"a": A1}) == [Load(2, "a")], "asked for anew"


def test_batches_that_run_out_of_memory_take_the_copy_out_in_the_end() -> None:
    life = Lifecycle()
    bring_up(life, "a", A1, free=1000)
    for _ in range(OUT_OF_MEMORY_LIMIT - 1):
        life.begin("a")
        assert life.end(0, 1, out_of_memory=True) == []
    life.begin("a")
    assert life.end(0, 1) == [], "one that succeeds begins the count anew"
    for _ in range(OUT_OF_MEMORY_LIMIT - 1):
        life.begin("a")
        assert life.end(0, 1, out_of_memory=True) == []
    life.begin("a")
    assert life.end(0, 1, out_of_memory=True) == [Serve(None, "a"), Unload(1, "a")]
    assert life.unloaded(0, 1, 1400) == []
    (failed,) = life.copies()
    assert (failed.state, failed.out_of_memory) == (State.FAILED, True)
    assert "in a row ran out of memory" in failed.reason
    assert life.memory(0, 1400) == []
    assert life.memory(0, 1401) == [Load(1, "a")]


def test_events_that_cannot_be_are_refused() -> None:
    life = Lifecycle()
    with pytest.raises(ValueError, match="copy 7 is unknown; expected loading"):
        life.loaded(0, 7)
    bring_up(life, "a", A1)
    with pytest.raises(ValueError, match="copy 1 is ready; expected unloading"):
        life.unloaded(0, 1)


WANTED = st.dictionaries(
    st.sampled_from("abc"), st.builds(Wanted, st.sampled_from(["1", "2"]), st.sampled_from([0, 300, 700]))
)
STEP = st.tuples(st.integers(0, 6), WANTED, st.integers(0, 3), st.sampled_from([None, 0, 500, 1000]))


@given(st.lists(STEP, max_size=60))
def test_random_histories_keep_the_invariants_and_come_to_rest(steps: list[Any]) -> None:
    life = Lifecycle()
    todo: list[Action] = []
    running: list[int] = []

    def do(actions: list[Action]) -> None:
        todo.extend(action for action in actions if not isinstance(action, Serve))
        life.validate()

    def answer(action: Action, fails: bool, free: int | None) -> None:
        match action:
            case Load(copy) | WarmUp(copy) if fails:
                do(life.failed(0, copy, "no", out_of_memory=free is not None, free_bytes=free))
            case Load(copy):
                do(life.loaded(0, copy, free))
            case WarmUp(copy):
                do(life.warmed(0, copy, free))
            case Unload(copy):
                do(life.unloaded(0, copy, free))

    for kind, wanted, which, free in steps:
        if kind == 0:
            do(life.want(0, wanted))
        elif kind == 1:
            do(life.memory(0, free))
        elif kind in (2, 3) and todo:
            answer(todo.pop(0), kind == 3, free)
        elif kind == 4 and (copy := life.begin("abc"[which % 3])) is not None:
            running.append(copy)
            life.validate()
        elif kind in (5, 6) and running:
            do(life.end(0, running.pop(which % len(running)), out_of_memory=kind == 6))
    while running:
        do(life.end(0, running.pop()))
    for _ in range(50):
        if not todo:
            break
        answer(todo.pop(0), False, None)
    assert not todo
    assert life.settled()
    assert {c.model for c in life.copies()} == life._wanted.keys()
    do(life.want(0, {}))
    while todo:
        answer(todo.pop(0), False, None)
    assert life.copies() == []
