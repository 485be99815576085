"""Control messages: MessagePack maps with string keys, validated when they come in.

They travel between every process and the broker's registry (DEALER ↔ ROUTER) and, as bodies of
events, on the control channel. Each class is one message; ``type`` tells them apart. Unknown keys
are refused, so that a misspelt field is an error and not a default.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgpack
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from symphony.messages import Name, Ranges
from symphony.plans import Accepted, ClusterPlan, Declined, PlanEvent, PlanStamp, Propose
from symphony.wire import VERSION, Buffer, WireError, shown

Role = Literal["scheduler", "worker", "frontend", "ops"]

MAX_CONTROL_BYTES: Final = 16 * 1024 * 1024
MAX_SLO_MS: Final = 24 * 3600 * 1_000
"""A day, as far ahead as a deadline may lie."""


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorSpec(_Message):
    """One input or output as in the Open Inference Protocol, without the batch dimension.

    ``dtype``: BOOL, UINT8…UINT64, INT8…INT64, FP16, FP32, FP64 or BYTES (text as UTF-8).
    ``shape``: the item's dimensions; -1 stands for any length.
    """

    name: Annotated[str, Field(min_length=1, max_length=128)]
    dtype: str
    shape: list[Annotated[int, Field(ge=-1)]] = []


class ModelSpec(_Message):
    """What everybody must know of a model. One name has one specification in the whole cluster.

    ``profiles``: per GPU type the latency table in nanoseconds, entry i for a batch of i + 1;
    it has ``max_batch`` entries. ``memory_mb``: weights and workspace at the largest batch, on one GPU;
    ``load_ms``: until it is ready there; 0 where nobody has measured them.
    """

    name: Name
    slo_ms: Annotated[float, Field(gt=0, le=MAX_SLO_MS)]
    max_batch: Annotated[int, Field(ge=1, le=4096)]
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    profiles: dict[str, list[int]] = {}
    memory_mb: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    load_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class GpuInfo(_Message):
    """One GPU of a worker. ``number`` orders GPUs in the whole cluster: the lowest idle one is taken."""

    number: Annotated[int, Field(ge=0, lt=1 << 20)]
    type: str
    memory_mb: int = 0


class Holding(_Message):
    """GPUs of a worker that hold the same models, ready to be used."""

    gpus: Ranges
    models: list[str]


class Member(_Message):
    """One process of the cluster, as the registry knows it and publishes it.

    ``endpoints`` by link name: a scheduler binds ``submit`` and ``done``, a worker ``dispatch``, a
    frontend ``fetch`` and ``reply``. ``incarnation`` differs between two runs of the same id.
    ``shard`` is the scheduler that a worker belongs to. ``models``: for a scheduler its model
    table (position = the index that SUBMIT messages use), for a worker the models that it holds.
    ``state``: ``loading``, ``ready`` or ``draining``. ``holds``: which of a worker's GPUs hold what;
    without it each holds all of ``models``. ``failed``: models that it should hold and cannot, and why.
    ``owns``: the GPUs that a scheduler may use now,
    ``adopted``: the plan that it follows.
    """

    id: Name
    role: Role
    incarnation: Annotated[int, Field(ge=0, lt=1 << 63)]
    endpoints: dict[str, str] = {}
    host: str = ""
    pid: int = 0
    version: str = ""
    slot: Annotated[int, Field(ge=0, le=0xFFFF)] | None = None
    shard: str | None = None
    gpus: list[GpuInfo] = []
    models: list[str] = []
    state: Literal["loading", "ready", "draining"] = "loading"
    stats: dict[str, Any] = {}
    holds: list[Holding] = []
    failed: dict[str, str] = {}
    owns: Ranges = []
    adopted: PlanStamp | None = None


class Join(_Message):
    """Become a member, or come back after the broker has lost its memory.

    A frontend without ``member.slot`` is given one; with it, it asks to keep it. ``gpus_wanted``:
    number so many GPUs for me, and add them to the record (types in ``gpu_type``).
    """

    type: Literal["join"] = "join"
    v: Literal[1] = VERSION
    member: Member
    models: list[ModelSpec] = []
    gpus_wanted: int = 0
    gpu_type: str = ""


class Joined(_Message):
    """Granted: the record as the broker keeps it, and how often to show that this process lives, ms."""

    type: Literal["joined"] = "joined"
    v: Literal[1] = VERSION
    member: Member
    broker: int
    heartbeat_ms: int
    lease_ms: int
    sequences: dict[str, int]


class Refused(_Message):
    """The request cannot be granted; ``reason`` is for a person. ``retry_ms``: ask again then."""

    type: Literal["refused"] = "refused"
    v: Literal[1] = VERSION
    reason: str
    retry_ms: int | None = None


class Heartbeat(_Message):
    """I am alive. ``stats`` replaces the record's, if given. Answered by :class:`Beat`."""

    type: Literal["heartbeat"] = "heartbeat"
    v: Literal[1] = VERSION
    id: Name
    incarnation: int
    stats: dict[str, Any] | None = None


class Beat(_Message):
    """``known`` False: the broker has no such member (it restarted, or the lease ended): join again."""

    type: Literal["beat"] = "beat"
    v: Literal[1] = VERSION
    known: bool
    broker: int
    sequences: dict[str, int]


class Ping(_Message):
    """Clock measurement; ``t`` comes back untouched."""

    type: Literal["ping"] = "ping"
    v: Literal[1] = VERSION
    t: int


class Pong(_Message):
    """``now``: cluster time in ns when the ping was read."""

    type: Literal["pong"] = "pong"
    v: Literal[1] = VERSION
    t: int
    now: int


class Update(_Message):
    """Replace my record (same id and incarnation), and announce more models."""

    type: Literal["update"] = "update"
    v: Literal[1] = VERSION
    member: Member
    models: list[ModelSpec] = []


class Leave(_Message):
    """This process ends; answered by :class:`Left`."""

    type: Literal["leave"] = "leave"
    v: Literal[1] = VERSION
    id: Name
    incarnation: int


class Left(_Message):
    """Goodbye heard; also for somebody who was no member."""

    type: Literal["left"] = "left"
    v: Literal[1] = VERSION


class AskSnapshot(_Message):
    """Who and what is there? Anybody may ask; answered by :class:`Snapshot`."""

    type: Literal["ask-snapshot"] = "ask-snapshot"
    v: Literal[1] = VERSION


class Snapshot(_Message):
    """All that the registry knows, as of ``sequences`` (last number published per topic)."""

    type: Literal["snapshot"] = "snapshot"
    v: Literal[1] = VERSION
    broker: int
    sequences: dict[str, int]
    members: list[Member]
    models: list[ModelSpec]
    plan: ClusterPlan | None = None


class MemberEvent(_Message):
    """On topic ``member``. ``death``: the lease ended without a leave."""

    type: Literal["member"] = "member"
    v: Literal[1] = VERSION
    event: Literal["join", "update", "leave", "death"]
    member: Member


class ModelEvent(_Message):
    """On topic ``model``: a specification is new or has a new profile."""

    type: Literal["model"] = "model"
    v: Literal[1] = VERSION
    model: ModelSpec


class ScaleDecision(_Message):
    """On topic ``decision.<shard>``: what the leader decided about the GPUs of a shard's sub-cluster.

    ``epoch`` and ``leader`` tell whose decision it is: an older epoch's is refused. ``sequence`` counts
    the requests about that shard from the cluster time in ms at which the leader began; with epoch and shard
    it is the idempotency key of what an actuator is asked for. Counts are GPUs by type: ``planned`` by the
    rule now, ``requested`` from the actuator (with this decision), ``observed`` as members, ready or loading.
    ``drain``: numbers of GPUs that leave.
    ``attempt``: 1, or more if the same is asked for again. ``numbers``: what the rule looked at.
    """

    type: Literal["decision"] = "decision"
    v: Literal[1] = VERSION
    epoch: Annotated[int, Field(ge=0, lt=1 << 63)]
    leader: Name
    shard: Name
    sequence: Annotated[int, Field(ge=0, lt=1 << 63)]
    at: int
    kind: Literal["up", "down", "hold"]
    planned: dict[str, int] = {}
    requested: dict[str, int] = {}
    observed: dict[str, int] = {}
    drain: list[int] = []
    attempt: int = 1
    reason: Annotated[str, Field(max_length=1024)] = ""
    numbers: dict[str, float] = {}


Control = Annotated[
    Join
    | Joined
    | Refused
    | Heartbeat
    | Beat
    | Ping
    | Pong
    | Update
    | Leave
    | Left
    | AskSnapshot
    | Snapshot
    | MemberEvent
    | ModelEvent
    | ScaleDecision
    | Propose
    | Accepted
    | Declined
    | PlanEvent,
    Field(discriminator="type"),
]
_ADAPTER: TypeAdapter[Control] = TypeAdapter(Control)


def encode_control(message: BaseModel) -> bytes:
    """One frame."""
    packed: bytes = msgpack.packb(message.model_dump())
    return packed


def decode_control(frame: Buffer) -> Control:
    """Raises :class:`WireError`: ``malformed``, ``oversized``, ``wrong-version``, ``invalid`` and where."""
    if len(frame) > MAX_CONTROL_BYTES:
        raise WireError("oversized", f"{len(frame)} bytes")
    try:
        value = msgpack.unpackb(frame, raw=False)
    except Exception as error:  # noqa: BLE001 - msgpack raises many types on hostile bytes
        raise WireError("malformed", type(error).__name__) from None
    if not isinstance(value, dict):
        raise WireError("malformed", "not a map")
    if value.get("v") != VERSION:
        raise WireError("wrong-version", shown(value.get("v")))
    if not isinstance(value.get("type"), str):
        raise WireError("invalid", f"type: {shown(value.get('type'))} instead of a name")
    try:
        # Strict: no numbers in strings, which could be too large to be sent back.
        return _ADAPTER.validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise WireError("invalid", f"{where}: {first['msg']}") from None


class Stamp(_Message):
    """Second frame of every message on the control channel: who stamped it, and the topic's number.

    ``seq`` counts messages of that exact topic since the broker's start; a step of more than one is
    a loss, a new ``broker`` a restart: take a snapshot.
    """

    broker: int
    seq: int


def encode_stamp(broker: int, seq: int) -> bytes:
    """``[broker, seq]``, one frame."""
    packed: bytes = msgpack.packb((broker, seq))
    return packed


def decode_stamp(frame: Buffer) -> Stamp:
    """Raises :class:`WireError`."""
    try:
        broker, seq = msgpack.unpackb(frame)
        return Stamp(broker=broker, seq=seq)
    except Exception as error:  # noqa: BLE001 - msgpack raises many types on hostile bytes
        raise WireError("malformed", type(error).__name__) from None
