"""Every message on the data path: fields, units, version, encode and decode.

A hot message is one MessagePack array, ``[kind, version, ...]``, whose columns are packed
little-endian binaries, so that a receiver reads them with ``numpy.frombuffer`` (or a C cast) and
never loops over requests. Tensors follow as raw frames. ``docs/wire-protocol.md`` describes the
same messages for writers in other languages; control messages (maps) are in
:mod:`symphony.control`.

Units: times are int64 nanoseconds of cluster time; a request key is uint64, the frontend's slot in
the top 16 bits and that frontend's sequence number, which only rises, in the low 48.

Every ``decode_*`` raises :class:`WireError` and nothing else, whatever bytes it is given.
"""

from symphony.wire.batches import (
    Done,
    Plan,
    Result,
    Results,
    decode_done,
    decode_plan,
    decode_result,
    decode_results,
    encode_done,
    encode_plan,
    encode_result,
    encode_results,
)
from symphony.wire.framing import (
    ANSWER,
    DONE,
    FETCH,
    I64,
    MAX_REQUESTS,
    PLAN,
    RESULT,
    RESULTS,
    SEQUENCE_MASK,
    SLOT_SHIFT,
    SUBMIT,
    TENSORS,
    U8,
    U32,
    U64,
    VERSION,
    Buffer,
    WireError,
    kind_of,
    shown,
    slot_of,
)
from symphony.wire.joined import Completed, SubmitReader, Submitted, join_dones
from symphony.wire.requests import (
    Answer,
    Submit,
    Tensors,
    decode_answer,
    decode_fetch,
    decode_submit,
    decode_tensors,
    encode_answer,
    encode_fetch,
    encode_submit,
    encode_tensors,
)

__all__ = [
    "ANSWER",
    "DONE",
    "FETCH",
    "I64",
    "MAX_REQUESTS",
    "PLAN",
    "RESULT",
    "RESULTS",
    "SEQUENCE_MASK",
    "SLOT_SHIFT",
    "SUBMIT",
    "TENSORS",
    "U8",
    "U32",
    "U64",
    "VERSION",
    "Answer",
    "Buffer",
    "Completed",
    "Done",
    "Plan",
    "Result",
    "Results",
    "Submit",
    "SubmitReader",
    "Submitted",
    "Tensors",
    "WireError",
    "decode_answer",
    "decode_done",
    "decode_fetch",
    "decode_plan",
    "decode_result",
    "decode_results",
    "decode_submit",
    "decode_tensors",
    "encode_answer",
    "encode_done",
    "encode_fetch",
    "encode_plan",
    "encode_result",
    "encode_results",
    "encode_submit",
    "encode_tensors",
    "join_dones",
    "kind_of",
    "shown",
    "slot_of",
]
