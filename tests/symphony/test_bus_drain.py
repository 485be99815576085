"""Reading what has arrived on a link of single frames: all of it, so many frames, or so many bytes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq
from helpers import wait_until

from symphony.bus import Bus, Sock, drain_frames, send

SENT = [bytes([i]) * 100 for i in range(10)]


@pytest.fixture
def full() -> Iterator[Sock]:
    """A PULL socket with all of SENT in its queue."""
    bus = Bus()
    pull, endpoint = bus.bind(zmq.PULL, "tcp://127.0.0.1:*")
    push = bus.connect(zmq.PUSH, endpoint)
    marker = b"last"
    for frame in (*SENT, marker):
        wait_until(lambda frame=frame: send(push, frame))
    arrived: list[bytes] = []

    def all_there() -> bool:
        arrived.extend(drain_frames(pull, 100, 1 << 20)[0])
        return arrived[-1:] == [marker]

    wait_until(all_there)
    assert arrived == [*SENT, marker]
    for frame in arrived[:-1]:  # and once more, in one go: the pipe stands now
        wait_until(lambda frame=frame: send(push, frame))
    wait_until(lambda: pull.poll(0) != 0)
    yield pull
    bus.close(0)


def drained(sock: Sock, limit: int, most_bytes: int) -> tuple[list[list[bytes]], int]:
    """Every call's frames until all of SENT has come, and how many calls said that there was no more."""
    parts: list[list[bytes]] = []
    ends = 0

    def take() -> bool:
        nonlocal ends
        frames, all_read = drain_frames(sock, limit, most_bytes)
        ends += all_read
        if frames:
            parts.append(frames)
        return sum(map(len, parts)) == len(SENT)

    wait_until(take)
    return parts, ends


@pytest.mark.parametrize(("limit", "most_bytes", "most"), [(3, 1 << 20, 3), (100, 250, 3), (100, 1, 1)])
def test_no_call_returns_more_than_it_may(full: Sock, limit: int, most_bytes: int, most: int) -> None:
    parts, _ = drained(full, limit, most_bytes)
    assert [frame for part in parts for frame in part] == SENT
    assert max(map(len, parts)) <= most
    assert len(parts) >= -(-len(SENT) // most)


def test_an_empty_link_says_so(full: Sock) -> None:
    drained(full, 100, 1 << 20)
    assert drain_frames(full, 100, 1 << 20) == ([], True)


def test_a_limit_that_ends_the_reading_leaves_open_whether_there_is_more(full: Sock) -> None:
    frames, all_read = drain_frames(full, 1, 1 << 20)
    assert (frames, all_read) == (SENT[:1], False)
