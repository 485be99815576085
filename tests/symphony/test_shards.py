"""The sockets to the shards, driven step by step against a bound socket."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq
from helpers import wait_until

from symphony import wire
from symphony.bus import Bus, drain
from symphony.control import Member
from symphony.faults import Faults
from symphony.membership import MemberChanged, describe
from symphony.pending import Outcome, PendingTable, Request
from symphony.shards import GATHER_NS, MOST, Shards
from symphony.status import Status
from symphony.waiter import Waiter


class World:
    """One bound shard and the client's side of it."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.waiter = Waiter()
        self.handlers: dict[Any, Callable[[], None]] = {}
        self.table = PendingTable()
        self.outcomes: dict[int, Outcome] = {}
        faults = Faults(logging.getLogger("test"))
        self.shards = Shards(bus, self.waiter, self.handlers, self.table, lambda: 5, faults)
        self.shards.number(7, 100)
        self.submit, self.endpoint = bus.bind(zmq.PULL, "tcp://127.0.0.1:*")
        self.member = describe(
            "shard-0", "scheduler", endpoints={"submit": self.endpoint}, models=["a", "b"], state="ready"
        )

    def join(self) -> None:
        self.shards.follow(MemberChanged("join", self.member), 0)
        wait_until(self.look)

    def look(self) -> frozenset[str]:
        """Take in what the sockets have; returns the models that can be reached."""
        for sock in self.waiter.wait(0):
            self.handlers[sock]()
        return self.shards.routes.reachable()

    def gather(self, model: str = "a", priority: int = 0) -> Request:
        request = Request(model, None, 1000, priority, self._done)
        self.table.admit(request, 10**15)
        link = self.shards.routes.pick(model)
        assert link is not None
        self.shards.gather(request, link)
        return request

    def _done(self, request: Request, outcome: Outcome) -> None:
        self.outcomes[request.key] = outcome

    def arrived(self, count: int) -> list[wire.Submit]:
        messages: list[wire.Submit] = []

        def enough() -> bool:
            messages.extend(wire.decode_submit(frames[0]) for frames in drain(self.submit))
            return len(messages) >= count

        wait_until(enough)
        assert len(messages) == count
        return messages

    def updated(self, **fields: Any) -> Member:
        return self.member.model_copy(update=fields)


@pytest.fixture
def world() -> Iterator[World]:
    bus = Bus()
    world = World(bus)
    yield world
    world.shards.close()
    bus.close()
    world.waiter.close()


def keys(message: wire.Submit) -> list[int]:
    return [key & wire.SEQUENCE_MASK for key in message.key.tolist()]


def test_an_idle_line_sends_at_once_and_a_busy_one_gathers(world: World) -> None:
    world.join()
    world.gather()
    world.shards.flush(time.monotonic_ns())
    world.gather("b", priority=2)
    world.gather()
    world.shards.flush(world.shards._sent_at + GATHER_NS - 1)
    assert world.shards.held_until(world.shards._sent_at) == world.shards._sent_at + GATHER_NS
    world.shards.flush(world.shards._sent_at + GATHER_NS)
    first, second = world.arrived(2)
    assert (keys(first), keys(second)) == ([101], [102, 103])
    assert (first.slot, first.incarnation, first.priority) == (7, world.member.incarnation, None)
    assert second.model.tolist() == [1, 0]
    assert second.priority is not None
    assert second.priority.tolist() == [2, 0]


def test_a_full_message_leaves_although_the_line_is_busy(world: World) -> None:
    world.join()
    for _ in range(2 * MOST + 1):
        world.gather()
    world.shards.flush(world.shards._sent_at)
    assert [message.key.size for message in world.arrived(2)] == [MOST, MOST]


def test_another_slot_starts_another_message(world: World) -> None:
    world.join()
    world.gather()
    world.shards.number(9)
    world.gather()
    world.shards.flush(world.shards._sent_at + GATHER_NS)
    first, second = world.arrived(2)
    assert (first.slot, keys(first), second.slot, keys(second)) == (7, [101], 9, [102])


def test_a_table_that_changes_does_not_change_what_has_gathered(world: World) -> None:
    world.join()
    world.gather("b")
    world.shards.follow(MemberChanged("update", world.updated(models=["", "c", "b"])), 1)
    world.gather("b")
    world.shards.flush(world.shards._sent_at + GATHER_NS)
    assert [message.model.tolist() for message in world.arrived(2)] == [[1], [2]]


def test_what_had_ended_before_it_was_sent_stays_here(world: World) -> None:
    world.join()
    gone, there = world.gather(), world.gather()
    world.table.finish(gone, Outcome(Status.TIMEOUT, 5))
    world.shards.flush(time.monotonic_ns())
    assert keys(world.arrived(1)[0]) == [there.key & wire.SEQUENCE_MASK]


@pytest.mark.parametrize(("event", "text"), [("death", "shard-0 has died"), ("leave", "shard-0 has left")])
def test_a_shard_that_goes_ends_what_has_gathered_for_it(world: World, event: Any, text: str) -> None:
    world.join()
    sent = world.gather()
    world.shards.flush(time.monotonic_ns())
    waiting = world.gather()
    world.shards.follow(MemberChanged(event, world.member), 1)
    assert world.outcomes[waiting.key].status is Status.UNAVAILABLE
    assert text in world.outcomes[waiting.key].detail
    assert sent.line is not None
    assert sent.line.lost == f"{text} before the answer came"
    assert world.shards.routes.pick("a") is None
    assert world.handlers == {}


def test_a_new_incarnation_gets_a_new_line_and_the_old_ones_death_is_stale(world: World) -> None:
    world.join()
    old = world.gather()
    newer = world.updated(incarnation=world.member.incarnation + 1)
    world.shards.follow(MemberChanged("join", newer), 1)
    assert world.outcomes[old.key].status is Status.UNAVAILABLE
    world.shards.follow(MemberChanged("death", world.member), 2)
    wait_until(world.look)
    world.gather()
    world.shards.flush(world.shards._sent_at + GATHER_NS)
    assert world.arrived(1)[0].incarnation == newer.incarnation


def test_a_lost_connection_refuses_at_once(world: World) -> None:
    world.join()
    waiting = world.gather()
    world.bus.drop(world.submit)

    def refused() -> bool:
        # Until the loss is noticed a message still goes into the dying connection.
        world.shards.flush(world.shards._sent_at + GATHER_NS)
        world.look()
        return world.shards.routes.pick("a") is None

    wait_until(refused)
    assert waiting.line is not None
    assert waiting.line.lost is not None or waiting.done


def test_others_in_the_membership_are_no_shards(world: World) -> None:
    for role in ("worker", "frontend", "ops"):
        world.shards.follow(MemberChanged("join", describe(f"m-{role}", role)), 0)
    assert list(world.shards.routes) == []
