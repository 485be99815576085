# cython: language_level=3
"""The core's constants. Compiled modules have C's own (compiled/limits.pxd)."""

from __future__ import annotations

PRIORITIES = 4
"""A request's priority is 0 … 3."""
SLOTS = 65_536
"""Frontend slots: the top 16 bits of a request key."""
LAST_TIME = 1 << 62
"""Times must be below; sums of a few of them then fit into 64 bits."""
LONGEST = 1 << 48
"""Durations in ns must be below (3 days); a sum of one time and some of them fits into 64 bits."""
NEVER = (1 << 63) - 1
"""No wake-up is due."""
MOST_GPUS = 1 << 20
MOST_MODELS = 1 << 20
LARGEST_BATCH = 4096
MOST_QUEUED = 1 << 30
TYPES = 64
"""GPU types that one shard can tell apart."""
DEPTH = 4
"""Batches that may be out on one GPU at a time: one runs, the next waits, two are being told of."""
ABSENT = 0
LIVE = 1
DRAINING = 2
SAMPLE_NS = 50_000_000
"""Length of one sample of the arrival rate."""
PLANNED = LAST_TIME // SAMPLE_NS + 1
"""A sample later than all: the target of that lane is set by a plan."""
TAPE = 4096
"""Arrivals that a core records between two looks of its slow loop."""
SAMPLES = 100
"""Whole samples behind a rate."""
SMALLEST_RING = 16
"""Slots of a lane's first ring."""
APART = 20
"""Slots between the places at which neighbouring lanes' queues start in their rings."""
LARGE_RING = 512
"""Rings of more slots shrink when they are nearly empty."""

AHEAD = 32
"""Requests of a column, a power of two, whose lanes are fetched into the cache at a time."""

MOST_FETCHED = 128
"""Requests of a lane, four of them in a line, that are fetched when it is about to be served."""

FIELDS = 8
"""A lane's record is one cache line of 64 bytes: what an arrival looks at. Its fields:"""
UNTIL = 0
STOP = 1
TAIL = 2
LAST = 3
BASE = 4
MASK = 5
HEAD = 6
FIRST = 7

TICKS = 4096
"""So many ticks of simulated time, a power of two, have lists of their own; see ``replay``."""

EXPIRED = 1
WINDOW = 2
FULL = 3
UNKNOWN = 4
OUT_OF_RANGE = 5
DUPLICATE = 6
UNSERVED = 7
HANDED_BACK = 8
REASONS = (
    "",
    "expired",
    "window",
    "full",
    "unknown-model",
    "out-of-range",
    "duplicate",
    "unserved",
    "handed-back",
)
"""Why a request left without being dispatched; the codes above are positions in this tuple."""
