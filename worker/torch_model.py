"""From a definition to something that runs: a module, its hooks, its weights.

A loader is one of

* ``module:function``: called as ``function(device, **options)``, returns a ``torch.nn.Module``;
* ``FILE.pt2``: a program that ``torch.export.save`` wrote;
* ``FILE.ts`` or ``FILE.torchscript``: a TorchScript archive.

Programs from files get their inputs by position, in the definition's order.

``weights`` names a state dict (``.safetensors``, or ``.pt``/``.pth`` read with ``weights_only``) that is
filled into what ``module:function`` returned; every key must fit. A module may have hooks besides
``forward``, and a definition may name functions instead (``check``, ``preprocess``, ``postprocess``):

* ``check(item)``: raise :class:`~symphony.status.InvalidRequest` for one request's bad contents;
* ``preprocess(items)``: list of ``{input: array}`` → ``{argument of forward: CPU tensor}``, by default
  each input stacked along a new first dimension;
* ``postprocess(outputs)``: ``{output: CPU tensor}`` → ``{output: array}`` with one row per item.

``forward`` returns one tensor, a tuple in the order of the definition's outputs, or a dict by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from symphony.status import SymphonyError
from symphony.tensors import BYTES
from worker.definition import Definition, DefinitionError
from worker.device import Item
from worker.graphs import Graphs
from worker.loading import call, resolve
from worker.zoo.weights import fill, load_state

DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(slots=True)
class Model:
    """One loaded copy. ``run``: the module, or what :mod:`worker.compiling` made of it."""

    definition: Definition
    module: nn.Module
    run: Callable[..., Any]
    check: Callable[[Item], None] | None
    preprocess: Callable[[Sequence[Item]], Mapping[str, Tensor]]
    postprocess: Callable[[dict[str, Tensor]], Mapping[str, npt.NDArray[Any]]]
    stacks: bool = False
    """There is no ``preprocess``: each input is its items' arrays, one per row."""
    graphs: Graphs | None = None

    def weights_bytes(self) -> int:
        """Of parameters and buffers."""
        held = {t.data_ptr(): t.nbytes for t in (*self.module.parameters(), *self.module.buffers())}
        return sum(held.values())

    def inputs(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Collated CPU tensors in the model's precision."""
        wanted = DTYPES[self.definition.precision]
        made = self.preprocess(items)
        return {k: t.to(wanted) if t.is_floating_point() else t for k, t in made.items()}

    def rows(self, items: Sequence[Item]) -> dict[str, Rows]:
        """The same where :attr:`stacks`, but not made yet."""
        wanted = DTYPES[self.definition.precision]
        made = {}
        for spec in self.definition.inputs:
            arrays = [item[spec.name] for item in items]
            own = torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype
            made[spec.name] = Rows(arrays, own, wanted if own.is_floating_point else own)
        return made


class Rows(NamedTuple):
    """Arrays of one shape and the type ``own``, to be rows of a tensor of type ``dtype``."""

    arrays: list[npt.NDArray[Any]]
    own: torch.dtype
    dtype: torch.dtype

    def fill(self, view: Tensor) -> None:
        """Write them into ``view``, and copies of the last one where it has more rows: one pass over large
        memory, where stacking, converting and copying are three."""
        count = len(self.arrays)
        if self.own == self.dtype:
            np.stack(self.arrays, out=view[:count].numpy())
        else:
            one = torch.empty(self.arrays[0].shape, dtype=self.own)  # stays in the processor's cache
            for row, array in zip(view, self.arrays, strict=False):
                np.copyto(one.numpy(), array)
                row.copy_(one)
        if count < len(view):
            view[count:] = view[count - 1]


def load_model(definition: Definition, device: torch.device) -> Model:
    """Load, fill, move.

    Raises:
        DefinitionError: files, functions, weights or what comes out of them are not what they should be.
    """
    if definition.file is not None:
        module = _from_file(definition, definition.file, device)
    else:
        module = call(definition, "loader", definition.loader, device, **definition.options)
        if not isinstance(module, nn.Module):
            raise DefinitionError(
                f"model {definition.name!r}: loader: {definition.loader!r} returned "
                f"{type(module).__name__}; expected a torch.nn.Module"
            )
        if definition.weights is not None:
            try:
                fill(module, load_state(definition.base / definition.weights), definition.weights)
            except SymphonyError as error:
                raise DefinitionError(f"model {definition.name!r}: {error}") from None
        module = module.to(device, DTYPES[definition.precision]).eval()
    hooks = {name: _hook(definition, module, name) for name in ("check", "preprocess", "postprocess")}
    if hooks["preprocess"] is None:
        _check_stackable(definition)
    return Model(
        definition,
        module,
        module,
        hooks["check"],
        hooks["preprocess"] or (lambda items: _stack(definition, items)),
        hooks["postprocess"] or (lambda outputs: {k: _to_numpy(t) for k, t in outputs.items()}),
        stacks=hooks["preprocess"] is None,
    )


def by_name(definition: Definition, outputs: Any) -> dict[str, Tensor]:
    """What ``forward`` returned, by the definition's names. Raises ValueError if there are more or fewer."""
    names = [spec.name for spec in definition.outputs]
    if isinstance(outputs, Mapping):
        return dict(outputs)
    values = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
    if len(values) != len(names):
        raise ValueError(f"the model returned {len(values)} outputs; its definition says {', '.join(names)}")
    return dict(zip(names, values, strict=True))


def _hook(definition: Definition, module: nn.Module, name: str) -> Callable[..., Any] | None:
    reference = getattr(definition, name)
    if reference is not None:
        return resolve(definition, name, reference)
    found = getattr(module, name, None)
    return found if callable(found) else None


def _check_stackable(definition: Definition) -> None:
    for spec in definition.inputs:
        if spec.dtype == BYTES or -1 in spec.shape:
            raise DefinitionError(
                f"model {definition.name!r}: input {spec.name!r} cannot be stacked as it is "
                f"({spec.dtype} {spec.shape}): its module needs preprocess(items)"
            )


class _Positional(nn.Module):
    """A loaded program, whose arguments go by position: the definition's inputs, or what ``preprocess``
    returned, in that order."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **tensors: Tensor) -> Any:
        return self.inner(*tensors.values())


def _from_file(definition: Definition, file: Path, device: torch.device) -> nn.Module:
    where = f"model {definition.name!r}: loader: {file}"
    if not file.is_file():
        raise DefinitionError(f"{where}: there is no such file")
    if definition.precision != "float32":
        raise DefinitionError(
            f"{where}: precision {definition.precision}: a saved program has the precision it was saved in; "
            "convert the module before it is exported, and leave precision out"
        )
    try:
        if file.suffix == ".pt2":
            program = torch.export.load(file)
            if device.type != "cpu":
                from torch.export.passes import move_to_device_pass

                program = move_to_device_pass(program, device)
            return _Positional(program.module())
        if definition.compile:
            raise DefinitionError(f"{where}: compile: torch.compile does nothing for TorchScript")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript itself is
            script = torch.jit.load(str(file), map_location=device).eval()  # type: ignore[no-untyped-call]
        return _Positional(script)
    except (torch.OutOfMemoryError, DefinitionError):
        raise
    except Exception as error:
        kind = "torch.export" if file.suffix == ".pt2" else "TorchScript"
        text = " ".join(str(error).split())[:200]
        raise DefinitionError(f"{where}: no {kind} program: {type(error).__name__}: {text}") from error


def _stack(definition: Definition, items: Sequence[Item]) -> dict[str, Tensor]:
    return {
        spec.name: torch.from_numpy(np.stack([item[spec.name] for item in items]))
        for spec in definition.inputs
    }


def _to_numpy(tensor: Tensor) -> npt.NDArray[Any]:
    # NumPy knows no bfloat16.
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
