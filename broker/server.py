"""The broker process: three sockets around the registry and the control channel.

- **registry** (ROUTER): members and tools ask, each message gets one answer;
- **publish** (XSUB): publishers connect here, ``[topic, body]``;
- **subscribe** (XPUB): subscribers connect here and get ``[topic, stamp, body]``. What they subscribe
  to is handed on to the publishers, so that what nobody wants never leaves its process.

A subscriber that does not read loses its own messages and nobody else's; it sees the gap in the
numbers. Nothing that arrives here stops the loop: it is counted by reason, and answered where there is
somebody to answer.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from typing import Final

import zmq

from broker.channel import Channel, check_subscription
from broker.processes import Neighbours
from broker.registry import MS, Registry
from symphony import control
from symphony.bus import Bus, drain, send
from symphony.clock import ClusterClock
from symphony.control import MAX_CONTROL_BYTES, encode_control, encode_stamp
from symphony.faults import Faults
from symphony.plans import Declined, PlanEvent
from symphony.stopping import StopRequest
from symphony.waiter import Waiter
from symphony.wire import WireError

_log = logging.getLogger(__name__)

TICK_NS: Final = 100 * MS
SUBSCRIBER_HWM: Final = 20_000
"""Messages that wait for a slow subscriber before it begins to lose some."""
MAX_FRAME: Final = 2 * MAX_CONTROL_BYTES
MAX_SUBSCRIPTION: Final = 4_096


class Broker:
    """One broker; :meth:`start`, :meth:`run` until :meth:`stop`, :meth:`close`.

    All but :meth:`stop` belong to one thread. Arguments are those of :func:`run_broker`.
    """

    def __init__(
        self,
        registry: str,
        publish: str,
        subscribe: str,
        *,
        heartbeat_ms: int = 500,
        lease_ms: int = 2_000,
        fresh: bool = False,
        insecure: bool = False,
    ) -> None:
        self.registry, self.publish, self.subscribe = registry, publish, subscribe
        self.incarnation = time.time_ns()
        self.faults = Faults(_log)
        self.clock = ClusterClock.origin()
        self.stopping = StopRequest()
        self.members = Registry(
            self.incarnation, time.monotonic_ns(), heartbeat_ms=heartbeat_ms, lease_ms=lease_ms, fresh=fresh
        )
        self._channel = Channel(self.incarnation)
        self._neighbours = Neighbours(socket.gethostname())
        self._bus = Bus(insecure=insecure)
        self._waiter = Waiter()
        self._tick_at = time.monotonic_ns()

    def start(self) -> None:
        """Bind; afterwards ``registry``, ``publish`` and ``subscribe`` are what peers connect to.

        Raises:
            BusError: a port is in use, or an address that others can reach without ``insecure``.
        """
        self._router, self.registry = self._bus.bind(zmq.ROUTER, self.registry, max_message=MAX_FRAME)
        self._xsub, self.publish = self._bus.bind(zmq.XSUB, self.publish, max_message=MAX_FRAME)
        self._xpub, self.subscribe = self._bus.bind(
            zmq.XPUB, self.subscribe, hwm=SUBSCRIBER_HWM, max_message=MAX_SUBSCRIPTION, lossy=True
        )
        for watched in (self._router, self._xsub, self._xpub, self.stopping.fd):
            self._waiter.register(watched)

    def run(self) -> None:
        """Serve until :meth:`stop`."""
        while not self.stopping.is_set():
            self._waiter.wait(self._tick_at)
            self._forward_subscriptions()
            self._answer_members()
            self._forward_publications()
            self._tick()
            self._publish_events()

    def stop(self) -> None:
        """Make :meth:`run` return soon; from any thread or signal handler."""
        self.stopping.set()

    def close(self) -> None:
        """Close every socket; what is queued has a moment to leave."""
        self._bus.close(linger_ms=100)
        self._waiter.close()
        self.stopping.close()

    # -- the loop's steps ------------------------------------------------------------------------

    def _forward_subscriptions(self) -> None:
        for frames in drain(self._xpub):
            try:
                check_subscription(frames)
            except WireError as error:
                self.faults.count(f"subscribe-{error.reason}", error)
                continue
            if not send(self._xsub, frames):
                self.faults.count("subscribe-undelivered")

    def _answer_members(self) -> None:
        for frames in drain(self._router):
            peer, *body = frames
            answer = self._answer(body)
            # Who says goodbye need not wait for the answer.
            if not send(self._router, [peer, encode_control(answer)]) and answer.type != "left":
                self.faults.count("registry-undelivered", answer.type)
            self._publish_events()

    def _answer(self, body: list[bytes]) -> control.Control:
        try:
            if len(body) != 1:
                raise WireError("malformed", f"{len(body)} frames instead of one")
            message = control.decode_control(body[0])
        except WireError as error:
            self.faults.count(f"registry-{error.reason}", error)
            return control.Refused(reason=f"not understood: {error}"[:300])
        if isinstance(message, control.Join) and message.member.id in self.members.members:
            incarnation = self._neighbours.gone(message.member.id)
            if incarnation is not None:  # a quick restart: the process of before is no more
                self.members.dead(message.member.id, incarnation)
        answer = self.members.handle(time.monotonic_ns(), self.clock.now(), message)
        if isinstance(answer, control.Refused):
            self.faults.count("registry-refused", answer.reason)
        elif isinstance(answer, Declined):
            self.faults.count("plan-declined", answer.reason)
        return answer

    def _forward_publications(self) -> None:
        for frames in drain(self._xsub):
            try:
                stamped = self._channel.stamp(frames)
            except WireError as error:
                self.faults.count(f"publish-{error.reason}", error)
                continue
            self._send_out(stamped)

    def _tick(self) -> None:
        now = time.monotonic_ns()
        if now < self._tick_at:
            return
        self._tick_at = now + TICK_NS
        for member_id, incarnation in self._neighbours.all_gone():
            self.members.dead(member_id, incarnation)
        self.members.tick(now)

    def _publish_events(self) -> None:
        while self.members.events:
            number, event = self.members.events.popleft()
            if isinstance(event, control.MemberEvent):
                self._log_member(event)
                if event.event in ("join", "update"):
                    self._neighbours.saw(event.member)
                else:
                    self._neighbours.forget(event.member.id)
            elif isinstance(event, PlanEvent):
                _log.info("plan: %s; %s", event.plan.stamp, event.plan.note or "no note")
            stamp = encode_stamp(self.incarnation, number)
            self._send_out([event.type.encode(), stamp, encode_control(event)])

    def _send_out(self, frames: list[bytes]) -> None:
        if not send(self._xpub, frames):
            self.faults.count("subscribe-full", frames[0])

    def _log_member(self, event: control.MemberEvent) -> None:
        level = logging.WARNING if event.event == "death" else logging.INFO
        if event.event != "update":
            member = event.member
            _log.log(
                level,
                "%s of %s %s (pid %d on %s)",
                event.event,
                member.role,
                member.id,
                member.pid,
                member.host,
            )


def run_broker(
    registry: str = "tcp://127.0.0.1:5550",
    publish: str = "tcp://127.0.0.1:5551",
    subscribe: str = "tcp://127.0.0.1:5552",
    *,
    heartbeat_ms: int = 500,
    lease_ms: int = 2_000,
    fresh: bool = False,
    insecure: bool = False,
    ready: Callable[[Broker], None] | None = None,
) -> None:
    """Run a broker in this process, in the main thread, until SIGTERM or SIGINT.

    Args:
        registry: endpoint that members and tools ask.
        publish: endpoint that publishers connect to.
        subscribe: endpoint that subscribers connect to.
        heartbeat_ms: how often members show that they live.
        lease_ms: how long a silent member stays one.
        fresh: no member of an earlier broker can come back, so number new GPUs at once.
        insecure: allow addresses that other machines can reach.
        ready: called once the ports are bound.

    Raises:
        BusError: a port is in use, or the address is not allowed.
    """
    broker = Broker(
        registry,
        publish,
        subscribe,
        heartbeat_ms=heartbeat_ms,
        lease_ms=lease_ms,
        fresh=fresh,
        insecure=insecure,
    )
    try:
        with broker.stopping.on_signals():
            broker.start()
            if ready is not None:
                ready(broker)
            broker.run()
    finally:
        broker.close()
