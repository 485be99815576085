"""Many messages of one kind read as one set of columns: what a scheduler does with all that has arrived.

Decoding a message costs a few microseconds, most of it in making small arrays. Here SUBMIT messages are
read by a compiled loop where there is one (:mod:`symphony.wire.submits`). Else each message is only unpacked
and its lengths are compared; the columns' bytes are joined and looked at once for all of them. Anything odd
sends the lot through the decoders of single messages, which say what is wrong with which.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgpack
import numpy as np

from symphony import native
from symphony.wire.batches import decode_done
from symphony.wire.framing import (
    DONE,
    I64,
    I64_TYPE,
    MAX_REQUESTS,
    MAX_U64,
    SLOT_SHIFT,
    SUBMIT,
    U8,
    U8_TYPE,
    U32,
    U32_TYPE,
    U64,
    U64_TYPE,
    VERSION,
    WireError,
)
from symphony.wire.requests import Submit, decode_submit


class Submitted(NamedTuple):
    """Columns over the requests of all the messages, in their order; ``priority`` None: all 0.

    ``others``: messages for another incarnation. ``errors``: what could not be understood.
    """

    model: U32
    deadline: I64
    key: U64
    priority: U8 | None
    others: list[Submit]
    errors: list[WireError]


class Completed(NamedTuple):
    """Columns over the batches of all the messages, in their order, as in :class:`Done`.

    ``errors``: what could not be understood.
    """

    batch: U64
    gpu: U32
    size: U32
    failed: U32
    exec_at: I64
    started: I64
    finished: I64
    errors: list[WireError]


class SubmitReader:
    """Reads the SUBMIT messages that are meant for one incarnation; the columns that it gives hold until the
    next :meth:`read`.

    Args:
        compiled: whether to use the compiled loops where the build has them.
    """

    def __init__(self, compiled: bool = True) -> None:
        loops = native.compiled("submits") if compiled and not native.pure() else None
        self._loops: Any = None if loops is None else loops.Submits()
        self._looped: Submitted | None = None

    def read(self, frames: list[bytes], incarnation: int, counts: I64) -> Submitted:
        """All requests in ``frames``, as columns.

        Args:
            frames: the messages.
            incarnation: that of the shard.
            counts: by model number; the requests of each are added, but for models beyond its length.
        """
        if self._loops is not None and 0 <= incarnation <= MAX_U64:
            n = self._loops.read(frames, incarnation, counts)
            if n >= 0:
                self._looped = self._columns(n)
                return self._looped
        found = _quick_submits(frames, incarnation)
        if found is None:
            found = _one_by_one(frames, incarnation)
        counts += _by_model(found.model, counts.size)
        return found

    def split(self, requests: Submitted, due: I64, otherwise: int, counts: I64) -> tuple[Submitted, U64]:
        """Take out what is too late: the requests with a deadline before ``due[model]``.

        Args:
            requests: what :meth:`read` gave last.
            due: ns by model number.
            otherwise: ns, for models beyond its length.
            counts: as long; the requests taken out are added by model.

        Returns:
            The others, in their order, and the keys of those taken out.
        """
        if self._loops is not None and requests is self._looped:
            n = requests.key.size
            left = self._loops.split(n, due, otherwise, counts)
            return self._columns(left), self._loops.taken_out(n - left)
        limit = np.append(due, otherwise)[np.minimum(requests.model, due.size)]
        old = requests.deadline < limit
        counts += _by_model(requests.model[old], counts.size)
        kept = ~old
        left = requests._replace(
            model=requests.model[kept],
            deadline=requests.deadline[kept],
            key=requests.key[kept],
            priority=None if requests.priority is None else requests.priority[kept],
        )
        return left, requests.key[old]

    def _columns(self, n: int) -> Submitted:
        model, deadline, key = self._loops.columns(n)
        return Submitted(model, deadline, key, None, [], [])


def _by_model(model: U32, models: int) -> I64:
    return np.bincount(model[model < models], minlength=models)


def _quick_submits(frames: Sequence[bytes], incarnation: int) -> Submitted | None:
    try:
        rows = [msgpack.unpackb(frame) for frame in frames]
        if not rows or set(map(len, rows)) != {8}:
            return None
        kinds, versions, meant, slots, models, deadlines, keys, priorities = zip(*rows, strict=True)
        if set(kinds) != {SUBMIT} or set(versions) != {VERSION} or set(meant) != {incarnation}:
            return None
        if set(map(type, slots)) != {int} or set(map(type, models + deadlines + keys)) != {bytes}:
            return None
        size = np.array([list(map(len, models)), list(map(len, deadlines)), list(map(len, keys))])
        count = size[0] >> 2
        if (size != np.array([[4], [8], [8]]) * count).any() or count.max() > MAX_REQUESTS:
            return None
        ranks = _ranks(priorities, count.tolist())
        meant_slots = np.array(slots, np.uint64).repeat(count)
    except Exception:  # noqa: BLE001 - msgpack raises many types on hostile bytes; the other way tells
        return None
    key = np.frombuffer(b"".join(keys), U64_TYPE)
    if ((key >> np.uint64(SLOT_SHIFT)) != meant_slots).any():
        return None
    model = np.frombuffer(b"".join(models), U32_TYPE)
    return Submitted(model, np.frombuffer(b"".join(deadlines), I64_TYPE), key, ranks, [], [])


def _ranks(priorities: Sequence[Any], counts: list[int]) -> U8 | None:
    """The joined column; None where no message has one. Raises ValueError if one is no such column."""
    if set(priorities) == {None}:
        return None
    columns = [bytes(n) if p is None else p for p, n in zip(priorities, counts, strict=True)]
    if set(map(type, columns)) != {bytes} or list(map(len, columns)) != counts:
        raise ValueError("a priority column of another length or type")
    return np.frombuffer(b"".join(columns), U8_TYPE)


def _one_by_one(frames: Sequence[bytes], incarnation: int) -> Submitted:
    mine: list[Submit] = []
    others: list[Submit] = []
    errors: list[WireError] = []
    for frame in frames:
        try:
            message = decode_submit(frame)
        except WireError as error:
            errors.append(error)
            continue
        (mine if message.incarnation == incarnation else others).append(message)
    ranks: U8 | None = None
    if any(m.priority is not None for m in mine):
        ranks = np.concatenate(
            [np.zeros(m.key.size, np.uint8) if m.priority is None else m.priority for m in mine]
        )
    return Submitted(
        _concatenated([m.model for m in mine], U32_TYPE),
        _concatenated([m.deadline for m in mine], I64_TYPE),
        _concatenated([m.key for m in mine], U64_TYPE),
        ranks,
        others,
        errors,
    )


def _concatenated(columns: list[Any], dtype: np.dtype[Any]) -> Any:
    return np.concatenate(columns) if columns else np.zeros(0, dtype)


_DONE_COLUMNS: Final = (
    (5, U64_TYPE),
    (6, U32_TYPE),
    (8, U32_TYPE),
    (9, U32_TYPE),
    (11, I64_TYPE),
    (12, I64_TYPE),
    (13, I64_TYPE),
)
"""Positions in a DONE message of what :class:`Completed` has."""


def join_dones(frames: Sequence[bytes]) -> Completed:
    """All DONE messages in ``frames``, as columns."""
    found = _quick_dones(frames) if len(frames) > 1 else None
    if found is not None:
        return found
    done = []
    errors: list[WireError] = []
    for frame in frames:
        try:
            done.append(decode_done(frame))
        except WireError as error:
            errors.append(error)
    return Completed(
        _concatenated([d.batch for d in done], U64_TYPE),
        _concatenated([d.gpu for d in done], U32_TYPE),
        _concatenated([d.size for d in done], U32_TYPE),
        _concatenated([d.failed for d in done], U32_TYPE),
        _concatenated([d.exec_at for d in done], I64_TYPE),
        _concatenated([d.started for d in done], I64_TYPE),
        _concatenated([d.finished for d in done], I64_TYPE),
        errors,
    )


def _quick_dones(frames: Sequence[bytes]) -> Completed | None:
    messages: list[list[Any]] = []
    known: list[int] = []
    counts: list[int] = []
    try:
        for frame in frames:
            f = msgpack.unpackb(frame)
            n = len(f[5]) >> 3
            if len(f) != 14 or f[0] != DONE or f[1] != VERSION or n > MAX_REQUESTS or type(f[4]) is not list:
                return None
            if any(type(f[i]) is not bytes for i in range(5, 14)):
                return None
            if any(len(f[i]) != 4 * n for i in (6, 7, 8, 9)) or any(
                len(f[i]) != 8 * n for i in (5, 10, 11, 12, 13)
            ):
                return None
            messages.append(f)
            known.append(len(f[4]))
            counts.append(n)
    except Exception:  # noqa: BLE001 - msgpack raises many types on hostile bytes; the other way tells
        return None
    model = np.frombuffer(b"".join([f[7] for f in messages]), U32_TYPE)
    if (model >= np.repeat(known, counts)).any():
        return None
    columns: list[Any] = [np.frombuffer(b"".join([f[i] for f in messages]), t) for i, t in _DONE_COLUMNS]
    return Completed._make([*columns, []])
