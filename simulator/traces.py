"""Trace files: when requests came, read by their columns and not by their names.

Two kinds of CSV file are understood, with a header line each:

- one request per line: a column ``timestamp``, ``time``, ``arrival``, … with ISO dates or with numbers
  (seconds, or as the name says: ``arrival_ms``, ``time_us``, ``ts_ns``);
- counts per minute: columns ``1``, ``2``, … with one line per function (they are added up), or a column
  ``count``, ``requests`` or ``invocations`` with one line per minute.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .experiment import ExperimentError

Floats = npt.NDArray[np.float64]

_TIMES = ("timestamp", "time", "arrival", "arrival_time", "arrived", "invocation_time", "ts", "t", "start")
_COUNTS = ("count", "counts", "requests", "invocations", "rate_per_minute")
_UNITS = {"_ns": 1e-9, "_us": 1e-6, "_ms": 1e-3, "_s": 1.0}
MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Trace:
    """``times``: seconds from the trace's beginning, never falling; or ``per_minute``: counts."""

    times: Floats | None
    per_minute: Floats | None
    seconds: float

    @property
    def requests(self) -> float:
        """In the whole trace."""
        if self.times is not None:
            return float(len(self.times))
        assert self.per_minute is not None
        return float(self.per_minute.sum())


def trace_path(base: Path, name: str) -> Path:
    """The file that ``trace:NAME`` means: relative to ``base``, else one that comes with the simulator."""
    path = base / name
    if not path.exists() and name.replace("_", "").isalnum():
        bundled = files("simulator").joinpath("data", f"{name}.csv")
        if isinstance(bundled, Path) and bundled.is_file():
            return bundled
    return path


def load_trace(path: Path) -> Trace:
    """Read a trace.

    Raises:
        ExperimentError: missing, empty, out of order, or without a column that tells times or counts;
            the line is named.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            header = [name.strip() for name in next(rows, [])]
            lines = [row for row in rows if row]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ExperimentError(f"cannot read the trace {path}: {reason}") from None
    if not lines:
        raise ExperimentError(f"the trace {path} is empty: expected a header and at least one line")
    minutes = [(int(name), i) for i, name in enumerate(header) if name.isdigit()]
    if minutes:
        return _wide(path, lines, [i for _, i in sorted(minutes)])
    for i, name in enumerate(header):
        if name.lower() in _COUNTS:
            return _counts(path, np.array([_number(path, n, row, i) for n, row in enumerate(lines, 2)]))
    for i, name in enumerate(header):
        plain, unit = name.lower(), 1.0
        for suffix, scale in _UNITS.items():
            if plain.endswith(suffix):
                plain, unit = plain.removesuffix(suffix), scale
        if plain in _TIMES:
            return _stamps(path, lines, i, unit)
    raise ExperimentError(
        f"the trace {path} has the columns {', '.join(header[:8])}: expected one request per line with a "
        "column TIMESTAMP (or time, arrival), or counts per minute in columns 1, 2, … or a column count"
    )


def _number(path: Path, line: int, row: list[str], column: int) -> float:
    try:
        value = float(row[column])
    except (ValueError, IndexError):
        text = row[column] if column < len(row) else ""
        raise ExperimentError(f"{path}, line {line}: expected a number, not {text!r}") from None
    if not 0 <= value < 1e18:
        raise ExperimentError(f"{path}, line {line}: {value:g} is out of range: expected 0 or more")
    return value


def _wide(path: Path, lines: list[list[str]], columns: list[int]) -> Trace:
    total = np.zeros(len(columns))
    for number, row in enumerate(lines, 2):
        total += [_number(path, number, row, i) for i in columns]
    return _counts(path, total)


def _counts(path: Path, counts: Floats) -> Trace:
    if counts.sum() <= 0:
        raise ExperimentError(f"the trace {path} is empty: all its counts are 0")
    return Trace(None, counts, MINUTE * len(counts))


def _stamps(path: Path, lines: list[list[str]], column: int, unit: float) -> Trace:
    times = np.empty(len(lines))
    first: datetime | None = None
    for i, row in enumerate(lines):
        text = row[column].strip() if column < len(row) else ""
        try:
            times[i] = float(text) * unit
        except ValueError:
            moment, rest = _moment(path, i + 2, text)
            first = first or moment
            times[i] = (moment - first).total_seconds() + rest
    falls = np.flatnonzero(np.diff(times) < 0)
    if len(falls):
        raise ExperimentError(
            f"the trace {path} is out of order: line {falls[0] + 3} is earlier than the one before"
        )
    if not np.isfinite(times).all():
        raise ExperimentError(f"the trace {path} holds a time that is not finite")
    times -= times[0]
    if times[-1] <= 0:
        raise ExperimentError(f"the trace {path} spans no time: expected at least two different times")
    return Trace(times, None, float(times[-1]) * len(times) / (len(times) - 1))


def _moment(path: Path, line: int, text: str) -> tuple[datetime, float]:
    """ISO time to the microsecond, and the digits behind that in seconds."""
    body, dot, tail = text.partition(".")
    digits = len(tail) - len(tail.lstrip("0123456789"))
    fraction, zone = tail[:digits], tail[digits:]
    try:
        moment = datetime.fromisoformat(body.replace(" ", "T") + zone)
    except ValueError:
        raise ExperimentError(f"{path}, line {line}: {text!r} is neither a number nor an ISO time") from None
    return moment, float(f"0.{fraction}") if dot and fraction else 0.0
