"""How many GPUs a sub-cluster should have: a pure function of a window of its statistics.

Rules, in the order in which they are tried; ``docs/autoscaling.md`` derives them:

1. *limits*: fewer than the minimum are added to, more than the maximum reduced.
2. *need*: utilization (fluid need / capacity) above ``up``, now or, on a rising line, by the time that a new
   GPU would serve → add GPUs until it is at most ``target``.
3. *bad*: more than ``bad`` of the requests are bad through a whole window in which nothing changed and no GPU
   was idle → the cluster carries less than the fluid says: that is learned as ``usable``, rule 2 follows.
4. *missing, surplus*: what was asked for and did not come, or should have gone and is there, after a time
   that doubles → ask again.
5. *idle*: GPUs that were idle through the whole window, highest numbers first → drain them, as long as the
   utilization without them stays at most ``down``.

What is asked for counts as capacity from then on, so that nothing is asked for twice. ``target`` and
``down`` lie below ``up``, measurements must pass a threshold by three standard errors, and a load under which
no GPU could go is not looked at again until it has fallen: a constant load, however it scatters, brings no
second decision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal

from scheduler.decision import Decision, State, adopt, refuse
from scheduler.evidence import MOST_AHEAD, SECOND, SURE, Evidence, Sample, weigh
from symphony.scaling import AutoscaleConfig, TypeLimits

__all__ = ["Decision", "State", "adopt", "decide", "refuse"]

LEAST_USABLE: Final = 0.3
"""However bad the service is: below this share of the fluid capacity, GPUs are not what is missing."""
SETTLED: Final = 0.02
"""A load within this share of the one under which no GPU could go is not looked at again."""
FORGET: Final = 0.25
"""What was learned under a load counts half once the load has moved by this share."""


def decide(window: Sequence[Sample], state: State, settings: AutoscaleConfig) -> tuple[Decision, State]:
    """One decision, and the state for the next; call it with every new sample.

    Args:
        window: samples of one sub-cluster, oldest first, at least one; those older than ``window_s`` are
            not looked at.

    Raises:
        ValueError: no sample.
    """
    if not window:
        raise ValueError("expected at least one sample")
    found = weigh(window, settings.window_s, settings.fast_s, settings.idle_share)
    rules = _Rules(found, window[-1], state, settings)
    return rules.decide()


class _Rules:
    """One call of :func:`decide`: shared figures, and a method per rule."""

    def __init__(self, found: Evidence, latest: Sample, state: State, settings: AutoscaleConfig) -> None:
        self.found = found
        self.settings = settings
        self.now = found.now
        self.latest = latest
        self.types = latest.types
        self.ready = _count(latest.busy, latest)
        self.observed = _count([*latest.busy, *latest.starting], latest)
        if state.requested is None:
            state = replace(state, requested=dict(self.observed), asked_at=self.now)
        assert state.requested is not None
        self.requested = dict(state.requested)
        self.planned: dict[str, int] | None = None
        self.state = self._learn(state)
        scale = self.state.calibration
        ahead = found.slope * (settings.startup_s + settings.fast_s / 2)
        self.fast = scale * found.fast
        self.fast_error = SURE * scale * found.fast_error
        self.ahead = self.fast + min(max(0.0, scale * ahead), MOST_AHEAD * self.fast)
        # What the load may be at most when GPUs go: the window's mean, unless the load has just risen or
        # falls along a line, when that is the past.
        now = self.fast + self.fast_error
        whole = scale * (found.need + SURE * found.need_error)
        if self.fast - self.fast_error > scale * found.need:
            whole = now
        elif found.slope < 0:
            whole = min(whole, now)
        self.most = max(whole, self.fast, self.ahead if found.slope > 0 else 0.0)

    def decide(self) -> tuple[Decision, State]:
        """The first rule that has something to say."""
        for rule in (self._limits, self._need, self._missing, self._surplus, self._idle):
            decision = rule()
            if decision is not None:
                return decision, self.state
        return self._decision("hold", self._why()), self.state

    # --- rules -------------------------------------------------------------------------------

    def _limits(self) -> Decision | None:
        least = self._at_least_minimum(self.requested)
        if least != self.requested:
            return self._ask("up", least, f"below the minimum of {self.settings.min} GPUs")
        above = sum(self.requested.values()) - self.settings.max
        if above > 0 and self._cool(self.state.changed_at, self.settings.cooldown_down_s):
            leaving = self._leaving(above, guarded=False)
            if leaving:
                return self._drain(leaving, f"above the maximum of {self.settings.max} GPUs")
        return None

    def _need(self) -> Decision | None:
        up = self.settings.up * self.state.usable
        capacity = self.found.capacity(self._coming())
        now = self.fast - self.fast_error > up * capacity
        soon = self.ahead - self.fast_error > up * capacity
        if (
            not self.found.begun
            or not (now or soon)
            or not self._cool(self.state.up_at, self.settings.cooldown_up_s)
        ):
            return None
        wanted = self._enough(max(self.fast, self.ahead))
        self.planned = self._enough(max(self.fast, self.ahead), limited=False)
        if wanted == self._coming():
            return None
        when = "is" if now else f"will be in {self.settings.startup_s:g} s"
        need = self.fast if now else self.ahead
        share = f"{need / capacity:.0%} of what is there or coming" if capacity else "without a GPU"
        return self._ask("up", wanted, f"the load {when} {need:.1f} GPUs' worth: {share}, above {up:.0%}")

    def _missing(self) -> Decision | None:
        short = {
            kind: count - self.observed.get(kind, 0)
            for kind, count in self.requested.items()
            if count > self.observed.get(kind, 0)
        }
        if not short or not self._waited():
            return None
        if self.most <= self.settings.down * self.state.usable * self.found.capacity(self.observed):
            self._accept()  # no longer needed
            return None
        seconds = (self.now - self.state.asked_at) / SECOND
        return self._again("up", f"{_text(short)} did not come within {seconds:.0f} s")

    def _surplus(self) -> Decision | None:
        over = {
            kind: count - self.requested.get(kind, 0)
            for kind, count in self.observed.items()
            if count > self.requested.get(kind, 0)
        }
        stays = self.latest.draining if self.state.changed_at > self.state.up_at else frozenset()
        if not self._waited() or not (over or stays):
            return None
        if not over:
            return self._again("down", f"{len(stays)} draining GPUs have not gone", sorted(stays))
        leaving = [gpu for gpu in self._leaving(sum(over.values())) if over.get(self.types[gpu], 0) > 0]
        if leaving:
            return self._again("down", f"{_text(over)} should have gone", leaving)
        self._accept()  # not one of them is idle: they are useful, however they came
        return None

    def _idle(self) -> Decision | None:
        bad = max(self.found.bad, self.found.bad_fast) > self.settings.bad
        settled = self.found.steady and self.observed == self.requested
        if bad or not settled or not self._cool(self.state.changed_at, self.settings.cooldown_down_s):
            return None
        need, error = self.found.need, 2 * SURE * self.found.need_error
        if self.state.settled_need and need > (1 - SETTLED) * self.state.settled_need - error:
            return None  # it has been looked at under this load
        leaving = self._leaving(len(self.found.idle))
        if not leaving:
            if self.found.level:
                self.state = replace(self.state, settled_need=need)
            return None
        numbers = f"{len(leaving)} GPUs" if len(leaving) > 1 else f"GPU {leaving[0]}"
        return self._drain(leaving, f"{numbers} idle for {self.settings.window_s:g} s")

    # --- what rules share --------------------------------------------------------------------

    def _learn(self, state: State) -> State:
        """What the window teaches about how far the fluid need can be trusted."""
        found, settings = self.found, self.settings
        if not found.complete or found.need <= 0:
            return state
        usable, learned = state.usable, state.learned_need
        if usable < 1 and abs(found.need - learned) > FORGET * learned:
            usable, learned = (1 + usable) / 2, found.need
            usable = usable if usable < 0.99 else 1.0
        good = found.bad <= settings.bad and found.bad_fast <= settings.bad
        if good:
            calibration = state.calibration
            if found.steady and found.level:
                # Random arrivals can need less than the fluid says (one request per batch and model).
                calibration = min(1.0, found.carried / found.need)
            return replace(state, usable=usable, learned_need=learned, calibration=calibration)
        capacity = found.capacity(self.ready)
        used = state.calibration * found.need / capacity if capacity else 0.0
        settled = found.steady and self.observed == self.ready and self.observed == state.requested
        calm = self._cool(state.changed_at, settings.window_s)
        if settled and calm and not found.idle and min(found.bad, found.bad_fast) > settings.bad and used > 0:
            reached = used / settings.up * 0.97
            if reached < usable:
                usable, learned = max(LEAST_USABLE, reached), found.need
        return replace(state, usable=usable, learned_need=learned)

    def _limits_of(self) -> list[TypeLimits]:
        """The types that may be asked for, cheapest capacity first."""
        kinds = self.settings.types or [
            TypeLimits(type=kind) for kind in sorted({*self.requested, *self.found.speed})
        ]
        able = [limits for limits in kinds if self.found.speed.get(limits.type, 1.0) > 0]
        return sorted(
            able, key=lambda limits: (limits.cost / self.found.speed.get(limits.type, 1.0), limits.type)
        )

    def _at_least_minimum(self, counts: Mapping[str, int]) -> dict[str, int]:
        wanted = dict(counts)
        for limits in self.settings.types:
            if wanted.get(limits.type, 0) < limits.min:
                wanted[limits.type] = limits.min
        return self._add(wanted, lambda counts: sum(counts.values()) < self.settings.min)

    def _coming(self) -> dict[str, int]:
        """By type what is there or was asked for, whichever is more."""
        kinds = {*self.requested, *self.observed}
        return {kind: max(self.requested.get(kind, 0), self.observed.get(kind, 0)) for kind in kinds}

    def _enough(self, need: float, limited: bool = True) -> dict[str, int]:
        """As many more GPUs as bring the utilization to the target, within the limits or without them."""
        room = self.settings.target * self.state.usable
        return self._add(self._coming(), lambda counts: need > room * self.found.capacity(counts), limited)

    def _add(
        self, counts: dict[str, int], more: Callable[[Mapping[str, int]], bool], limited: bool = True
    ) -> dict[str, int]:
        kinds = self._limits_of()
        for limits in kinds:
            while more(counts) and not (
                limited
                and (sum(counts.values()) >= self.settings.max or counts.get(limits.type, 0) >= limits.max)
            ):
                counts[limits.type] = counts.get(limits.type, 0) + 1
        return counts

    def _leaving(self, most: int, guarded: bool = True) -> list[int]:
        """Idle GPUs, highest number first, that the load and the limits can do without."""
        least = {limits.type: limits.min for limits in self.settings.types}
        left = dict(self.observed)
        room = self.settings.down * self.state.usable
        leaving: list[int] = []
        for unit in self._units():
            kind = self.types[unit[0]]
            after = left | {kind: left.get(kind, 0) - len(unit)}
            if len(leaving) + len(unit) > most or sum(after.values()) < self.settings.min:
                continue
            if after[kind] < least.get(kind, 0):
                continue
            if guarded and self.most > room * self.found.capacity(after):
                continue
            leaving += unit
            left = after
        return leaving

    def _units(self) -> list[list[int]]:
        """Idle GPUs in groups that can go, highest numbers first: GPUs of one unit only go together."""
        unit = self.latest.unit
        groups: dict[str, list[int]] = {}
        for gpu in self.found.idle:
            groups.setdefault(unit.get(gpu, f"gpu {gpu}"), []).append(gpu)
        size = Counter(unit[gpu] for gpu in [*self.latest.busy, *self.latest.starting] if gpu in unit)
        return [gpus for name, gpus in groups.items() if len(gpus) >= size[name]]

    def _drain(self, leaving: list[int], reason: str) -> Decision:
        wanted = dict(self.requested)
        for gpu in leaving:
            wanted[self.types[gpu]] = wanted.get(self.types[gpu], 0) - 1
        capacity = self.found.capacity(wanted)
        share = f"; without, utilization would be {self.most / capacity:.0%}" if capacity else ""
        return self._ask("down", wanted, reason + share, leaving)

    def _accept(self) -> None:
        """What is there is what is wanted."""
        self.requested = dict(self.observed)
        self.state = adopt(self.state, self.requested, self.now)

    def _ask(
        self, kind: Literal["up", "down"], wanted: dict[str, int], reason: str, drain: Sequence[int] = ()
    ) -> Decision:
        self.requested = {name: count for name, count in wanted.items() if count > 0}
        self.state = replace(
            self.state,
            requested=self.requested,
            asked_at=self.now,
            changed_at=self.now,
            up_at=self.now if kind == "up" else self.state.up_at,
            attempt=1,
            refused=False,
            settled_need=0.0,
            sequence=self.state.sequence + 1,
        )
        return self._decision(kind, reason, drain)

    def _again(self, kind: Literal["up", "down"], reason: str, drain: Sequence[int] = ()) -> Decision:
        attempt = self.state.attempt + 1
        self.state = replace(
            self.state, asked_at=self.now, attempt=attempt, refused=False, sequence=self.state.sequence + 1
        )
        return self._decision(kind, f"{reason}: asked again, attempt {attempt}", drain)

    def _why(self) -> str:
        """Reason to hold."""
        if self.planned is not None:
            return f"the maximum of {self.settings.max} GPUs (or of their types) is reached"
        if self.observed != self.requested:
            return "waiting for what was asked for"
        if self.found.bad > self.settings.bad and self.found.idle:
            return f"{self.found.bad:.1%} bad although GPUs are idle: more would not help"
        return "the load fits"

    def _decision(
        self, kind: Literal["up", "down", "hold"], reason: str, drain: Sequence[int] = ()
    ) -> Decision:
        found = self.found
        capacity = found.capacity(self.observed)
        numbers = {
            "need": found.need,
            "need_error": found.need_error,
            "need_fast": self.fast,
            "need_ahead": self.ahead,
            "slope_per_s": found.slope,
            "utilization": self.fast / capacity if capacity else 0.0,
            "usable": self.state.usable,
            "calibration": self.state.calibration,
            "bad": found.bad,
            "bad_fast": found.bad_fast,
            "idle": float(len(found.idle)),
        }
        return Decision(
            at=self.now,
            kind=kind,
            planned=dict(self.planned or self.requested),
            requested=dict(self.requested),
            observed=dict(self.observed),
            reason=reason,
            drain=list(drain),
            attempt=self.state.attempt,
            sequence=self.state.sequence,
            numbers=numbers,
        )

    def _cool(self, since: int, seconds: float) -> bool:
        return since == 0 or self.now - since >= seconds * SECOND

    def _waited(self) -> bool:
        """Whether the present request has had its time, which doubles with every attempt."""
        first = max(1.0, self.settings.cooldown_up_s) if self.state.refused else self.settings.patience
        pause: float = first * 2 ** min(self.state.attempt - 1, 30)
        return self.now - self.state.asked_at >= min(pause, max(first, self.settings.backoff_max_s)) * SECOND


def _count(gpus: Sequence[int] | Mapping[int, float], sample: Sample) -> dict[str, int]:
    counts: dict[str, int] = {}
    for gpu in gpus:
        kind = sample.types[gpu]
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def _text(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} GPUs of type {kind}" for kind, count in sorted(counts.items()))
