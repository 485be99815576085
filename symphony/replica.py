"""A follower's copy of the registry: a snapshot, then events by sequence number; no I/O.

A late joiner does not wait "until subscribers connect": it takes a snapshot, which says as of which
numbers it is true, and then applies the events that follow. An event whose number is not the next one
means that something was lost; so does a heartbeat answer that names a higher number than has been
seen for :data:`SETTLE_NS`. Both ask for a new snapshot. Events that come before the snapshot that
they belong behind are kept and applied after it.

A restarted broker starts empty and learns its members again as they re-announce themselves, so what
its snapshots lack in the first lease is no proof of death: such members are kept until the lease is
over, then one more snapshot decides.

The plan is the newest that was ever seen (:mod:`symphony.plans`): a restarted broker that knows none, or
one of a leader whose time is over, changes nothing here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from symphony.control import Member, MemberEvent, ModelEvent, ModelSpec, Snapshot, Stamp
from symphony.plans import ClusterPlan, PlanEvent

TOPICS: Final = ("member", "model", "plan")
"""The broker's own topics, which this copy follows."""
SETTLE_NS: Final = 50_000_000
"""How long a number may be ahead of the events: they come over another connection."""
MAX_KEPT: Final = 10_000
_RECORD: Final = tuple(name for name in Member.model_fields if name != "stats")


@dataclass(slots=True, frozen=True)
class MemberChanged:
    """A member came, changed, left or died. ``member`` is its record, the last one if it is gone."""

    event: Literal["join", "update", "leave", "death"]
    member: Member


@dataclass(slots=True, frozen=True)
class ModelChanged:
    """A model's specification is new, or has other contents (a further profile)."""

    model: ModelSpec


@dataclass(slots=True, frozen=True)
class PlanChanged:
    """There is a newer plan."""

    plan: ClusterPlan


@dataclass(slots=True, frozen=True)
class PlanRefused:
    """A plan came that is older than the one in force."""

    plan: ClusterPlan
    have: ClusterPlan


Change = MemberChanged | ModelChanged | PlanChanged | PlanRefused
RegistryEvent = MemberEvent | ModelEvent | PlanEvent


class Replica:
    """See the module's text.

    Args:
        lease_ns: how long after first contact with a restarted broker its gaps are no deaths.
    """

    def __init__(self, lease_ns: int) -> None:
        self.members: dict[str, Member] = {}
        self.models: dict[str, ModelSpec] = {}
        self.plan: ClusterPlan | None = None
        self.broker: int | None = None
        self.lease_ns = lease_ns
        self._have: dict[str, int] | None = None
        self._kept: list[tuple[Stamp, RegistryEvent]] = []
        self._behind_since: int | None = None
        self._hold_until: int | None = None
        self._compared: tuple[Member | None, Member | None, bool] = (None, None, False)

    @property
    def synced(self) -> bool:
        """Whether a snapshot of the present broker has been applied and no loss is known."""
        return self._have is not None

    def publishes(self, member: Member) -> bool:
        """Whether the record published for this id is this one, but for ``stats``; cheap to ask again.

        Records are never changed in place, so the same two are compared once: every heartbeat asks, and a
        worker's record may have thousands of GPUs.
        """
        published = self.members.get(member.id)
        if self._compared[0] is not published or self._compared[1] is not member:
            same = published is not None and same_record(published, member)
            self._compared = (published, member, same)
        return self._compared[2]

    def due(self, now: int) -> bool:
        """Whether a snapshot should be asked for."""
        if self._have is None:
            return True
        wakeup = self.next_wakeup()
        return wakeup is not None and now >= wakeup

    def next_wakeup(self) -> int | None:
        """Monotonic ns at which :meth:`due` turns true if nothing comes in before."""
        moments = [self._hold_until] if self._hold_until is not None else []
        if self._behind_since is not None:
            moments.append(self._behind_since + SETTLE_NS)
        return min(moments, default=None)

    def saw_broker(self, now: int, broker: int) -> bool:
        """The registry answered as ``broker``; True if that is another one than before."""
        if broker == self.broker:
            return False
        if self.broker is not None:
            self._hold_until = now + self.lease_ns
        self.broker = broker
        self._have = None
        self._behind_since = None
        return True

    def saw_sequences(self, now: int, broker: int, sequences: dict[str, int]) -> None:
        """The registry answered with the numbers that it has published last."""
        self.saw_broker(now, broker)
        if self._have is None:
            return
        if all(sequences.get(topic, 0) <= self._have[topic] for topic in TOPICS):
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = now

    def saw_event(self, stamp: Stamp, event: RegistryEvent) -> list[Change]:
        """An event of the control channel; returns what changed."""
        if stamp.broker != self.broker or self._have is None:
            # Only the registry's answers tell which broker is the present one.
            if len(self._kept) < MAX_KEPT:
                self._kept.append((stamp, event))
            if stamp.broker != self.broker:
                self._have = None
            return []
        topic = event.type
        if stamp.seq <= self._have[topic]:
            return []
        if stamp.seq > self._have[topic] + 1:
            self._have = None
            self._kept.append((stamp, event))
            return []
        self._have[topic] = stamp.seq
        return self._apply(event)

    def saw_snapshot(self, now: int, snapshot: Snapshot) -> list[Change]:
        """A snapshot; returns what changed, including the events that were kept for it."""
        self.saw_broker(now, snapshot.broker)
        self._have = {topic: snapshot.sequences.get(topic, 0) for topic in TOPICS}
        self._behind_since = None
        changes: list[Change] = []
        present = {member.id for member in snapshot.members}
        if self._hold_until is None or now >= self._hold_until:
            self._hold_until = None
            for member in [m for m in self.members.values() if m.id not in present]:
                changes += self._remove("death", member)
            for name in self.models.keys() - {model.name for model in snapshot.models}:
                del self.models[name]
        for model in snapshot.models:
            changes += self._put_model(model)
        for member in snapshot.members:
            changes += self._put_member(member)
        if snapshot.plan is not None:
            changes += self._put_plan(snapshot.plan)
        kept, self._kept = self._kept, []
        for stamp, event in sorted(kept, key=lambda entry: entry[0].seq):
            if stamp.broker == self.broker:
                changes += self.saw_event(stamp, event)
        return changes

    def _apply(self, event: RegistryEvent) -> list[Change]:
        if isinstance(event, ModelEvent):
            return self._put_model(event.model)
        if isinstance(event, PlanEvent):
            return self._put_plan(event.plan)
        if event.event in ("join", "update"):
            return self._put_member(event.member)
        return self._remove(event.event, event.member)

    def _put_model(self, model: ModelSpec) -> list[Change]:
        if self.models.get(model.name) == model:
            return []
        self.models[model.name] = model
        return [ModelChanged(model)]

    def _put_plan(self, plan: ClusterPlan) -> list[Change]:
        have = self.plan
        if have is None or plan.stamp.newer_than(have.stamp):
            self.plan = plan
            return [PlanChanged(plan)]
        return [] if plan.stamp == have.stamp else [PlanRefused(plan, have)]

    def _put_member(self, member: Member) -> list[Change]:
        old = self.members.get(member.id)
        if old is not None and same_record(old, member):
            if old.stats != member.stats:
                self.members[member.id] = old.model_copy(update={"stats": member.stats})
            return []
        self.members[member.id] = member
        if old is None:
            return [MemberChanged("join", member)]
        if old.incarnation != member.incarnation:
            return [MemberChanged("death", old), MemberChanged("join", member)]
        return [MemberChanged("update", member)]

    def _remove(self, event: Literal["join", "update", "leave", "death"], member: Member) -> list[Change]:
        old = self.members.get(member.id)
        if old is None or old.incarnation != member.incarnation:
            return []
        del self.members[member.id]
        return [MemberChanged(event, old)]


def same_record(one: Member, other: Member) -> bool:
    """Equal but for ``stats``, which heartbeats carry and no event tells of."""
    return one is other or all(getattr(one, name) == getattr(other, name) for name in _RECORD)
