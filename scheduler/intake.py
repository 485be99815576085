"""Requests on their way from frontends' messages into the core, and what a shard does about a backlog."""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from scheduler.core.machine import Core
from scheduler.frontends import Frontends
from scheduler.stats import Stats
from scheduler.table import ModelTable
from scheduler.timers import Timers
from symphony import wire
from symphony.bus import Sock, drain_frames
from symphony.faults import Faults
from symphony.status import Status

SUBMITS_PER_TURN: Final = 1_000
SUBMIT_BYTES_PER_TURN: Final = 1_600_000
"""Messages, or bytes of them (some 75,000 requests), that are read before the shard acts: with a backlog,
answers must not wait for all of it."""
BACKLOG_PERCENT: Final = 40
"""With a backlog, what has waited for so much of its objective is refused. Less lets a pause of the machine
become thousands of refusals of what smaller batches still serve; more lets results be late."""


class Intake:
    """Reads one shard's SUBMIT socket.

    Args:
        core: gets the requests.
        table: has the models.
        stats: count what comes and what is refused.
        timers: say what time it is for the core.
        frontends: get the refusals.
        faults: count what is malformed, meant for others, or too old.
    """

    def __init__(
        self,
        core: Core,
        table: ModelTable,
        stats: Stats,
        timers: Timers,
        frontends: Frontends,
        faults: Faults,
    ) -> None:
        self._core = core
        self._table = table
        self._stats = stats
        self._timers = timers
        self._frontends = frontends
        self._faults = faults
        self._reader = wire.SubmitReader()

    def read(self, sock: Sock, incarnation: int, longest_ns: int) -> bool:
        """Take in what has arrived; returns whether more of it may be there.

        Args:
            sock: PULL.
            incarnation: of this shard.
            longest_ns: how long a backlog is read on while most of it is refused for its age.
        """
        until = time.monotonic_ns() + longest_ns
        while True:
            messages, all_read = drain_frames(sock, SUBMITS_PER_TURN, SUBMIT_BYTES_PER_TURN)
            requests = self._joined(messages, incarnation)
            offered = requests.key.size
            if offered:
                now = self._timers.lead()
                if not all_read:
                    requests = self._shed(now, requests)
                self._core.submit(now, requests.model, requests.deadline, requests.key, requests.priority)
            if all_read or 2 * requests.key.size >= offered or time.monotonic_ns() >= until:
                return not all_read

    def _joined(self, messages: list[bytes], incarnation: int) -> wire.Submitted:
        """The requests of these messages that are for us; what is wrong with the others is counted."""
        counts = self._stats.offered(len(self._table.names))
        requests = self._reader.read(messages, incarnation, counts)
        for error in requests.errors:
            self._faults.count(f"submit-{error.reason}", error)
        for other in requests.others:
            self._faults.count("submit-for-another-incarnation", f"slot {other.slot}")
            refused = np.full(other.key.size, Status.UNAVAILABLE, np.uint8)
            self._frontends.answer(self._timers.now(), other.key, refused, "the shard has restarted")
        return requests

    def _shed(self, now: int, requests: wire.Submitted) -> wire.Submitted:
        """With a backlog on the link, refuse what has waited for two fifths of its objective.

        Served in the order of arrival, a backlog makes every request late: the shard would work for
        nothing as long as more is offered than it takes. What is left here still makes large batches. While
        most is refused the link is read on at once, until what comes is young again.
        """
        slo = self._table.slo_ns
        due = now + slo - slo * BACKLOG_PERCENT // 100
        requests, old = self._reader.split(requests, due, now, self._stats.refused(slo.size))
        if old.size:
            self._faults.count("submit-backlog", f"{old.size} of {old.size + requests.key.size}", old.size)
            refused = np.full(old.size, Status.OVERLOADED, np.uint8)
            self._frontends.answer(now, old, refused, "the shard has a backlog; retry later")
        return requests
