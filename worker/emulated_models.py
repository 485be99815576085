"""The models of an emulated device: loading one takes as long as its definition says, no I/O, no clock.

It stands for GPUs that all hold the same models, each with the same memory (:mod:`worker.cohorts`). A
batch that was accepted has its end already, so a model leaves at once; loads follow one another as on a
real device.
"""

from __future__ import annotations

from collections.abc import Sequence

from symphony.profile import Profile
from symphony.status import SymphonyError
from worker.definition import Definition
from worker.holdings import Ready
from worker.lifecycle import Action, Change, Lifecycle, Load, State, Unload, Wanted, WarmUp
from worker.versions import fingerprint


class EmulatedModels:
    """Times are the caller's clock in ns.

    Args:
        gpu_type: for :meth:`ready`.
        memory_mb: of one GPU; 0: it never runs out.
    """

    def __init__(self, gpu_type: str, memory_mb: int = 0) -> None:
        self.profiles: dict[str, Profile] = {}
        """Of the models that serve; always the same object."""
        self._memory_mb = memory_mb
        self._life = Lifecycle()
        self._wanted: dict[str, tuple[str, Definition]] = {}
        self._copies: dict[int, Definition] = {}
        self._loading: tuple[int, Action] | None = None
        self._asked = False
        self._started = False
        self._held = Ready({}, gpu_type, memory_mb)

    def want(self, now: int, definitions: Sequence[Definition]) -> None:
        """Hold these models and no others."""
        self._asked = True
        self._wanted = {d.name: (fingerprint(d), d) for d in definitions}
        self._life.free_bytes = self._free()
        wanted = {name: Wanted(mark, d.memory_mb << 20) for name, (mark, d) in self._wanted.items()}
        self._do(now, self._life.want(now, wanted))
        self.advance(now)

    def ready(self) -> Ready | None:
        """What serves; None until the first models have come. Raises SymphonyError if one of them cannot."""
        if not self._started and (self._life.copies() or self._asked):
            for copy in self._life.copies():
                if copy.state == State.FAILED:
                    raise SymphonyError(f"model {copy.model!r}: {copy.reason}")
            self._started = self._life.settled()
        return self._held if self._started else None

    def wanted(self) -> set[str]:
        """Names of the models that it is to hold."""
        return set(self._wanted)

    def settled(self) -> bool:
        """Whether nothing is on its way, and nothing has failed."""
        return not self._life.changes and all(c.state == State.READY for c in self._life.copies())

    def failed(self) -> dict[str, str]:
        """Models that are wanted and cannot be loaded, and why."""
        return {c.model: c.reason for c in self._life.copies() if c.state == State.FAILED}

    def changes(self) -> list[Change]:
        """What has become of models since the last call."""
        return self._life.take_changes()

    def next_wakeup(self) -> int | None:
        """When the load that is under way ends."""
        return None if self._loading is None else self._loading[0]

    def advance(self, now: int) -> None:
        """Loads whose time is over."""
        while self._loading is not None and now >= self._loading[0]:
            due, action = self._loading
            self._loading = None
            self._do(due, self._life.loaded(due, action.copy or 0, self._free()))

    def _free(self) -> int | None:
        if not self._memory_mb:
            return None
        return (self._memory_mb - sum(d.memory_mb for d in self._copies.values())) << 20

    def _do(self, now: int, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Load(copy=copy, model=model):
                    definition = self._wanted[model][1]
                    self._copies[copy] = definition
                    self._loading = (now + round(definition.load_ms * 1e6), action)
                case WarmUp(copy=copy):
                    self._do(now, self._life.warmed(now, copy, self._free()))
                case Unload(copy=copy):
                    del self._copies[copy]
                    self._do(now, self._life.unloaded(now, copy, self._free()))
                case _:
                    pass
        self._refresh()

    def _refresh(self) -> None:
        serving = {model: self._copies[copy] for model, copy in self._life.serving().items()}
        if serving == self._held.definitions:
            return
        before, same = self._held.profiles, self._held.definitions
        profiles = {
            model: p
            for model, d in serving.items()
            if (p := before.get(model) if same.get(model) is d else d.given_profile()) is not None
        }
        self.profiles.clear()
        self.profiles.update(profiles)
        load_ms = {model: d.load_ms for model, d in serving.items()}
        self._held = Ready(profiles, self._held.gpu_type, self._memory_mb, serving, load_ms)
