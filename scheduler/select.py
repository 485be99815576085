"""Picks the scheduling core: compiled to C where the build made it, Python otherwise.

``SYMPHONY_PURE=1`` in the environment forces Python. Both stay importable side by side. A compiled core
that is older than its sources is not used, so that an edit never goes unnoticed.
"""

from __future__ import annotations

import functools
import importlib
import logging
from pathlib import Path
from typing import Any

from scheduler.core import tallies as python_tallies
from scheduler.core.machine import Core as PythonCore
from scheduler.core.replay import Replay as PythonReplay
from symphony.native import overtaken, pure

_log = logging.getLogger(__name__)


@functools.cache
def compiled_core() -> type[PythonCore] | None:
    """The compiled class, or None where the build has none or an edited source has overtaken it."""
    try:
        module: Any = importlib.import_module("scheduler.compiled.machine")
    except ImportError:
        return None
    except ValueError as error:  # modules of two builds beside each other
        _log.warning(
            "the compiled core does not fit together (%s): using Python; `make env` compiles it", error
        )
        return None
    here = Path(__file__).parent
    modules = {path.name.split(".")[0]: path for path in (here / "compiled").glob("*.so")}
    sources = [*(here / "core").glob("*.py"), *(here / "compiled").glob("*.pxd")]
    sources = [path for path in sources if path.stem in modules or path.suffix == ".pxd"]
    newest = overtaken(modules.values(), sources)
    if newest is not None:
        _log.warning("the compiled core is older than %s: using Python; `make env` compiles it", newest.name)
        return None
    core: type[PythonCore] = module.Core
    return core


def flavour() -> str:
    """``compiled`` or ``python``: what :func:`core_class` gives."""
    return "python" if core_class() is PythonCore else "compiled"


def core_class() -> type[PythonCore]:
    """The core to use."""
    if pure():
        return PythonCore
    return compiled_core() or PythonCore


def replay_class() -> type[PythonReplay]:
    """The driver in virtual time that fits :func:`core_class`."""
    if core_class() is PythonCore:
        return PythonReplay
    try:
        module: Any = importlib.import_module("scheduler.compiled.replay")
    except ImportError:
        return PythonReplay
    replay: type[PythonReplay] = module.Replay
    return replay


def ledger() -> Any:
    """The compiled loops of :mod:`scheduler.core.ledger`; None where the core is not compiled."""
    if core_class() is PythonCore:
        return None
    try:
        return importlib.import_module("scheduler.compiled.ledger")
    except ImportError:
        return None


def tallies() -> Any:
    """The loops of :mod:`scheduler.core.tallies` that fit :func:`core_class`."""
    if core_class() is not PythonCore:
        try:
            return importlib.import_module("scheduler.compiled.tallies")
        except ImportError:
            pass
    return python_tallies
