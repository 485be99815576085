"""How long a busy loop rests between two looks at its sockets, so that input gathers.

A turn of a loop costs much the same for one message as for fifty, and a loop that looks again at once spends
a core on turns for one. So a loop that is busy for more than a fifth of the time rests after a turn, as
interrupt moderation in network cards does: four times as long as the turn took, as far as its user can
spare that. A loop with less to do never rests, and answers at once. The more there is to do, the longer the
turns and the more each of them takes in, so that the cost per message falls while load rises.
"""

from __future__ import annotations

from typing import Final

SHARE: Final = 4
"""Rest per work: a busy loop works for at most a fifth of the time, until its rests reach their limit."""
REST_SHARE: Final = 50
"""A loop's user can spare the tightest objective that it serves divided by this for a rest."""
BURST_NS: Final = 2_000_000
"""So much work times :data:`SHARE` may gather before the loop rests at all."""


class Pace:
    """Keeps account of work and rest; all times are monotonic ns, given by the caller.

    Attributes:
        until: before that moment a look at the sockets is not worth its cost.
        cycle_ns: from the last turn's beginning to the end of its rest; 0 if it needed none.
    """

    def __init__(self) -> None:
        self.until = 0
        self.cycle_ns = 0
        self._owed = 0
        self._since = 0

    def worked(self, began: int, ended: int, longest_ns: int) -> None:
        """A turn is over; rests are no longer than ``longest_ns``, and 0 never rests."""
        owed = max(0, self._owed - max(0, began - self._since)) + SHARE * (ended - began)
        self._owed = min(owed, BURST_NS + longest_ns)
        self._since = ended
        rest = max(0, self._owed - BURST_NS)
        self.until = ended + rest
        self.cycle_ns = self.until - began if rest else 0
