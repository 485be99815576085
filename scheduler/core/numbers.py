# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: annotation_typing=False, infer_types=True
"""A set of small numbers that gives them smallest first, as words of bits in levels."""

from __future__ import annotations

from array import array

from . import plain
from .columns import widen


class Numbers:
    """Holds numbers below the capacity that :meth:`reserve` was last given; ``size`` of them.

    Bit i of level 0 stands for number i, bit i of the next level for word i below, which is then not empty.
    Four levels of words of 64 bits are enough for 16 million, so whatever is asked for takes at most so
    many steps, where a heap takes log2 of its size. Memory: 1/8 byte per unit of capacity.
    """

    def __init__(self, capacity: int = 64) -> None:
        self.size = 0
        self.capacity = 0
        self.levels = 0
        self.start = array("q")
        self.words = array("Q")
        self.reserve(capacity)

    def reserve(self, capacity: int) -> None:
        """Allow numbers below ``capacity``; never shrinks."""
        if capacity <= self.capacity:
            return
        held = self.held()
        self.capacity = capacity
        start = [0]
        words, total = capacity, 0
        while words > 1 or total == 0:
            words = (words + 63) // 64
            total += words
            start.append(total)
        self.levels = len(start) - 1
        self.start = widen("q", array("q", start), 0)
        self.words = widen("Q", array("Q"), total)
        self.size = 0
        for number in held:
            self.put(number)

    def held(self) -> list[int]:
        """All of them, smallest first."""
        found = []
        number = self.next(0)
        while number >= 0:
            found.append(number)
            number = self.next(number + 1)
        return found

    def has(self, number: int) -> bool:
        """Whether the number is in the set."""
        return (self.words[number >> 6] >> (number & 63)) & 1 != 0

    def put(self, number: int) -> None:
        """Add the number if it is not there."""
        at = number >> 6
        old = self.words[at]
        bit = 1
        bit <<= number & 63
        if old & bit:
            return
        self.size += 1
        self.words[at] = old | bit
        level = 1
        while old == 0 and level < self.levels:
            bit = 1
            bit <<= at & 63
            at >>= 6
            place = self.start[level] + at
            old = self.words[place]
            self.words[place] = old | bit
            level += 1

    def discard(self, number: int) -> None:
        """Remove the number if it is there."""
        at = number >> 6
        left = self.words[at]
        bit = 1
        bit <<= number & 63
        if left & bit == 0:
            return
        self.size -= 1
        left ^= bit
        self.words[at] = left
        level = 1
        while left == 0 and level < self.levels:
            bit = 1
            bit <<= at & 63
            at >>= 6
            place = self.start[level] + at
            left = self.words[place] ^ bit
            self.words[place] = left
            level += 1

    def first(self) -> int:
        """The smallest one; there must be one."""
        at = 0
        level = self.levels - 1
        while level >= 0:
            at = 64 * at + plain.lowest(self.words[self.start[level] + at])
            level -= 1
        return at

    def next(self, number: int) -> int:
        """The smallest one from ``number`` on; -1 if there is none."""
        level = 0
        at = number
        while level < self.levels:
            place = self.start[level] + (at >> 6)
            if place >= self.start[level + 1]:
                return -1
            word = self.words[place] >> (at & 63)
            if word:
                at += plain.lowest(word)
                while level > 0:
                    level -= 1
                    at = 64 * at + plain.lowest(self.words[self.start[level] + at])
                return at
            at = (at >> 6) + 1
            level += 1
        return -1
