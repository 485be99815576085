"""``torch.compile`` for serving: everything is compiled before the first batch, and nothing ever after.

A compilation takes seconds to minutes (measured here on two busy cores: MiniLM 230 s with an empty cache of
Inductor's, 35 s with a full one), so it must happen neither in a batch nor while batches wait for a turn.
With ``dynamic=True`` one program serves all sizes from 2 on, and size 1, which PyTorch always treats as
another case, gets its own. They are made by calling the compiled module with batches of
:func:`trial_sizes`, beside the batches of other models. After that the module is called in a way that uses
what has been compiled and compiles nothing (:func:`torch._dynamo.run`): inputs that none of the programs is
for, which would mean another compilation, run as if there were no ``torch.compile``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from worker.definition import DefinitionError
from worker.torch_model import Model


def trial_sizes(max_batch: int) -> list[int]:
    """Batches that make PyTorch compile all that it will: 1, one that shows that sizes vary, the largest."""
    return sorted({size for size in (1, 2, 3, max_batch) if size <= max_batch})


def compile_for(
    model: Model,
    inputs: Iterable[tuple[int, Mapping[str, Tensor]]],
    alone: Callable[[], AbstractContextManager[None]],
    cuda: bool,
) -> None:
    """Compile ``model`` for these inputs; from then on it runs compiled.

    Args:
        inputs: a batch's size and its tensors on the device, one after the other.
        alone: what the runs happen in; over with them at its end.
        cuda: whether the device is one.

    Raises:
        DefinitionError: it cannot be compiled (no C++ compiler, an operator that Inductor does not know).
    """
    # On a CPU compilers would take the cores from the models that serve; on CUDA they are processes that
    # PyTorch keeps until the end of this one.
    options: dict[str, Any] | None = None if cuda else {"compile_threads": 1}
    compiled = torch.compile(model.module, dynamic=True, options=options)
    for size, tensors in inputs:
        try:
            with alone():
                compiled(**tensors)
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:
            cause = getattr(error, "inner_exception", None) or error
            text = " ".join(str(cause).split())[:300]
            raise DefinitionError(
                f"model {model.definition.name!r}: compile: a batch of {size}: {type(cause).__name__}: {text}"
            ) from error
    if cuda:
        importlib.import_module("torch._inductor.async_compile").shutdown_compile_workers()
    model.run = torch._dynamo.run(model.module)
