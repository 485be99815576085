"""Which models a device holds, and what to do about it: a state machine without any I/O.

Events go in (what is wanted, what has become of a load, how much memory is free), actions come out::

    waiting ─► loading ─► warming ─► ready ─► draining ─► unloading ─► gone
       │          │          │
       └──────────┴──────────┴─► failed (with a reason; tried again when that may help)

What is loaded is a *copy* of a model: one file and one set of weights, told apart by a fingerprint. A
wanted model whose fingerprint has changed gets a second copy beside the first; once that one is ready,
batches go to it (:class:`Serve`) and the first one drains and leaves. A second copy that does not fit, or
fails, changes nothing for the first one.

Rules:

* one load, warm-up or unload at a time, so that running models are disturbed by one thing at most;
* a load begins only if the memory that the device reports as free holds what the model is said to need
  and the reserve; where nothing leaves that would make room, the copy fails with ``out of memory``;
* what failed for want of memory is tried again when more is free than at that time; what failed for
  another reason when its fingerprint changes, or it is wanted anew;
* a copy that drains holds its batches to their end; a load that is not wanted any more ends first;
* :data:`OUT_OF_MEMORY_LIMIT` batches in a row that ran out of memory take the copy out of service.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

OUT_OF_MEMORY_LIMIT: Final = 3


class State(StrEnum):
    """Where a copy stands."""

    WAITING = "waiting"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    UNLOADING = "unloading"
    FAILED = "failed"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One model that the device is to hold.

    ``fingerprint``: another one is another version. ``need_bytes``: weights and workspace; 0 where
    nobody knows, so that it is simply tried.
    """

    fingerprint: str
    need_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """Begin to load; answer with ``loaded`` or ``failed``."""

    copy: int
    model: str


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Run every batch size once; answer with ``warmed`` or ``failed``."""

    copy: int
    model: str


@dataclass(frozen=True, slots=True)
class Serve:
    """From now on batches of the model run on this copy; None: the model is not here any more."""

    copy: int | None
    model: str


@dataclass(frozen=True, slots=True)
class Unload:
    """Nothing runs on it: free its memory; answer with ``unloaded``."""

    copy: int
    model: str


Action = Load | WarmUp | Serve | Unload


@dataclass(frozen=True, slots=True)
class Change:
    """A copy has come to another state at ``at`` (the caller's clock, ns); ``reason`` for a person."""

    at: int
    model: str
    copy: int
    state: State
    reason: str = ""
    out_of_memory: bool = False


@dataclass(slots=True, eq=False)
class Copy:
    """One version of a model on its way through the device."""

    number: int
    model: str
    fingerprint: str
    need_bytes: int
    state: State = State.WAITING
    batches: int = 0
    """That run on it or are about to."""
    failed_for_memory: int = 0
    """Batches in a row."""
    out_of_memory: bool = False
    reason: str = ""


@dataclass(slots=True)
class Lifecycle:
    """See the module's text. ``reserve_bytes`` of the device's memory stay free. Every event returns
    what is to be done now, in order; ``changes`` collects what happened until :meth:`take_changes`."""

    reserve_bytes: int = 0
    free_bytes: int | None = None
    """As the device reported last; None: it has no memory of its own to run out of."""
    changes: list[Change] = field(default_factory=list)
    _wanted: dict[str, Wanted] = field(default_factory=dict)
    _copies: dict[int, Copy] = field(default_factory=dict)
    _serving: dict[str, int] = field(default_factory=dict)
    _last: int = 0

    # -- what is there -----------------------------------------------------------------------------

    def serving(self) -> dict[str, int]:
        """Model → the copy that its batches run on."""
        return dict(self._serving)

    def copies(self) -> list[Copy]:
        """Everything on its way, by number."""
        return [self._copies[number] for number in sorted(self._copies)]

    def settled(self) -> bool:
        """Whether every wanted model serves with its wanted fingerprint or has failed, and nothing moves."""
        return all(copy.state in (State.READY, State.FAILED) for copy in self._copies.values())

    def take_changes(self) -> list[Change]:
        """What has happened since the last call."""
        taken, self.changes = self.changes, []
        return taken

    # -- events --------------------------------------------------------------------------------------

    def want(self, now: int, wanted: Mapping[str, Wanted]) -> list[Action]:
        """The whole set of models that the device is to hold from now on."""
        for model in self._wanted.keys() - wanted.keys():
            self._forget_failures(now, model)
        self._wanted = dict(wanted)
        return self._settle(now)

    def memory(self, now: int, free_bytes: int | None) -> list[Action]:
        """What the device reports as free."""
        self.free_bytes = free_bytes
        return self._settle(now)

    def loaded(self, now: int, copy: int, free_bytes: int | None = None) -> list[Action]:
        """A load has succeeded; the warm-up follows if the copy is still wanted."""
        held = self._expect(copy, State.LOADING)
        self.free_bytes = free_bytes
        if not self._is_wanted(held):
            self._move(now, held, State.UNLOADING, "not wanted any more")
            return [Unload(copy, held.model)]
        self._move(now, held, State.WARMING)
        return [WarmUp(copy, held.model)]

    def warmed(self, now: int, copy: int, free_bytes: int | None = None) -> list[Action]:
        """Every batch size has run."""
        held = self._expect(copy, State.WARMING)
        self.free_bytes = free_bytes
        if not self._is_wanted(held):
            self._move(now, held, State.UNLOADING, "not wanted any more")
            return [Unload(copy, held.model)]
        self._move(now, held, State.READY)
        return self._settle(now)

    def failed(
        self, now: int, copy: int, reason: str, *, out_of_memory: bool = False, free_bytes: int | None = None
    ) -> list[Action]:
        """A load or a warm-up has failed, and what it held is freed.

        ``out_of_memory``: it may succeed once more is free than ``free_bytes``, what is free now.
        """
        held = self._expect(copy, State.LOADING, State.WARMING)
        self.free_bytes = free_bytes
        held.out_of_memory = out_of_memory
        self._need_more(held)
        self._move(now, held, State.FAILED, reason)
        return self._settle(now)

    def unloaded(self, now: int, copy: int, free_bytes: int | None = None) -> list[Action]:
        """Its memory is free again."""
        held = self._expect(copy, State.UNLOADING)
        self.free_bytes = free_bytes
        self._need_more(held)
        if held.out_of_memory and self._is_wanted(held):
            self._move(now, held, State.FAILED, held.reason)
        else:
            self._drop(now, held)
        return self._settle(now)

    def begin(self, model: str) -> int | None:
        """A batch is about to run: the copy that it runs on, to be given to :meth:`end`; None if the
        model is not here."""
        number = self._serving.get(model)
        if number is not None:
            self._copies[number].batches += 1
        return number

    def end(self, now: int, copy: int, *, out_of_memory: bool = False, ran: bool = True) -> list[Action]:
        """A batch is over. ``ran``: the model executed, so that its memory sufficed."""
        held = self._copies[copy]
        held.batches -= 1
        if out_of_memory:
            held.failed_for_memory += 1
            if held.failed_for_memory == OUT_OF_MEMORY_LIMIT and held.state == State.READY:
                held.out_of_memory = True
                held.reason = f"{OUT_OF_MEMORY_LIMIT} batches in a row ran out of memory"
        elif ran:
            held.failed_for_memory = 0
        return self._settle(now)

    # -- bringing what is there in line with what is wanted ------------------------------------------

    def _settle(self, now: int) -> list[Action]:
        actions: list[Action] = []
        for model in sorted(self._wanted.keys() | {copy.model for copy in self._copies.values()}):
            self._choose(now, model, actions)
        for copy in self.copies():
            if copy.state == State.DRAINING and not copy.batches and not self._operating():
                self._move(now, copy, State.UNLOADING, copy.reason)
                actions.append(Unload(copy.number, copy.model))
        self._start(now, actions)
        return actions

    def _choose(self, now: int, model: str, actions: list[Action]) -> None:
        """Which copy of the model serves, and which others leave."""
        wanted = self._wanted.get(model)
        mine = [copy for copy in self.copies() if copy.model == model]
        right = [c for c in mine if wanted is not None and c.fingerprint == wanted.fingerprint]
        there = [c for c in right if c.state in (State.READY, State.DRAINING) and not c.out_of_memory]
        if there:
            best = there[-1]
            if best.state == State.DRAINING:
                self._move(now, best, State.READY, "wanted again")
            self._serve(model, best.number, actions)
        for copy in mine:
            leaves = wanted is None or (bool(there) and copy is not there[-1])
            if copy.state == State.READY and (leaves or copy.out_of_memory):
                self._move(now, copy, State.DRAINING, copy.reason)
                if self._serving.get(model) == copy.number:
                    self._serve(model, None, actions)
            elif copy.state in (State.WAITING, State.FAILED) and (leaves or copy not in right):
                self._drop(now, copy)
        still = [c for c in right if c.state != State.UNLOADING or c.out_of_memory]
        if wanted is not None and not still:
            self._last += 1
            self._copies[self._last] = made = Copy(self._last, model, wanted.fingerprint, wanted.need_bytes)
            self._move(now, made, State.WAITING)

    def _start(self, now: int, actions: list[Action]) -> None:
        """Begin the first load that fits; what will never fit fails."""
        for copy in self.copies():
            retry = copy.state == State.FAILED and copy.out_of_memory and self.free_bytes is not None
            if retry and self._fits(copy):
                copy.out_of_memory = False
                self._move(now, copy, State.WAITING, "more memory is free")
        leaving = any(c.state in (State.DRAINING, State.UNLOADING) for c in self._copies.values())
        for copy in self.copies():
            if copy.state != State.WAITING:
                continue
            if self._fits(copy):
                if not self._operating():
                    self._move(now, copy, State.LOADING)
                    actions.append(Load(copy.number, copy.model))
            elif not leaving and not self._operating():
                copy.out_of_memory = True
                free, need = (self.free_bytes or 0) >> 20, copy.need_bytes >> 20
                reserve = f" and {self.reserve_bytes >> 20} MB stay reserved" if self.reserve_bytes else ""
                self._move(now, copy, State.FAILED, f"needs {need} MB, {free} MB are free{reserve}")

    # -- small parts -------------------------------------------------------------------------------------

    def _fits(self, copy: Copy) -> bool:
        return self.free_bytes is None or copy.need_bytes + self.reserve_bytes <= self.free_bytes

    def _need_more(self, copy: Copy) -> None:
        """What ran out of memory needs more than is free now."""
        if copy.out_of_memory and self.free_bytes is not None:
            copy.need_bytes = max(copy.need_bytes, self.free_bytes - self.reserve_bytes + 1)
            copy.failed_for_memory = 0

    def _operating(self) -> bool:
        busy = (State.LOADING, State.WARMING, State.UNLOADING)
        return any(copy.state in busy for copy in self._copies.values())

    def _is_wanted(self, copy: Copy) -> bool:
        wanted = self._wanted.get(copy.model)
        return wanted is not None and wanted.fingerprint == copy.fingerprint

    def _serve(self, model: str, copy: int | None, actions: list[Action]) -> None:
        if self._serving.get(model) == copy:
            return
        if copy is None:
            del self._serving[model]
        else:
            self._serving[model] = copy
        actions.append(Serve(copy, model))

    def _forget_failures(self, now: int, model: str) -> None:
        for copy in self.copies():
            if copy.model == model and copy.state == State.FAILED:
                self._drop(now, copy)

    def _drop(self, now: int, copy: Copy) -> None:
        del self._copies[copy.number]
        self._move(now, copy, State.GONE, copy.reason)

    def _move(self, now: int, copy: Copy, state: State, reason: str = "") -> None:
        copy.state, copy.reason = state, reason
        self.changes.append(Change(now, copy.model, copy.number, state, reason, copy.out_of_memory))

    def _expect(self, number: int, *states: State) -> Copy:
        copy = self._copies.get(number)
        if copy is None or copy.state not in states:
            found = "unknown" if copy is None else str(copy.state)
            raise ValueError(f"copy {number} is {found}; expected {' or '.join(states)}")
        return copy

    def validate(self) -> None:
        """Raises AssertionError if an invariant is broken; for tests."""
        busy = (State.LOADING, State.WARMING, State.UNLOADING)
        assert sum(copy.state in busy for copy in self._copies.values()) <= 1, self._copies
        for model, number in self._serving.items():
            copy = self._copies[number]
            assert copy.model == model
            assert copy.state == State.READY, copy
        for copy in self._copies.values():
            assert copy.batches >= 0
            if copy.batches:
                assert copy.state in (State.READY, State.DRAINING), copy
            if copy.state == State.READY:
                assert self._serving.get(copy.model) == copy.number, copy
