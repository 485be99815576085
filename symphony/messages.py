"""What control messages are built of: names, and ranges of GPU numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import AfterValidator, Field

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@/-]*$")]


def _ordered(ranges: list[int]) -> list[int]:
    if len(ranges) % 2:
        raise ValueError("expected pairs of first and last")
    bounds = list(zip(ranges[::2], ranges[1::2], strict=True))
    if any(first > last for first, last in bounds):
        raise ValueError("a range that ends before it begins")
    if any(after[0] <= before[1] for before, after in itertools.pairwise(bounds)):
        raise ValueError("ranges that overlap or do not ascend")
    return ranges


Ranges = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 20)]], AfterValidator(_ordered)]
"""GPU numbers as pairs of first and last, ascending and disjoint: ``[0, 7, 12, 12]`` are nine GPUs."""


def to_ranges(numbers: Iterable[int]) -> list[int]:
    """Any numbers as :data:`Ranges`."""
    ranges: list[int] = []
    for number in sorted(set(numbers)):
        if ranges and ranges[-1] == number - 1:
            ranges[-1] = number
        else:
            ranges += (number, number)
    return ranges


def of_ranges(ranges: list[int]) -> Iterator[int]:
    """The numbers in :data:`Ranges`, ascending."""
    for first, last in zip(ranges[::2], ranges[1::2], strict=True):
        yield from range(first, last + 1)
