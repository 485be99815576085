"""A leak is told, and what only looks like one is not."""

from __future__ import annotations

from worker.growth import Growth

MB = 1 << 20


def told(values: list[int], **options: int) -> list[int]:
    growth = Growth(**({"samples": 3, "windows": 4, "least_bytes": 10 * MB} | options))
    return [grown >> 20 for value in values if (grown := growth.observe(value * MB)) is not None]


def test_steady_growth_is_told_once_per_span() -> None:
    assert told(list(range(30))) == [12, 12]


def test_peaks_that_are_freed_again_are_no_leak() -> None:
    assert told([100, 900, 100] * 20) == []


def test_growth_that_stops_or_is_small_is_no_leak() -> None:
    assert told([0, 50, 90, 120, *[120] * 30]) == []
    assert told(list(range(30)), least_bytes=13 * MB) == []


def test_after_a_restart_it_begins_anew() -> None:
    growth = Growth(samples=1, windows=2, least_bytes=1)
    assert growth.observe(1) is None
    assert growth.observe(2) is None
    growth.restart()
    assert growth.observe(3) is None
    assert growth.observe(4) is None
    assert growth.observe(5) == 2
