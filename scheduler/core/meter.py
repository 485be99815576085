# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: annotation_typing=False, infer_types=True
"""Arrival rates per lane: the mean over the last 5 s in samples of 50 ms, without floats."""

from __future__ import annotations

from array import array

from .columns import widen
from .limits import SAMPLE_NS, SAMPLES


class Meter:
    """Counts arrivals in a ring of samples per lane; only whole samples make the rate.

    Nothing is written at an arrival: whoever asks says how many requests the lane ever had, and the
    difference to the number at the last sample's end is what came since.

    Memory: 432 bytes per lane. ``sample[lane]`` is the number (time // 50 ms) of the sample that is
    being filled, -1 before the first arrival; ``before[lane]`` is how many requests came before it.
    """

    def __init__(self) -> None:
        self.lanes = 0
        self.counts = array("i")
        self.before = array("q")
        self.total = array("q")
        self.sample = array("q")
        self.first = array("q")

    def add_lane(self) -> None:
        """Room for one more lane."""
        if self.lanes == len(self.total):
            more = max(8, self.lanes)
            self.counts = widen("i", self.counts, SAMPLES * more)
            self.before = widen("q", self.before, more)
            self.total = widen("q", self.total, more)
            self.sample = widen("q", self.sample, more, -1)
            self.first = widen("q", self.first, more, -1)
        self.lanes += 1

    def roll(self, lane: int, sample: int, ever: int) -> None:
        """Make ``sample`` the one that is filled; samples without arrivals count as zero.

        After 5 s in which the lane was not rolled it is as new: its rate is unknown.

        Args:
            lane: the lane.
            sample: time // 50 ms, not before that of the last call.
            ever: requests that the lane ever had, those of this sample not among them.
        """
        last = self.sample[lane]
        if sample == last:
            return
        base = lane * SAMPLES
        if last < 0 or sample - last > SAMPLES:
            for i in range(SAMPLES):
                self.counts[base + i] = 0
            self.total[lane] = 0
            self.first[lane] = sample
        else:
            # The sample that ends takes the place of the one that leaves the window.
            for number in range(last, sample):
                i = base + number % SAMPLES
                ended = ever - self.before[lane] if number == last else 0
                self.total[lane] += ended - self.counts[i]
                self.counts[i] = ended
        self.before[lane] = ever
        self.sample[lane] = sample

    def window_ns(self, lane: int) -> int:
        """Length of the whole samples behind the rate; 0 while it is unknown."""
        known = self.sample[lane] - self.first[lane]
        if known > SAMPLES:
            known = SAMPLES
        return known * SAMPLE_NS

    def clear(self, lane: int) -> None:
        """Forget the lane's history."""
        self.sample[lane] = -1
        self.first[lane] = -1
        self.total[lane] = 0
