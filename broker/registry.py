"""Who is in the cluster: leases, slots, GPU numbers and the model catalogue, as a state machine.

No I/O and no clock: :meth:`Registry.handle` takes one decoded message and ``now`` and returns the
answer; what is to be published gathers in :attr:`Registry.events`, numbered. The rules:

- A member is alive while its heartbeats are never further apart than the lease. Its end is published
  as ``leave`` if it said so and as ``death`` otherwise.
- A second live process with the same id is refused. It may ask again, because the first may be dead
  and not known to be; once it has asked for a whole lease in vain the refusal is final.
- A frontend has a slot of its own, because request keys carry it. A returning one gets the slot that
  it had if that is free. Slots are handed out onwards from a start that depends on the broker's
  incarnation, so that a slot is not soon used again for somebody else.
- GPU numbers are unique in the cluster. In the first lease of a broker that may have had a
  predecessor no new numbers are granted, since the members of before come back with theirs.
- One model name has one specification; workers add profiles for their GPU types. A differing
  specification is refused while any live member has announced the other one.
- One plan (:mod:`symphony.plans`) is kept: see :mod:`broker.planning`.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Literal

from broker.catalogue import Catalogue, Conflict
from broker.numbers import GpuNumbers, Slots
from broker.planning import Planning
from symphony import control
from symphony.control import Control, Member, MemberEvent, ModelEvent
from symphony.plans import Accepted, Declined, PlanEvent, Propose
from symphony.replica import same_record

MS: Final = 1_000_000
MAX_MEMBERS: Final = 65_536
MAX_CONTESTS: Final = 1_024
MAX_STATS_NODES: Final = 4_096
MAX_STATS_DEPTH: Final = 8
MAX_STATS_TEXT: Final = 1_024

Event = MemberEvent | ModelEvent | PlanEvent
Answer = (
    control.Joined
    | control.Refused
    | control.Beat
    | control.Pong
    | control.Left
    | control.Snapshot
    | Accepted
    | Declined
)


class Registry:
    """See the module's text.

    Args:
        incarnation: this broker's; differs between two runs.
        now: monotonic ns of the broker's start.
        heartbeat_ms: how often members are told to show that they live.
        lease_ms: how long a silent member stays one.
        fresh: no member of an earlier broker can be about to come back.
    """

    def __init__(
        self,
        incarnation: int,
        now: int,
        *,
        heartbeat_ms: int = 500,
        lease_ms: int = 2_000,
        fresh: bool = False,
    ) -> None:
        self.incarnation = incarnation
        self.members: dict[str, Member] = {}
        self.sequences: dict[str, int] = {"member": 0, "model": 0, "plan": 0}
        self.events: deque[tuple[int, Event]] = deque()
        """To be published: the topic is the event's type, the number goes into its stamp."""
        self.catalogue = Catalogue()
        self.planning = Planning()
        self._heartbeat_ms, self._lease_ms = heartbeat_ms, lease_ms
        self._settled_at = now if fresh else now + lease_ms * MS
        self._expires: dict[str, int] = {}
        self._contests: dict[str, tuple[int, int]] = {}
        self._slots = Slots(start=incarnation)
        self._gpus = GpuNumbers()

    # -- messages --------------------------------------------------------------------------------

    def handle(self, now: int, cluster_now: int, message: Control) -> Answer:
        """Answer one message.

        Args:
            now: monotonic ns.
            cluster_now: cluster time in ns, for a :class:`~symphony.control.Pong`.
        """
        match message:
            case control.Ping():
                return control.Pong(t=message.t, now=cluster_now)
            case control.Heartbeat():
                return self._heartbeat(now, message)
            case control.Join():
                return self._join(now, message)
            case control.Update():
                return self._update(now, message)
            case control.AskSnapshot():
                return self.snapshot()
            case Propose():
                return self._propose(message)
            case control.Leave():
                member = self.members.get(message.id)
                if member is not None and member.incarnation == message.incarnation:
                    self._remove("leave", member)
                return control.Left()
            case _:
                return control.Refused(reason=f"a broker does not take messages of type {message.type!r}")

    def snapshot(self) -> control.Snapshot:
        """All that is known, as of the numbers of the last events."""
        return control.Snapshot(
            broker=self.incarnation,
            sequences=dict(self.sequences),
            members=list(self.members.values()),
            models=self.catalogue.specs(),
            plan=self.planning.plan,
        )

    def tick(self, now: int) -> None:
        """End the leases that have run out."""
        for member_id in [i for i, expires in self._expires.items() if expires <= now]:
            self._remove("death", self.members[member_id])
        lease = self._lease_ms * MS
        self._contests = {i: c for i, c in self._contests.items() if now - c[1] < 4 * lease}

    def next_expiry(self) -> int | None:
        """Monotonic ns of the first lease to run out."""
        return min(self._expires.values(), default=None)

    def dead(self, member_id: str, incarnation: int) -> None:
        """The process is known to be gone: do not wait for its lease."""
        member = self.members.get(member_id)
        if member is not None and member.incarnation == incarnation:
            self._remove("death", member)

    # -- rules -----------------------------------------------------------------------------------

    def _heartbeat(self, now: int, beat: control.Heartbeat) -> Answer:
        member = self.members.get(beat.id)
        if member is None or member.incarnation != beat.incarnation:
            return self._beat(known=False)
        self._expires[beat.id] = now + self._lease_ms * MS  # it lives, whatever it says of itself
        if beat.stats is not None:
            problem = stats_problem(beat.stats)
            if problem:
                return control.Refused(reason=problem)
            self.members[beat.id] = member.model_copy(update={"stats": beat.stats})
        return self._beat(known=True)

    def _beat(self, known: bool) -> control.Beat:
        return control.Beat(known=known, broker=self.incarnation, sequences=dict(self.sequences))

    def _join(self, now: int, join: control.Join) -> Answer:
        wanted = join.member
        old = self.members.get(wanted.id)
        if old is not None and old.incarnation != wanted.incarnation:
            if self._expires[wanted.id] > now:
                return self._contested(now, old, wanted)
            self._remove("death", old)  # its lease has run out since the last tick
            old = None
        if old is None and len(self.members) >= MAX_MEMBERS:
            return control.Refused(reason=f"the cluster has {MAX_MEMBERS} members already", retry_ms=1_000)
        refused = self._unacceptable(join) or self._hold_off(now, join)
        if refused is not None:
            return refused
        try:
            changed = self.catalogue.announce(wanted.id, join.models)
        except Conflict as conflict:
            return control.Refused(reason=str(conflict))
        slot: int | None = None
        if wanted.role == "frontend":
            slot = self._slots.take(wanted.id, old.slot if old is not None else wanted.slot)
        gpus = wanted.gpus
        if join.gpus_wanted and not gpus:
            # A repeated join, because the answer was lost, gets the same numbers.
            kept = old is not None and len(old.gpus) == join.gpus_wanted
            gpus = old.gpus if old is not None and kept else self._gpus.grant(join.gpus_wanted, join.gpu_type)
        self._gpus.hold(wanted.id, gpus)
        member = wanted.model_copy(update={"slot": slot, "gpus": gpus})
        self._contests.pop(wanted.id, None)
        self._expires[member.id] = now + self._lease_ms * MS
        for spec in changed:
            self._publish(ModelEvent(model=spec))
        self._put(old, member)
        return control.Joined(
            member=member,
            broker=self.incarnation,
            heartbeat_ms=self._heartbeat_ms,
            lease_ms=self._lease_ms,
            sequences=dict(self.sequences),
        )

    def _update(self, now: int, update: control.Update) -> Answer:
        wanted = update.member
        old = self.members.get(wanted.id)
        if old is None or old.incarnation != wanted.incarnation:
            return self._beat(known=False)
        refused = self._unacceptable(control.Join(member=wanted))
        if refused is not None:
            return refused
        if wanted.role != old.role:
            return control.Refused(reason=f"{wanted.id!r} is a {old.role} and cannot become a {wanted.role}")
        try:
            changed = self.catalogue.announce(wanted.id, update.models)
        except Conflict as conflict:
            return control.Refused(reason=str(conflict))
        self._gpus.hold(wanted.id, wanted.gpus)
        self._expires[wanted.id] = now + self._lease_ms * MS
        for spec in changed:
            self._publish(ModelEvent(model=spec))
        self._put(old, wanted.model_copy(update={"slot": old.slot, "stats": wanted.stats or old.stats}))
        return self._beat(known=True)

    def _propose(self, message: Propose) -> Answer:
        answer = self.planning.propose(message, self.members.get(message.id))
        if isinstance(answer, Accepted):
            self._publish(PlanEvent(plan=message.plan))
        return answer

    def _contested(self, now: int, old: Member, wanted: Member) -> control.Refused:
        incarnation, since = self._contests.get(wanted.id, (wanted.incarnation, now))
        if incarnation != wanted.incarnation:
            since = now
        if len(self._contests) < MAX_CONTESTS:
            self._contests[wanted.id] = (wanted.incarnation, since)
        # Final only if the old one has shown since that it lives: a heartbeat that was on its way when
        # it died, or a death that this loop has been slow to notice, must not turn its successor away.
        lease = self._lease_ms * MS
        renewed = self._expires[wanted.id] > since + lease + self._heartbeat_ms * MS
        final = renewed and now - since > lease
        remaining = max(0, self._expires[wanted.id] - now) // MS + 1
        return control.Refused(
            reason=(
                f"two processes with the same id: {wanted.id!r} is already the id of a {old.role} that is "
                f"alive (pid {old.pid} on {old.host or 'an unnamed host'}); give this one another id or "
                "stop the other"
            ),
            retry_ms=None if final else min(remaining, max(1, self._lease_ms // 4)),
        )

    def _unacceptable(self, join: control.Join) -> control.Refused | None:
        member = join.member
        problem = stats_problem(member.stats)
        if not problem and (member.gpus or join.gpus_wanted) and member.role != "worker":
            problem = f"{member.id!r} is a {member.role}; only workers have GPUs"
        if not problem:
            problem = self._gpus.problem(member.id, member.gpus, join.gpus_wanted)
        return control.Refused(reason=problem) if problem else None

    def _hold_off(self, now: int, join: control.Join) -> control.Refused | None:
        if now >= self._settled_at:
            return None
        if not join.gpus_wanted or join.member.gpus or join.member.id in self.members:
            return None
        wait_ms = (self._settled_at - now) // MS + 1
        return control.Refused(
            reason=(
                f"the broker has just started: it numbers new GPUs in {wait_ms} ms, when workers of before "
                "have had the time to come back with their numbers"
            ),
            retry_ms=wait_ms,
        )

    # -- state -----------------------------------------------------------------------------------

    def _put(self, old: Member | None, member: Member) -> None:
        self.members[member.id] = member
        if old is None:
            self._publish(MemberEvent(event="join", member=member))
        elif not same_record(old, member):
            self._publish(MemberEvent(event="update", member=member))

    def _remove(self, event: Literal["leave", "death"], member: Member) -> None:
        del self.members[member.id]
        del self._expires[member.id]
        self._slots.free(member.id)
        self._gpus.free(member.id)
        self.catalogue.forget(member.id)
        self._publish(MemberEvent(event=event, member=member))

    def _publish(self, event: Event) -> None:
        self.sequences[event.type] += 1
        self.events.append((self.sequences[event.type], event))


def stats_problem(stats: dict[str, object]) -> str:
    """Why ``stats`` cannot be kept, or an empty string: they go into every snapshot."""
    nodes: list[tuple[object, int]] = [(stats, 0)]
    seen = 0
    while nodes:
        value, depth = nodes.pop()
        seen += 1
        if seen > MAX_STATS_NODES or depth > MAX_STATS_DEPTH:
            return f"stats may hold {MAX_STATS_NODES} values, nested {MAX_STATS_DEPTH} deep"
        if isinstance(value, dict):
            nodes += [(key, depth) for key in value]
            nodes += [(entry, depth + 1) for entry in value.values()]
        elif isinstance(value, list):
            nodes += [(entry, depth + 1) for entry in value]
        elif isinstance(value, str):
            if len(value) > MAX_STATS_TEXT:
                return f"a text in stats may have {MAX_STATS_TEXT} characters"
        elif value is not None and not isinstance(value, bool | int | float):
            return f"stats may not hold values of type {type(value).__name__}"
    return ""
