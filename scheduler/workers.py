"""One worker process as a shard has it: its record, its link, its GPUs, and what comes back from it."""

from __future__ import annotations

from typing import NamedTuple

from scheduler.recent import Ids
from symphony.bus import Sock
from symphony.control import Member


class Worker:
    """One worker process of this shard."""

    __slots__ = ("gpus", "index", "leaving", "linked", "member", "monitor", "paused_until", "sock")

    def __init__(self, member: Member, sock: Sock, monitor: Sock) -> None:
        self.member = member
        self.sock = sock
        self.monitor = monitor
        self.linked = False
        self.paused_until = 0
        self.gpus: dict[int, tuple[int, ...]] = {}
        """Numbers that are in the core now, with the numbers of the models that each holds there."""
        self.leaving: set[int] = set()
        """Those that drain, because they are another's to be."""
        self.index = -1
        """Its place in the fleet's columns."""


class Back(NamedTuple):
    """Batches that have come back, as columns: what statistics are made of. Times in ns."""

    model: Ids
    size: Ids
    good: Ids
    failed: Ids
    started: Ids
    finished: Ids
    gpu: Ids
