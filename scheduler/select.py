"""Picks the scheduling core: compiled to C where the build made it, Python otherwise.

``SYMPHONY_PURE=1`` in the environment forces Python. Both stay importable side by side.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from scheduler.core.machine import Core as PythonCore


def compiled_core() -> type[PythonCore] | None:
    """The compiled class, or None where the build has none."""
    try:
        module: Any = importlib.import_module("scheduler.compiled.machine")
    except ImportError:
        return None
    core: type[PythonCore] = module.Core
    return core


def flavour() -> str:
    """``compiled`` or ``python``: what :func:`core_class` gives."""
    return "python" if core_class() is PythonCore else "compiled"


def core_class() -> type[PythonCore]:
    """The core to use."""
    if os.environ.get("SYMPHONY_PURE", "") not in ("", "0"):
        return PythonCore
    return compiled_core() or PythonCore
