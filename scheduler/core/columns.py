# cython: language_level=3
"""Growing typed columns: arrays that compiled code views as C memory cannot be resized in place."""

from __future__ import annotations

from array import array
from typing import Any


def widen(typecode: str, column: Any, more: int, fill: int = 0) -> Any:
    """A copy of ``column`` with ``more`` entries of ``fill`` behind it, as ``array(typecode)``.

    Returned as Any: the compiled core keeps it as a typed memory view, Python as the array.
    """
    wide = array(typecode)
    wide.frombytes(bytes(memoryview(column)))
    wide.extend(array(typecode, [fill]) * more)
    return wide


def packed(*columns: Any) -> list[Any] | None:
    """Columns without gaps between their entries, as compiled code reads them; None if there were none."""
    views = [None if column is None else memoryview(column) for column in columns]
    if all(view is None or view.contiguous for view in views):
        return None
    return [view and memoryview(view.tobytes()).cast(view.format) for view in views]  # type: ignore[call-overload]
