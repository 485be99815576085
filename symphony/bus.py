"""The one place that makes ZeroMQ sockets, so that every option is set in one place.

A :class:`Bus` belongs to one thread and owns its sockets: LINGER, high-water marks, reconnect
intervals and the largest accepted message are set here and nowhere else. A full pipe is an answer
(:func:`send` returns False), never a silent drop or a blocked loop.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Any, Final
from urllib.parse import urlsplit

import zmq
from zmq.utils.monitor import parse_monitor_message

from symphony.status import SymphonyError

Sock = zmq.Socket[bytes]

HWM: Final = 100_000
"""Messages that a pipe holds before :func:`send` says that it is full."""
SUBMIT_HWM: Final = 2_000
"""Submit messages that wait on either side of the link: what waits longer is late when it is read, and a
submitter that is refused at once can still do something about it."""
MAX_MESSAGE: Final = 256 * 1024 * 1024
"""Bytes of one frame; libzmq closes the connection of a peer that announces more."""
RECONNECT_MS: Final = 50
RECONNECT_MAX_MS: Final = 1_000


class BusError(SymphonyError):
    """A socket could not be made: port in use, address not allowed, endpoint malformed."""


def is_loopback(endpoint: str) -> bool:
    """Whether an endpoint can only be reached from this machine (inproc, ipc, 127/8, ::1, localhost)."""
    scheme, _, rest = endpoint.partition("://")
    if scheme in ("inproc", "ipc"):
        return True
    host = rest.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def tcp(host: str, port: int | str = "*") -> str:
    """``tcp://host:port``, an IPv6 address in brackets; port ``*`` stands for any free one.

    ``localhost`` is 127.0.0.1: a name cannot be bound.
    """
    host = "127.0.0.1" if host == "localhost" else host
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


class Bus:
    """Makes, counts and closes the sockets of one thread.

    Args:
        insecure: allow binding addresses that other machines can reach although nothing
            authenticates the peers.
    """

    def __init__(self, insecure: bool = False) -> None:
        self._context = zmq.Context()
        self._sockets: set[Sock] = set()
        self._insecure = insecure

    def _make(self, kind: int, hwm: int) -> Sock:
        sock = self._context.socket(kind)
        sock.linger = 0
        sock.sndhwm = sock.rcvhwm = hwm
        sock.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        sock.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        sock.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
        sock.setsockopt(zmq.TCP_KEEPALIVE, 1)
        if kind == zmq.ROUTER:
            # An answer to a peer that has gone is an error that we count, not a silent drop.
            sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
            sock.setsockopt(zmq.ROUTER_HANDOVER, 1)
        if kind in (zmq.PUB, zmq.XPUB):
            sock.setsockopt(zmq.XPUB_NODROP, 1)
        self._sockets.add(sock)
        return sock

    def bind(
        self,
        kind: int,
        endpoint: str,
        *,
        hwm: int = HWM,
        max_message: int = MAX_MESSAGE,
        lossy: bool = False,
        buffer: int | None = None,
    ) -> tuple[Sock, str]:
        """A bound socket and the endpoint that peers connect to (with the port that was chosen).

        Args:
            kind: ``zmq.ROUTER``, ``zmq.PULL`` …
            endpoint: ``tcp://address:port``; port 0 stands for any free one.
            hwm: messages that each peer's pipe holds.
            max_message: bytes of one frame; a peer that announces more is disconnected.
            lossy: on a publisher, a subscriber that does not read loses its own messages, where
                otherwise one full pipe stops :func:`send` for everybody.
            buffer: bytes that the kernel holds of each peer before its pipe; None: what it likes.

        Raises:
            BusError: the port is in use, the endpoint malformed, or other machines could reach it
                and the bus was not told that this is wanted.
        """
        if not self._insecure and not is_loopback(endpoint):
            raise BusError(
                f"refusing to bind {endpoint}: other machines could reach it and nothing would "
                "authenticate them; bind 127.0.0.1, or say --insecure on a network that you trust"
            )
        sock = self._make(kind, hwm)
        sock.ipv6 = "[" in endpoint
        sock.setsockopt(zmq.MAXMSGSIZE, max_message)
        if buffer is not None:
            sock.setsockopt(zmq.RCVBUF, buffer)
        if lossy:
            sock.setsockopt(zmq.XPUB_NODROP, 0)
        try:
            sock.bind(endpoint)
        except zmq.ZMQError as error:
            self.drop(sock)
            if error.errno == zmq.EADDRINUSE:
                raise BusError(
                    f"{endpoint} is in use: is another cluster running on the same ports? "
                    "Stop it, or choose other ports in the configuration"
                ) from None
            raise BusError(f"cannot bind {endpoint}: {error.strerror}") from None
        bound = sock.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(bound, bytes)
        return sock, bound.decode().rstrip("\0")

    def connect(
        self,
        kind: int,
        endpoint: str,
        *,
        hwm: int = HWM,
        identity: bytes | None = None,
        live_only: bool = False,
    ) -> Sock:
        """A connected socket.

        Args:
            kind: ``zmq.PUSH``, ``zmq.DEALER`` …
            endpoint: the peer's bound endpoint; it need not be there yet.
            hwm: messages that the pipe holds.
            identity: routing id that a ROUTER peer sees.
            live_only: queue nothing before the connection stands or after it is lost; until then
                :func:`send` returns False.

        Raises:
            BusError: the endpoint is malformed.
        """
        sock = self._unconnected(kind, hwm, identity, live_only)
        self._connect(sock, endpoint)
        return sock

    def connect_watched(self, kind: int, endpoint: str, *, hwm: int = HWM) -> tuple[Sock, Sock]:
        """A socket that queues nothing while it is not connected, and its monitor.

        The monitor listens before the socket connects, so it tells of the first connection, too.
        Whoever asked for it closes it, after the socket was dropped.

        Raises:
            BusError: the endpoint is malformed.
        """
        sock = self._unconnected(kind, hwm, None, True)
        monitor = self.monitor(sock)
        try:
            self._connect(sock, endpoint)
        except BusError:
            monitor.close()
            raise
        return sock, monitor

    def _unconnected(self, kind: int, hwm: int, identity: bytes | None, live_only: bool) -> Sock:
        sock = self._make(kind, hwm)
        if identity is not None:
            sock.setsockopt(zmq.IDENTITY, identity)
        if live_only:
            sock.setsockopt(zmq.IMMEDIATE, 1)
        return sock

    def _connect(self, sock: Sock, endpoint: str) -> None:
        sock.ipv6 = "[" in endpoint
        try:
            sock.connect(endpoint)
        except zmq.ZMQError as error:
            self.drop(sock)
            raise BusError(f"cannot connect to {endpoint!r}: {error.strerror}") from None

    def monitor(self, sock: Sock) -> Sock:
        """A PAIR socket that tells of ``sock``'s connections; read it with :func:`link_events`."""
        events = zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED
        pair: Sock = sock.get_monitor_socket(events)
        pair.linger = 0
        return pair

    def drop(self, sock: Sock, linger_ms: int = 0) -> None:
        """Close one socket; what it still holds is given ``linger_ms`` to leave."""
        self._sockets.discard(sock)
        if not sock.closed:
            sock.disable_monitor()
            sock.close(linger=linger_ms)

    def close(self, linger_ms: int = 0) -> None:
        """Close every socket and end the context; waits at most ``linger_ms`` for queued messages."""
        for sock in list(self._sockets):
            self.drop(sock, linger_ms)
        self._context.term()

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def send(sock: Sock, frames: list[Any] | bytes | memoryview, copy: bool = True) -> bool:
    """Send without blocking; False if the pipe is full or nobody is connected."""
    try:
        if not isinstance(frames, list):
            sock.send(frames, zmq.NOBLOCK)
        else:
            sock.send_multipart(frames, zmq.NOBLOCK, copy=copy)
    except zmq.Again:
        return False
    except zmq.ZMQError as error:
        if error.errno == zmq.EHOSTUNREACH:  # a ROUTER whose peer has gone
            return False
        raise
    return True


def drain(sock: Sock, limit: int = 1_000) -> Iterator[list[bytes]]:
    """What has already arrived, at most ``limit`` messages, each as its list of frames."""
    for _ in range(limit):
        try:
            yield sock.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return


def drain_views(sock: Sock, limit: int = 1_000) -> Iterator[list[memoryview]]:
    """As :func:`drain`, for large messages: the frames are views of memory in which they arrived."""
    for _ in range(limit):
        try:
            yield [frame.buffer for frame in sock.recv_multipart(zmq.NOBLOCK, copy=False)]
        except zmq.Again:
            return


def drain_frames(sock: Sock, limit: int, most_bytes: int) -> tuple[list[bytes], bool]:
    """What has already arrived on a link whose messages have one frame, and whether that is all.

    It ends with the frame that makes ``limit`` frames or ``most_bytes`` of them; more may have arrived then.
    Nothing asks whether a frame has a successor, which would cost more than the frame: a message of
    several frames counts as several messages.
    """
    frames: list[bytes] = []
    recv, add = sock.recv, frames.append
    size = 0
    try:
        while size < most_bytes and len(frames) < limit:
            frame = recv(zmq.NOBLOCK)
            size += len(frame)
            add(frame)
    except zmq.Again:
        return frames, True
    return frames, False


def link_events(monitor: Sock) -> Iterator[bool]:
    """From a monitor socket: True for each connection that stands, False for each one lost."""
    while True:
        try:
            event = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))["event"]
        except zmq.Again:
            return
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            yield True
        elif event == zmq.EVENT_DISCONNECTED:
            yield False


def subscribe(sock: Sock, topics: Iterable[str]) -> None:
    """Follow topics by prefix on a SUB socket."""
    for topic in topics:
        sock.setsockopt(zmq.SUBSCRIBE, topic.encode())


def port_of(endpoint: str) -> int:
    """The TCP port of an endpoint; 0 where it has none."""
    return urlsplit(endpoint).port or 0
