"""One question to a broker, for tools that are no members: who is there?"""

from __future__ import annotations

import zmq

from symphony import control
from symphony.bus import Bus, BusError, send
from symphony.control import Snapshot
from symphony.status import Unavailable
from symphony.wire import WireError


def fetch_snapshot(registry_endpoint: str, timeout_s: float = 2.0) -> Snapshot:
    """Ask a broker once for all that it knows.

    Raises:
        Unavailable: nobody answered within ``timeout_s`` seconds, or not as a broker does.
        BusError: the endpoint is malformed.
    """
    with Bus() as bus:
        sock = bus.connect(zmq.DEALER, registry_endpoint)
        if not send(sock, control.encode_control(control.AskSnapshot())):
            raise BusError(f"cannot send to {registry_endpoint}")
        if not sock.poll(int(timeout_s * 1_000)):
            raise Unavailable(
                f"no broker answered at {registry_endpoint} within {timeout_s:g} s: "
                "is the cluster running (symphony up), and is this the registry's address?"
            )
        frames = sock.recv_multipart()
        try:
            answer = control.decode_control(frames[0])
        except WireError as error:
            raise Unavailable(
                f"what answers at {registry_endpoint} is no broker of this version: {error}"
            ) from None
        if not isinstance(answer, Snapshot):
            raise Unavailable(
                f"the broker at {registry_endpoint} answered {answer.type!r} instead of a snapshot"
            )
        return answer
