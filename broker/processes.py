"""Whether a process of this machine still lives, so that its lease need not run out first."""

from __future__ import annotations

import contextlib
from pathlib import Path

from symphony.control import Member


def birth_of(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None if there is none, or only a zombie.

    Two processes that had the same pid one after the other differ in it.
    """
    if pid <= 0:
        return None
    with contextlib.suppress(OSError, ValueError, IndexError):
        # The name in parentheses may hold anything; the fields after it are: state, parent, …
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    return None


class Neighbours:
    """The members on the broker's own machine, by what ``/proc`` says of them.

    A member that could not be seen when it came (another machine of the same name, another pid
    namespace, no ``/proc``) is left to its lease.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._births: dict[str, tuple[int, int, int]] = {}  # id: incarnation, pid, birth

    def saw(self, member: Member) -> None:
        """A member is there; remember its process if it is one of this machine."""
        known = self._births.get(member.id)
        if known is not None and known[:2] == (member.incarnation, member.pid):
            return
        self._births.pop(member.id, None)
        if member.host == self._host:
            birth = birth_of(member.pid)
            if birth is not None:
                self._births[member.id] = (member.incarnation, member.pid, birth)

    def gone(self, member_id: str) -> int | None:
        """The incarnation of the member, if its process was here and is no more."""
        known = self._births.get(member_id)
        if known is None or birth_of(known[1]) == known[2]:
            return None
        return known[0]

    def all_gone(self) -> list[tuple[str, int]]:
        """Every such ``(id, incarnation)``."""
        found = [(member_id, self.gone(member_id)) for member_id in self._births]
        return [(member_id, incarnation) for member_id, incarnation in found if incarnation is not None]

    def forget(self, member_id: str) -> None:
        """It is no member any more."""
        self._births.pop(member_id, None)
