"""Latency profiles: how long a batch of b takes on one type of GPU.

The scheduler never uses a formula where it can use a measurement: a profile is a table, entry i
for a batch of i + 1, in nanoseconds, never falling. A table is made from a line (emulated models),
from measured points (interpolated between the sizes that were measured) or from a file. The
least-squares line through the table is kept for reports only.

The file is JSON or YAML, one map::

    format: symphony-profile-1
    max_batch: 8
    latency_ms: {1: 5.1, 2: 5.9, 4: 7.8, 8: 11.9}   # or latency_ns: [5100000, ...], all sizes
    meta: {model: crepe-tiny, gpu_type: cpu}          # optional, anything

What ``symphony profile`` writes holds more (:mod:`symphony.profile_file`); :meth:`Profile.load` reads both.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from symphony.status import SymphonyError

FORMAT: Final = "symphony-profile-1"
MAX_BATCH: Final = 4096
TOLERANCE: Final = 0.02
"""A fall of this share between two sizes is taken for noise of the measurement and levelled out."""

_MS: Final = 1_000_000


class ProfileError(SymphonyError, ValueError):
    """A profile that cannot be used: a hole, a zero, a falling latency, or a file that is none."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Least-squares line l(b) = alpha·b + beta through a table; ``r2`` is 1 for an exact line."""

    alpha_ms: float
    beta_ms: float
    r2: float


@dataclass(frozen=True, slots=True)
class Profile:
    """l(b) for b = 1 … max_batch; ``latency_ns[b - 1]`` is that of a batch of b.

    Raises:
        ProfileError: the table is empty or too long, or an entry is no positive integer or less
            than the one before it.
    """

    latency_ns: tuple[int, ...]

    def __post_init__(self) -> None:
        table = self.latency_ns
        if not 1 <= len(table) <= MAX_BATCH:
            raise ProfileError(f"a profile has 1 to {MAX_BATCH} batch sizes, not {len(table)}")
        before = 0
        for size, value in enumerate(table, 1):
            if type(value) is not int or value <= 0:
                raise ProfileError(f"the latency of batch size {size} is {value!r}: expected ns above 0")
            if value < before:
                raise ProfileError(
                    f"the latency falls from {before / _MS:g} ms at batch size {size - 1} "
                    f"to {value / _MS:g} ms at batch size {size}"
                )
            before = value

    @property
    def max_batch(self) -> int:
        """The largest batch that the table knows."""
        return len(self.latency_ns)

    def latency(self, size: int) -> int:
        """l(size) in ns; ``size`` from 1 to ``max_batch``, anything else raises ProfileError."""
        if not 1 <= size <= len(self.latency_ns):
            raise ProfileError(f"batch size {size} is outside 1 … {len(self.latency_ns)}")
        return self.latency_ns[size - 1]

    def largest_within(self, budget_ns: int) -> int:
        """The largest batch that takes at most ``budget_ns``; 0 if not even one request fits."""
        return bisect_right(self.latency_ns, budget_ns)

    @classmethod
    def linear(cls, alpha_ms: float, beta_ms: float, max_batch: int) -> Profile:
        """l(b) = alpha_ms·b + beta_ms.

        Raises:
            ProfileError: a negative or non-finite number, or a latency of zero.
        """
        for name, value in (("alpha_ms", alpha_ms), ("beta_ms", beta_ms)):
            if not math.isfinite(value) or value < 0:
                raise ProfileError(f"{name} is {value!r}: expected milliseconds, 0 or more")
        _check_max_batch(max_batch)
        return cls(tuple(round((alpha_ms * b + beta_ms) * _MS) for b in range(1, max_batch + 1)))

    @classmethod
    def points(cls, points: Mapping[int, float], max_batch: int, *, tolerance: float = TOLERANCE) -> Profile:
        """From measured sizes in ms, linearly interpolated between them.

        Args:
            points: batch size → ms; holds 1 and a size of at least ``max_batch``.
            max_batch: how far the table goes.
            tolerance: a fall of at most this share between neighbours is levelled out as noise.

        Raises:
            ProfileError: size 1 or the largest size is missing, a value is not a positive number,
                or the latency falls by more than ``tolerance``; the sizes are named.
        """
        _check_max_batch(max_batch)
        level = _levelled(points, tolerance)
        sizes = list(level)
        if not sizes or sizes[0] != 1:
            raise ProfileError("the profile has no point for batch size 1")
        if sizes[-1] < max_batch:
            raise ProfileError(
                f"the profile ends at batch size {sizes[-1]}, but max_batch is {max_batch}: "
                "measure up to there, or lower max_batch"
            )
        table: list[int] = []
        for low, high in zip(sizes, [*sizes[1:], sizes[-1] + 1], strict=True):
            step = (level.get(high, level[low]) - level[low]) / (high - low)
            table.extend(round((level[low] + step * (b - low)) * _MS) for b in range(low, high))
        return cls(tuple(table[:max_batch]))

    def fit(self) -> Fit:
        """The least-squares line, for reports; a table of one size has alpha 0."""
        n = len(self.latency_ns)
        mean_b = (n + 1) / 2
        mean_l = sum(self.latency_ns) / n
        spread = sum((b - mean_b) ** 2 for b in range(1, n + 1))
        joint = sum((b - mean_b) * (v - mean_l) for b, v in enumerate(self.latency_ns, 1))
        alpha = joint / spread if spread else 0.0
        beta = mean_l - alpha * mean_b
        total = sum((v - mean_l) ** 2 for v in self.latency_ns)
        left = sum((v - alpha * b - beta) ** 2 for b, v in enumerate(self.latency_ns, 1))
        return Fit(alpha / _MS, beta / _MS, 1.0 - left / total if total else 1.0)

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile file (see the module's docstring).

        Raises:
            ProfileError: the file is missing, unreadable or no profile; the file is named.
        """
        value = read_map(path)
        try:
            if isinstance(value, dict) and value.get("format") == "symphony-profile-2":
                from symphony.profile_file import ProfileFile  # which imports this module

                return ProfileFile.parse(value).profile()
            return cls._from_map(value)
        except ProfileError as error:
            raise ProfileError(f"{path}: {error}") from None

    @classmethod
    def _from_map(cls, value: Any) -> Profile:
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ProfileError(f"no profile: expected a map with 'format: {FORMAT}'")
        unknown = set(value) - {"format", "max_batch", "latency_ns", "latency_ms", "meta"}
        if unknown:
            raise ProfileError(f"unknown key {sorted(map(str, unknown))[0]!r}")
        if ("latency_ns" in value) == ("latency_ms" in value):
            raise ProfileError("expected one of 'latency_ns' and 'latency_ms'")
        if "latency_ns" in value:
            table = value["latency_ns"]
            if not isinstance(table, list):
                raise ProfileError("latency_ns: expected a list of integers, one per batch size")
            profile = cls(tuple(table))
            if value.get("max_batch", profile.max_batch) != profile.max_batch:
                raise ProfileError(
                    f"max_batch is {value['max_batch']!r}, but latency_ns has {profile.max_batch} entries"
                )
            return profile
        points = value["latency_ms"]
        if not isinstance(points, dict):
            raise ProfileError("latency_ms: expected a map of batch size to milliseconds")
        sizes = [_size(key) for key in points]  # JSON knows string keys only
        return cls.points(
            dict(zip(sizes, points.values(), strict=True)), value.get("max_batch", max(sizes, default=0))
        )

    def save(self, path: str | Path, meta: Mapping[str, Any] | None = None) -> None:
        """Write the table as JSON; ``meta`` is kept beside it for people and reports.

        Raises:
            ProfileError: the file cannot be written.
        """
        fit = self.fit()
        content = {
            "format": FORMAT,
            "max_batch": self.max_batch,
            "latency_ns": list(self.latency_ns),
            "meta": {
                **(meta or {}),
                "fit": {"alpha_ms": fit.alpha_ms, "beta_ms": fit.beta_ms, "r2": fit.r2},
            },
        }
        try:
            Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise ProfileError(f"cannot write the profile {path}: {error.strerror}") from None


def read_map(path: str | Path) -> Any:
    """What a JSON or YAML file holds. Raises ProfileError, with the file's name."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ProfileError(f"cannot read the profile {path}: {reason}") from None
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # a day that does not exist is a ValueError
        raise ProfileError(f"{path}: neither JSON nor YAML") from None


def _check_max_batch(max_batch: object) -> None:
    if type(max_batch) is not int or not 1 <= max_batch <= MAX_BATCH:
        raise ProfileError(f"max_batch is {max_batch!r}: expected an integer from 1 to {MAX_BATCH}")


def _size(key: object) -> int:
    if type(key) is int or (isinstance(key, str) and key.isascii() and key.isdigit()):
        return int(key)
    raise ProfileError(f"batch size {key!r} is no integer")


def _levelled(points: Mapping[int, float], tolerance: float) -> dict[int, float]:
    """The points in order of size, small falls levelled out to the largest value before them."""
    level: dict[int, float] = {}
    top, top_size = 0.0, 0
    for size in sorted(points):
        value = points[size]
        if type(size) is not int or size < 1:
            raise ProfileError(f"batch size {size!r}: expected an integer of at least 1")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value <= 0:
            raise ProfileError(f"the latency of batch size {size} is {value!r}: expected ms above 0")
        if value < top * (1 - tolerance):
            raise ProfileError(
                f"the latency falls from {top:g} ms at batch size {top_size} to {value:g} ms at "
                f"batch size {size}, more than {tolerance:.0%}: measure again"
            )
        if value > top:
            top, top_size = float(value), size
        level[size] = top
    return level
