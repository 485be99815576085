"""Workers ask for the inputs of the requests in their batches; this answers, copying nothing large."""

from __future__ import annotations

from typing import Any

import numpy as np

from symphony import wire
from symphony.faults import Faults
from symphony.pending import PendingTable
from symphony.tensors import Encoded
from symphony.wire import WireError

_NO_INPUTS = Encoded((), [], [])


def serve(frames: list[bytes], table: PendingTable, faults: Faults) -> list[Any] | None:
    """The answer to one message of the fetch socket (ROUTER), None if there is nobody to answer.

    Requests that are not waited for any more are left out, so a worker need not run them. One
    answer names its tensors once: of requests for models with other tensors than the first one's
    nothing is sent.

    Args:
        frames: ``[identity, FETCH]``; anybody who knows the port can have sent it.
        table: the requests that wait.
        faults: counts ``fetch-<reason>``.

    Returns:
        ``[identity, TENSORS, tensor, …]``, to be sent with ``copy=False``.
    """
    try:
        if len(frames) != 2:
            raise WireError("malformed", f"{len(frames)} frames instead of 2")
        fetch, keys = wire.decode_fetch(frames[1])
    except WireError as error:
        faults.count(f"fetch-{error.reason}", error)
        return None
    names: tuple[str, ...] | None = None
    found: list[int] = []
    specs: list[list[Any]] = []
    payload: list[Any] = []
    for key in dict.fromkeys(keys.tolist()):
        request = table.get(key)
        if request is None:
            continue
        inputs = request.inputs or _NO_INPUTS
        if names is None:
            names = inputs.names
        elif names != inputs.names:
            faults.count("fetch-mixed", f"{names} and {inputs.names}")
            continue
        found.append(key)
        specs += inputs.specs
        payload += inputs.frames
    header = wire.encode_tensors(wire.Tensors(fetch, np.array(found, np.uint64), list(names or ()), specs))
    return [frames[0], header, *payload]
