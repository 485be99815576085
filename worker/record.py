"""What a worker tells the cluster of itself: its record, and the specifications of its models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from symphony.control import Member, ModelSpec
from worker.holdings import Ready
from worker.runners import Runner


def announced(
    me: Member, state: str, runner: Runner, ready: Ready, unknown: Mapping[str, str]
) -> tuple[Member, list[ModelSpec]]:
    """The record that says what is there now.

    Args:
        me: the record so far.
        state: ``loading``, ``ready`` or ``draining``.
        runner: knows which GPU holds what.
        ready: what serves.
        unknown: models that are wanted here and not known, and why.
    """
    record = {
        "state": state,
        "models": list(ready.profiles),
        "gpus": [gpu.model_copy(update={"memory_mb": ready.memory_mb}) for gpu in me.gpus],
        "holds": runner.holds(),
        "failed": {**unknown, **runner.failed()},
    }
    models = [
        definition.spec({ready.gpu_type: ready.profiles[name]}, ready.load_ms.get(name, 0.0))
        for name, definition in ready.definitions.items()
    ]
    return me.model_copy(update=record), models


def span(numbers: Iterable[int]) -> str:
    """``0-7`` for neighbours, ``0, 2`` otherwise, ``none``."""
    ordered = sorted(numbers)
    if len(ordered) > 2 and ordered[-1] - ordered[0] == len(ordered) - 1:
        return f"{ordered[0]}-{ordered[-1]}"
    return ", ".join(map(str, ordered)) or "none"
