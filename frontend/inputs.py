"""What requests carry: random tensors by the model's specification, or a function of the user's.

Inputs are made and encoded before the load starts, and then take turns: making them must not slow the
generator down.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from symphony.control import ModelSpec, TensorSpec
from symphony.status import InvalidRequest, SymphonyError
from symphony.tensors import DTYPES, Encoded, encode_inputs

Provider = Callable[[int, np.random.Generator], Mapping[str, Any]]
"""``provider(i, rng)`` returns the inputs of the i-th item of the pool, by tensor name."""

POOL: Final = 64
POOL_BYTES: Final = 64 << 20
ANY_LENGTH: Final = 8
"""What a dimension of -1 becomes."""
_WORDS: Final = (
    "time",
    "person",
    "year",
    "way",
    "day",
    "thing",
    "world",
    "life",
    "hand",
    "part",
    "child",
    "eye",
)


class InputError(SymphonyError, ValueError):
    """Inputs for a load cannot be made."""


def find_provider(text: str) -> Provider:
    """The function behind ``module:function``; modules of the current folder are found, too.

    Raises:
        InputError: there is no such module or function.
    """
    module_name, colon, name = text.partition(":")
    if not colon or not module_name or not name:
        raise InputError(f"inputs must be given as module:function, not {text!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(f"inputs {text!r}: cannot import {module_name!r}: {error}") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"inputs {text!r}: {module_name!r} has no function {name!r}")
    provider: Provider = function
    return provider


def make_pool(spec: ModelSpec, provider: Provider | None, rng: np.random.Generator) -> list[Encoded | None]:
    """Encoded inputs that requests take in turn; a single None for a model without inputs.

    Args:
        spec: the model.
        provider: makes the inputs; None makes random ones.
        rng: the only source of chance.

    Raises:
        InputError: the provider raised, or gave what the model does not take.
    """
    if provider is None:
        if not spec.inputs:
            return [None]
        provider = _random_provider(spec)
    pool: list[Encoded | None] = []
    size = 0
    for i in range(POOL):
        try:
            item = encode_inputs(spec.inputs, provider(i, rng))
        except InvalidRequest as error:
            raise InputError(f"inputs for {spec.name!r} do not fit: {error}") from None
        except Exception as error:  # noqa: BLE001 - the user's function may raise anything
            raise InputError(f"the function that makes inputs for {spec.name!r} raised {error!r}") from None
        pool.append(item)
        size += sum(len(frame) for frame in item.frames)
        if size > POOL_BYTES:
            break
    return pool


def _random_provider(spec: ModelSpec) -> Provider:
    def provider(_: int, rng: np.random.Generator) -> Mapping[str, Any]:
        return {tensor.name: _random(tensor, rng) for tensor in spec.inputs}

    return provider


def _random(tensor: TensorSpec, rng: np.random.Generator) -> Any:
    shape = [ANY_LENGTH if dimension == -1 else dimension for dimension in tensor.shape]
    if tensor.dtype == "BYTES":
        count = int(np.prod(shape, dtype=np.int64))
        texts = np.empty(count, dtype=object)
        texts[:] = [" ".join(rng.choice(_WORDS, rng.integers(4, 16))) for _ in range(count)]
        return texts.reshape(shape)
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        raise InputError(
            f"no random inputs of type {tensor.dtype!r} for tensor {tensor.name!r}: name a function"
        )
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    high = 2 if dtype.kind == "b" else 128
    return rng.integers(0, high, shape).astype(dtype)
