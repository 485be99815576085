from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symphony.control import Member
from symphony.routing import CONNECT_NS, Routes
from symphony.status import Status


def shard(number: int, models: list[str], state: str = "ready") -> Member:
    return Member.model_validate(
        {"id": f"shard-{number}", "role": "scheduler", "incarnation": 1, "models": models, "state": state}
    )


@pytest.fixture
def routes() -> Routes:
    routes = Routes()
    for member in (shard(0, ["a", "", "b"]), shard(1, ["b"])):
        routes.put(member, 0)
        routes.connected(member.id)
    return routes


def test_a_model_goes_to_a_shard_that_holds_it_at_its_index(routes: Routes) -> None:
    link = routes.pick("a")
    assert link is not None
    assert (link.member.id, link.index["a"], link.index["b"]) == ("shard-0", 0, 2)
    assert "" not in link.index


def test_shards_take_turns(routes: Routes) -> None:
    turns = [link.member.id for link in (routes.pick("b") for _ in range(6)) if link is not None]
    assert sorted(turns) == ["shard-0"] * 3 + ["shard-1"] * 3


def test_a_lost_connection_takes_the_shard_out_and_marks_what_was_sent(routes: Routes) -> None:
    link = routes.pick("a")
    assert link is not None
    line = link.line
    assert line is not None
    routes.disconnected("shard-0", "gone")
    assert line.lost == "gone"
    assert routes.pick("a") is None
    assert routes.pick("b") is not None
    assert routes.refusal("a", {}, 0) == (
        Status.UNAVAILABLE,
        "no connection to shard-0, which would serve 'a'",
    )
    routes.connected("shard-0")
    link = routes.pick("a")
    assert link is not None
    assert link.line is not line


def test_a_removed_shard_takes_no_more(routes: Routes) -> None:
    link = routes.pick("a")
    assert link is not None
    line = link.line
    routes.remove("shard-0", "it has died")
    assert line is not None
    assert line.lost == "it has died"
    assert routes.pick("a") is None
    assert routes.reachable() == {"b"}


def test_a_first_connection_is_waited_for_but_not_for_ever() -> None:
    routes = Routes()
    routes.put(shard(0, ["a"]), 5)
    assert routes.pick("a") is None
    assert routes.refusal("a", {}, 6) is None
    assert routes.connecting(6) == 5 + CONNECT_NS
    assert routes.connecting(5 + CONNECT_NS) is None
    refusal = routes.refusal("a", {}, 5 + CONNECT_NS)
    assert refusal is not None
    assert refusal[0] is Status.UNAVAILABLE


@pytest.mark.parametrize(
    ("members", "catalogue", "status", "text"),
    [
        ([], {}, Status.UNAVAILABLE, "the cluster has no scheduler shard now"),
        ([shard(0, ["a"])], {}, Status.UNKNOWN_MODEL, "unknown model 'x'; the cluster serves: a"),
        ([shard(0, [])], {}, Status.UNKNOWN_MODEL, "unknown model 'x'; the cluster serves: none"),
        ([shard(0, ["a"])], {"x"}, Status.UNAVAILABLE, "'x' is known, but no shard serves it now"),
        ([shard(0, ["x"], "draining")], {}, Status.UNAVAILABLE, "'x' is known, but no shard serves it now"),
    ],
)
def test_a_refusal_says_why(members: list[Member], catalogue: set[str], status: Status, text: str) -> None:
    routes = Routes()
    for member in members:
        routes.put(member, 0)
        routes.connected(member.id)
    assert routes.pick("x") is None
    assert routes.refusal("x", catalogue, 10 * CONNECT_NS) == (status, text)


def test_names_that_nobody_serves_leave_no_trace(routes: Routes) -> None:
    for i in range(100):
        assert routes.pick(f"made-up-{i}") is None
    assert len(routes._ways) == 0


def test_a_table_that_grows_is_followed(routes: Routes) -> None:
    assert routes.pick("c") is None
    routes.put(shard(1, ["b", "c"]), 9)
    link = routes.pick("c")
    assert link is not None
    assert link.index["c"] == 1


def three(*models: str) -> Routes:
    routes = Routes()
    for number in range(3):
        routes.put(shard(number, list(models)), 0)
        routes.connected(f"shard-{number}")
    return routes


def picks(routes: Routes, count: int, model: str = "a") -> list[str]:
    links = [routes.pick(model) for _ in range(count)]
    return [link.member.id for link in links if link is not None]


def test_the_plans_weights_split_a_model() -> None:
    routes = three("a", "b")
    routes.follow({"a": {"shard-0": 0.5, "shard-2": 0.25, "shard-1": 0.25}})
    assert Counter(picks(routes, 400)) == {"shard-0": 200, "shard-1": 100, "shard-2": 100}
    assert picks(routes, 4) == ["shard-0", "shard-1", "shard-2", "shard-0"]
    assert Counter(picks(routes, 300, "b")) == {f"shard-{i}": 100 for i in range(3)}


@given(st.lists(st.floats(0.01, 10), min_size=3, max_size=3), st.integers(1, 300))
def test_any_row_of_picks_is_split_as_the_weights_say(weights: list[float], count: int) -> None:
    routes = three("a")
    routes.follow({"a": {f"shard-{i}": weight for i, weight in enumerate(weights)}})
    taken = Counter(picks(routes, count))
    for i, weight in enumerate(weights):
        assert abs(taken[f"shard-{i}"] - count * weight / sum(weights)) < 3


def test_while_no_shard_of_a_route_serves_every_one_that_announces_does() -> None:
    routes = three("a")
    routes.follow({"a": {"shard-1": 1.0}})
    assert set(picks(routes, 6)) == {"shard-1"}
    routes.disconnected("shard-1", "gone")
    assert set(picks(routes, 6)) == {"shard-0", "shard-2"}
    routes.connected("shard-1")
    assert set(picks(routes, 6)) == {"shard-1"}
    routes.put(shard(1, ["a"], "draining"), 1)
    assert set(picks(routes, 6)) == {"shard-0", "shard-2"}
    routes.follow({"a": {"shard-9": 1.0}})
    assert set(picks(routes, 6)) == {"shard-0", "shard-2"}


def test_a_lost_shards_weight_goes_to_the_others_of_the_route() -> None:
    routes = three("a")
    routes.follow({"a": {"shard-0": 0.5, "shard-1": 0.5}})
    routes.remove("shard-0", "it has died")
    assert set(picks(routes, 6)) == {"shard-1"}
