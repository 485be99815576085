"""What a caller is told: one status per request, and the exception that each status raises.

The numbers travel on the wire (``docs/wire-protocol.md``); they are never renumbered.
"""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """Outcome of one request, as it stands in RESULT and ANSWER messages."""

    OK = 0
    INVALID = 1
    UNKNOWN_MODEL = 2
    OVERLOADED = 3
    DROPPED = 4
    TIMEOUT = 5
    FAILED = 6
    UNAVAILABLE = 7


class SymphonyError(Exception):
    """Base of every exception that Symphony raises for its caller.

    Attributes:
        status: the :class:`Status` behind the exception, or None where no request is concerned
            (a bad configuration file, a port in use).
    """

    status: Status | None = None


class InvalidRequest(SymphonyError, ValueError):
    """The request is malformed: wrong shape, type or tensor name, or a deadline out of range."""

    status = Status.INVALID


class UnknownModel(SymphonyError, LookupError):
    """No process of the cluster has announced a model of that name."""

    status = Status.UNKNOWN_MODEL


class Overloaded(SymphonyError):
    """Refused at the door: a bounded queue is full. Safe to retry later."""

    status = Status.OVERLOADED


class Dropped(SymphonyError):
    """The scheduler found that the deadline cannot be met any more."""

    status = Status.DROPPED


class RequestTimeout(SymphonyError, TimeoutError):
    """Nobody answered by the deadline plus the grace period."""

    status = Status.TIMEOUT


class Failed(SymphonyError):
    """The model raised while it executed the batch; the text is the model's own."""

    status = Status.FAILED


class Unavailable(SymphonyError, ConnectionError):
    """No shard or worker serves the model now, or the process that would answer is draining."""

    status = Status.UNAVAILABLE


_EXCEPTIONS: dict[Status, type[SymphonyError]] = {
    Status.INVALID: InvalidRequest,
    Status.UNKNOWN_MODEL: UnknownModel,
    Status.OVERLOADED: Overloaded,
    Status.DROPPED: Dropped,
    Status.TIMEOUT: RequestTimeout,
    Status.FAILED: Failed,
    Status.UNAVAILABLE: Unavailable,
}


def exception_for(status: Status, message: str) -> SymphonyError:
    """The exception that stands for ``status``; ``Status.OK`` has none and raises KeyError."""
    return _EXCEPTIONS[status](message)
