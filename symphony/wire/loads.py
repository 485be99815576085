"""Little-endian numbers at any place in a message's bytes."""

from __future__ import annotations


def load32(frame: bytes, at: int) -> int:
    """The unsigned 32 bits that begin at byte ``at``."""
    return int.from_bytes(frame[at : at + 4], "little")


def load64(frame: bytes, at: int) -> int:
    """The unsigned 64 bits that begin at byte ``at``."""
    return int.from_bytes(frame[at : at + 8], "little")


def load64s(frame: bytes, at: int) -> int:
    """The signed 64 bits that begin at byte ``at``."""
    return int.from_bytes(frame[at : at + 8], "little", signed=True)
