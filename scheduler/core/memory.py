"""How much memory a core's columns hold, by what they grow with."""

from __future__ import annotations

from typing import Any

from .machine import Core


def memory(core: Core) -> dict[str, int]:
    """Bytes of all columns: of ``queued`` requests, of ``models`` (their lanes among it), of ``gpus``, of
    ``actions`` not yet cleared, and those that are there ``once``.

    What is spare counts too; columns grow by doubling and stay. Besides them there are a few hundred bytes
    per model in Python objects: the contents of its latency tables, shared by models with equal ones.
    """
    gpus = core.gpus
    lanes = [core.meter, core.models, core.pending, core.touched, core.fresh, *core.ready]
    found = {
        "queued": _bytes(core.queues.slab),
        "models": _bytes(core.queues.record) + sum(map(_columns, lanes)),
        "gpus": _columns(gpus) + sum(map(_columns, [*gpus.idle, *gpus.busy])),
        "actions": _columns(core.actions) - _bytes(core.actions.drop_due),
        "once": _bytes(core.last_key) + _bytes(core.type_margin),
    }
    found["models"] += _columns(core) - found["once"] - _bytes(core.ended)
    found["gpus"] += _bytes(core.ended)
    return found


def _columns(part: object) -> int:
    """Bytes of the columns among the attributes of one object."""
    return sum(_bytes(getattr(part, name)) for name in dir(part) if not name.startswith("__"))


def _bytes(column: Any) -> int:
    """Bytes of an array, or of a column of the compiled core; 0 of anything else."""
    if type(column).__name__ not in ("array", "_memoryviewslice"):
        return 0
    return memoryview(column).nbytes
