"""Numbers that are unique in the cluster: GPU numbers, and the slots of frontends."""

from __future__ import annotations

from typing import Final

from symphony.control import GpuInfo

MAX_GPU: Final = 1 << 20
"""GPU numbers are below this."""
MOST_GPUS: Final = 1 << 16
"""GPUs of one member: its record has to fit into a control message many times over."""
SLOTS: Final = 1 << 16


class GpuNumbers:
    """Which member has which GPU number. The scheduler takes the lowest idle one, so they are kept low."""

    def __init__(self) -> None:
        self._owner: dict[int, str] = {}
        self._held: dict[str, list[int]] = {}

    def problem(self, member: str, gpus: list[GpuInfo], wanted: int) -> str:
        """Why ``member`` cannot have these GPUs, or ``wanted`` unnumbered ones; empty if it can."""
        numbers = [gpu.number for gpu in gpus]
        if len(set(numbers)) < len(numbers):
            return f"{member!r} gives the same number to two of its GPUs"
        for number in numbers:
            owner = self._owner.get(number, member)
            if owner != member:
                return f"GPU {number} already belongs to {owner!r}; give the GPUs of {member!r} other numbers"
        if not 0 <= wanted <= MOST_GPUS:
            return f"gpus_wanted is {wanted}; it must be 0 to {MOST_GPUS}"
        if len(numbers) > MOST_GPUS:
            return f"{member!r} has {len(numbers)} GPUs; one member may have {MOST_GPUS}"
        if wanted and not numbers and self._find(wanted) + wanted > MAX_GPU:
            return f"there are no {wanted} GPU numbers in a row left below {MAX_GPU}"
        return ""

    def grant(self, count: int, gpu_type: str) -> list[GpuInfo]:
        """The lowest ``count`` free numbers in a row."""
        first = self._find(count)
        return [GpuInfo(number=number, type=gpu_type) for number in range(first, first + count)]

    def _find(self, count: int) -> int:
        first = 0
        for number in sorted(self._owner):
            if number - first >= count:
                break
            first = number + 1
        return first

    def hold(self, member: str, gpus: list[GpuInfo]) -> None:
        """``member`` has these and no others."""
        self.free(member)
        numbers = [gpu.number for gpu in gpus]
        for number in numbers:
            self._owner[number] = member
        if numbers:
            self._held[member] = numbers

    def free(self, member: str) -> None:
        """``member`` has none any more."""
        for number in self._held.pop(member, ()):
            del self._owner[number]


class Slots:
    """Which frontend has which slot.

    Args:
        start: where to begin handing out; any integer.
    """

    def __init__(self, start: int) -> None:
        self._owner: dict[int, str] = {}
        self._held: dict[str, int] = {}
        # Fibonacci hashing spreads the starts of brokers that follow each other.
        self._next = (start * 0x9E3779B97F4A7C15 >> 40) % SLOTS

    def take(self, member: str, wanted: int | None) -> int:
        """The slot ``wanted`` if it is free or the member's own, else the next free one.

        Raises:
            ValueError: all are taken; the registry admits fewer members.
        """
        if wanted is not None and self._owner.get(wanted, member) == member:
            slot = wanted
        elif member in self._held:
            slot = self._held[member]
        else:
            slot = self._free_slot()
        self.free(member)
        self._owner[slot], self._held[member] = member, slot
        return slot

    def _free_slot(self) -> int:
        if len(self._owner) >= SLOTS:
            raise ValueError("all slots are taken")
        while self._next in self._owner:
            self._next = (self._next + 1) % SLOTS
        slot = self._next
        self._next = (self._next + 1) % SLOTS
        return slot

    def free(self, member: str) -> None:
        """The member's slot may go to somebody else."""
        slot = self._held.pop(member, None)
        if slot is not None:
            del self._owner[slot]
