"""From a definition's references to code: import, call, and errors that say which line to change."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from symphony.status import SymphonyError
from symphony.tensors import BYTES, DTYPES
from worker.definition import Definition, DefinitionError

Inputs = dict[str, npt.NDArray[Any]]


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let a definition name a module that lies beside its file."""
    entry = str(folder.resolve())
    added = entry not in sys.path
    if added:
        sys.path.append(entry)
    try:
        yield
    finally:
        if added:
            sys.path.remove(entry)


_MARKS: dict[str, tuple[int, int]] = {}
"""By file of a module beside a definition: its time and size when it was imported."""


def _imported(name: str, base: Path) -> ModuleType:
    """Import a module; one that lies in ``base`` and has changed since anew, beside what was made of the
    old one, which goes on as it is."""
    held = sys.modules.get(name)
    file = getattr(held, "__file__", None)
    if isinstance(file, str) and file in _MARKS and _mark(file) != _MARKS[file]:
        del sys.modules[name]
        # Bytecode is told from its source by whole seconds and the size.
        Path(importlib.util.cache_from_source(file)).unlink(missing_ok=True)
        importlib.invalidate_caches()
    module = importlib.import_module(name)
    file = getattr(module, "__file__", None)
    if isinstance(file, str) and Path(file).resolve().is_relative_to(base.resolve()):
        _MARKS[file] = _mark(file)
    return module


def _mark(file: str) -> tuple[int, int]:
    try:
        status = os.stat(file)
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def resolve(definition: Definition, key: str, reference: str) -> Callable[..., Any]:
    """The function that ``module:function`` names; modules beside the definition's file are found.

    Raises:
        DefinitionError: no such module or function, or importing it failed; ``key`` is named.
    """
    module_name, _, function_name = reference.partition(":")
    origin = f"model {definition.name!r}: {key}: {reference!r}"
    try:
        with _importable(definition.base):
            module = _imported(module_name, definition.base)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise DefinitionError(
                f"{origin}: there is no module {error.name!r} on the Python path or in {definition.base}"
            ) from None
        raise DefinitionError(
            f"{origin}: the module needs {error.name!r}, which is not installed "
            "(the zoo's models need: pip install 'symphony-serving[zoo]')"
        ) from None
    except Exception as error:
        raise DefinitionError(f"{origin}: importing it raised {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise DefinitionError(f"{origin}: module {module_name!r} has no function {function_name!r}")
    return function  # type: ignore[no-any-return]


def call(definition: Definition, key: str, reference: str, *args: Any, **options: Any) -> Any:
    """Call what ``reference`` names; whatever it raises becomes a :class:`DefinitionError`."""
    function = resolve(definition, key, reference)
    try:
        return function(*args, **options)
    except SymphonyError as error:
        raise DefinitionError(f"model {definition.name!r}: {error}") from error
    except Exception as error:
        raise DefinitionError(
            f"model {definition.name!r}: {key}: {reference!r} raised {type(error).__name__}: {error}"
        ) from error


def sampler(definition: Definition) -> Callable[[np.random.Generator], Inputs] | None:
    """A function that makes one request's inputs; None if nobody can tell what they should be.

    It is the definition's ``samples``; without, normal noise where every input is a number of a fixed
    shape.

    Raises:
        DefinitionError: ``samples`` names no function.
    """
    if definition.samples is not None:
        function: Callable[[np.random.Generator], Inputs] = resolve(definition, "samples", definition.samples)
        return function
    if any(spec.dtype == BYTES or -1 in spec.shape for spec in definition.inputs):
        return None

    def noise(rng: np.random.Generator) -> Inputs:
        return {
            spec.name: np.asarray(rng.standard_normal(spec.shape)).astype(DTYPES[spec.dtype])
            for spec in definition.inputs
        }

    return noise
