"""The model zoo: definition files that ship with Symphony, found by name.

``minilm``, ``crepe-tiny`` and ``crepe-full`` are real networks with their published weights on real devices,
``resnet50``, ``vit-b16``, ``bert-base`` and ``efficientnet-b0`` with random ones unless a file is named;
``resnet50-emulated`` is the same model's name with a profile only, for emulated GPUs.
"""

from __future__ import annotations

from pathlib import Path


def names() -> list[str]:
    """The names of the zoo's definitions, sorted."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.yaml"))


def path(name: str) -> Path:
    """The definition file of one zoo entry. Raises KeyError for a name that is not in :func:`names`."""
    if name not in names():
        raise KeyError(name)
    return Path(__file__).parent / f"{name}.yaml"
