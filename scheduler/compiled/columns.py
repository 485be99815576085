"""Growing columns, for the compiled modules beside this one: NumPy's memory instead of arrays'.

NumPy asks the kernel for huge pages where a column is large. Queues are touched at thousands of places
a millisecond, so with small pages every other arrival would wait for the page tables.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def widen(typecode: str, column: Any, more: int, fill: int = 0) -> Any:
    """A copy of ``column`` with ``more`` entries of ``fill`` behind it."""
    old = np.asarray(column)
    wide = np.full(len(old) + more, fill, dtype=np.dtype(typecode))
    wide[: len(old)] = old
    return wide
