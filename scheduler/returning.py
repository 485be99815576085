"""How long results are on their way back: what the result latency really is, learned live.

A result that is there when its batch ends is not yet where it is wanted: the worker has to send it, and the
other side has to get round to reading it. Batches that may take until just before their deadlines are then
late by so much. What a result takes to its frontend the scheduler does not see; but every completion takes
the same kind of way, from the same worker to a process that reads when it gets round to it: that is seen.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from scheduler.recent import Ids

REMEMBERED: Final = 2_048
"""Batches behind a latency, of all GPUs together."""
SAMPLED: Final = 256
"""Of the completions that are read together, at most so many count, evenly spread."""
ENOUGH: Final = 256
"""Batches before it is learned."""
PERCENT: Final = 99
"""That many of a hundred completions shall have come by then: of what is offered, 1 % may be bad."""
STEP_NS: Final = 500_000
"""It is given out again only when it has moved by that much."""
LONGEST_NS: Final = 1_000_000_000
"""What counts of one completion's way, at most: a worker may say anything of its times."""


class Returning:
    """The last completions' ways, and the result latency that they call for; all times in ns.

    Args:
        configured_ns: the result latency to begin with, and the least.
    """

    def __init__(self, configured_ns: int) -> None:
        self.result_ns = configured_ns
        self._configured = configured_ns
        self._ways = np.zeros(REMEMBERED, np.int64)
        self._seen = 0
        self._learned = 0

    def observe(self, now: int, finished: Ids) -> None:
        """Completions are read now, cluster time, of batches that ended at ``finished``."""
        ways = np.minimum(np.maximum(now - finished[:: -(-finished.size // SAMPLED) or 1], 0), LONGEST_NS)
        first = self._seen % REMEMBERED
        here = min(ways.size, REMEMBERED - first)  # as far as the ring's end
        self._ways[first : first + here], self._ways[: ways.size - here] = ways[:here], ways[here:]
        self._seen += ways.size

    def learn(self, longest_ns: int) -> int:
        """The result latency from now on, at most ``longest_ns`` where that is above the configured one.

        Where nothing has come back since the last call, half of what was learned is forgotten: it may be the
        reason why nothing is sent any more.
        """
        if self._seen == self._learned:
            self.result_ns = max(self._configured, (self.result_ns + self._configured) // 2)
        elif self._seen >= ENOUGH:
            found = int(np.percentile(self._ways[: min(self._seen, REMEMBERED)], PERCENT))
            found = max(self._configured, min(found, longest_ns))
            if abs(found - self.result_ns) >= STEP_NS or found == self._configured:
                self.result_ns = found
        self._learned = self._seen
        return self.result_ns
