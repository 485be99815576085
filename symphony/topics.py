"""What travels on the control channel: topics by family, and the body that each one has.

A topic is ``member``, ``model`` or ``plan`` (the broker's own), or a family and its publisher:
``done.worker-0``.
The broker checks with :func:`decode_body` what publishers send, so that subscribers get nothing that
they cannot read; ``symphony telemetry`` shows with it what they got.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgpack

from symphony import control, wire
from symphony.control import MAX_CONTROL_BYTES, MemberEvent, ModelEvent, ScaleDecision
from symphony.plans import PlanEvent
from symphony.wire import Done, WireError

MAX_TOPIC_BYTES: Final = 192
MAX_DEPTH: Final = 16

OWN: Final = ("member", "model", "plan")
"""Topics that only the broker publishes."""
MAPS: Final = ("stats", "event", "gpu")
"""Families whose bodies are maps: numbers of shards, facts from members, what a worker's GPU tells."""

Body = MemberEvent | ModelEvent | PlanEvent | ScaleDecision | Done | dict[str, Any]


def decode_topic(frame: bytes) -> tuple[str, str]:
    """``(family, publisher)``; the publisher is empty for the broker's own topics.

    Raises:
        WireError: ``bad-topic``.
    """
    if len(frame) > MAX_TOPIC_BYTES or not frame.isascii():
        raise WireError("bad-topic", repr(frame[:40]))
    text = frame.decode("ascii")
    if not text.isprintable() or not text:
        raise WireError("bad-topic", repr(frame[:40]))
    family, _, publisher = text.partition(".")
    return family, publisher


def decode_body(family: str, publisher: str, body: bytes) -> Body:
    """The body of a message on topic ``family.publisher``.

    ``member``, ``model``, ``plan``: the control messages of those names. ``done.<worker>``:
    :class:`Done`. ``decision.<shard>``: :class:`ScaleDecision`. ``stats.<shard>``,
    ``event.<member>``, ``gpu.<worker>``: a map with string keys.

    Raises:
        WireError: ``unknown-topic``, ``foreign-topic`` (a body of another publisher), or what the
            body's own decoder says.
    """
    if family in OWN and not publisher:
        message = control.decode_control(body)
        if not isinstance(message, MemberEvent | ModelEvent | PlanEvent) or message.type != family:
            raise WireError("unexpected", message.type)
        return message
    if family == "done" and publisher:
        done = wire.decode_done(body)
        if done.worker != publisher:
            raise WireError("foreign-topic", f"{done.worker!r} published as {publisher!r}")
        return done
    if family == "decision" and publisher:
        decision = control.decode_control(body)
        if not isinstance(decision, ScaleDecision):
            raise WireError("unexpected", decision.type)
        if decision.shard != publisher:
            raise WireError("foreign-topic", f"{decision.shard!r} published as {publisher!r}")
        return decision
    if family in MAPS and publisher:
        return _decode_map(body)
    raise WireError("unknown-topic", f"{family}.{publisher}"[:60])


def _decode_map(body: bytes) -> dict[str, Any]:
    if len(body) > MAX_CONTROL_BYTES:
        raise WireError("oversized", f"{len(body)} bytes")
    try:
        value = msgpack.unpackb(body, raw=False)
    except Exception as error:  # noqa: BLE001 - msgpack raises many types on hostile bytes
        raise WireError("malformed", type(error).__name__) from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise WireError("malformed", "no map with string keys")
    if value.get("v", wire.VERSION) != wire.VERSION:
        raise WireError("wrong-version", wire.shown(value["v"]))
    return value


def to_json(body: Body) -> dict[str, Any]:
    """The same as plain values for ``json.dumps``; a :class:`Done` has one entry per batch.

    Times stay nanoseconds of cluster time.
    """
    if isinstance(body, Done):
        names = ("batch", "gpu", "model", "size", "failed", "received", "exec_at", "started", "finished")
        columns = [getattr(body, name).tolist() for name in names]
        batches = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        for batch in batches:
            batch["model"] = body.models[batch["model"]]
        return {"worker": body.worker, "sequence": body.sequence, "batches": batches}
    values = body if isinstance(body, dict) else body.model_dump(exclude={"type", "v"})
    shown: dict[str, Any] = plain(values)
    return shown


def plain(value: Any, depth: int = 0) -> Any:
    """What JSON can hold: null for infinity and NaN, hex for bytes, and nothing nested too deep."""
    if depth > MAX_DEPTH:
        return "…"
    if isinstance(value, dict):
        return {str(key): plain(entry, depth + 1) for key, entry in value.items()}
    if isinstance(value, list):
        return [plain(entry, depth + 1) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no such number
    if isinstance(value, str | int | float | bool | None):
        return value
    return value.hex() if isinstance(value, bytes) else str(value)
