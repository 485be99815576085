"""Picks compiled modules: C where the build made it and no edit has overtaken it, Python otherwise.

``SYMPHONY_PURE=1`` in the environment forces Python.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

_log = logging.getLogger(__name__)

UNPACKING_S: Final = 10
"""Files of one installation may be written that far apart."""


def pure() -> bool:
    """Whether the environment asks for Python."""
    return os.environ.get("SYMPHONY_PURE", "") not in ("", "0")


def overtaken(binaries: Iterable[Path], sources: Iterable[Path]) -> Path | None:
    """The newest of the sources where it is newer than the oldest binary; None: they are up to date."""
    built = min(path.stat().st_mtime for path in binaries)
    newest = max(sources, key=lambda path: path.stat().st_mtime)
    return newest if newest.stat().st_mtime > built + UNPACKING_S else None


def compiled(name: str, package: str = "symphony", folder: str = "wire") -> Any:
    """The module ``PACKAGE.compiled.NAME`` of ``PACKAGE/FOLDER/NAME.py``; None: not there, or too old."""
    here = Path(__file__).parent.parent / package
    try:
        module: Any = importlib.import_module(f"{package}.compiled.{name}")
    except ImportError:
        return None
    types = here / "compiled"
    sources = [here / folder / f"{name}.py", types / f"{name}.pxd", types / "loads.pxd"]
    newest = overtaken([Path(module.__file__)], filter(Path.exists, sources))
    if newest is None:
        return module
    _log.warning("compiled %s is older than %s: using Python; `make env` compiles it", name, newest.name)
    return None
