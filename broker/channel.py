"""The control channel's rules: check what publishers send, and number it per topic; no I/O."""

from __future__ import annotations

from typing import Final

from symphony.control import encode_stamp
from symphony.topics import MAX_TOPIC_BYTES, OWN, decode_body, decode_topic
from symphony.wire import WireError

MAX_TOPICS: Final = 65_536


class Channel:
    """Turns ``[topic, body]`` into ``[topic, stamp, body]``.

    Args:
        incarnation: the broker's, which the stamps carry.
    """

    def __init__(self, incarnation: int) -> None:
        self._incarnation = incarnation
        self._sequences: dict[bytes, int] = {}

    def stamp(self, frames: list[bytes]) -> list[bytes]:
        """The frames that subscribers get.

        Raises:
            WireError: ``malformed``, ``bad-topic``, ``unknown-topic``, ``reserved-topic`` (only the
                broker itself publishes ``member``, ``model`` and ``plan``), ``too-many-topics``, or why the
                body is no such body.
        """
        if len(frames) != 2:
            raise WireError("malformed", f"{len(frames)} frames instead of topic and body")
        topic, body = frames
        family, publisher = decode_topic(topic)
        if family in OWN:
            raise WireError("reserved-topic", family)
        decode_body(family, publisher, body)
        sequence = self._sequences.get(topic, 0) + 1
        if sequence == 1 and len(self._sequences) >= MAX_TOPICS:
            raise WireError("too-many-topics", f"{MAX_TOPICS} already")
        self._sequences[topic] = sequence
        return [topic, encode_stamp(self._incarnation, sequence), body]


def check_subscription(frames: list[bytes]) -> None:
    """A frame that came up the subscribers' socket: 1 or 0, then a topic prefix.

    Raises:
        WireError: it is none.
    """
    if len(frames) != 1 or frames[0][:1] not in (b"\0", b"\1"):
        raise WireError("malformed", "no subscription")
    if len(frames[0]) > MAX_TOPIC_BYTES + 1:
        raise WireError("oversized", f"{len(frames[0])} bytes")
