"""The models of one real device as the worker's loop sees them: what is held, what comes, what failed.

Joins the :mod:`~worker.lifecycle`, which decides, to the :mod:`~worker.loader`, which does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from symphony.profile import Profile
from symphony.status import SymphonyError
from worker.batch import one_line
from worker.definition import Definition
from worker.lifecycle import Action, Change, Lifecycle, Load, Serve, State, Unload, Wanted, WarmUp
from worker.loader import Report
from worker.versions import Versions

_log = logging.getLogger(__name__)


def key_of(model: str, copy: int) -> str:
    """What the device calls a copy of a model."""
    return f"{model}#{copy}"


@dataclass(slots=True, frozen=True)
class Ready:
    """What serves: ``profiles`` and ``definitions`` by model. ``load_ms``: how long each took to come."""

    profiles: dict[str, Profile]
    gpu_type: str
    memory_mb: int
    definitions: dict[str, Definition] = field(default_factory=dict)
    load_ms: dict[str, float] = field(default_factory=dict)


class Holdings:
    """One thread's own.

    Args:
        first: the models to load as soon as the device is open; one that fails is an error then.
        ask: takes an action, the copy's key, and the definition to load from.
        reserve_bytes: of the device's memory that stay free.
    """

    def __init__(
        self,
        first: Sequence[Definition],
        ask: Callable[[Action, str, Definition | None], None],
        reserve_bytes: int = 0,
    ) -> None:
        self._first = list(first)
        self._ask = ask
        self._life = Lifecycle(reserve_bytes)
        self._versions = Versions()
        self._unusable: dict[str, str] = {}
        self._news: list[Change] = []
        self._definitions: dict[tuple[str, str], Definition] = {}
        """By model and fingerprint."""
        self._fingerprints: dict[int, str] = {}
        self._profiles: dict[int, Profile] = {}
        self._took_ns: dict[int, int] = {}
        self._opened = False
        self._started = False
        self._errors: list[Exception] = []
        self.held = Ready({}, "", 0)
        """Replaced by another object whenever it changes."""

    def opened(self, gpu_type: str, memory_mb: int) -> None:
        """The device is there; may be called from another thread, before any report."""
        self.held = Ready({}, gpu_type, memory_mb)

    def want(self, now: int, definitions: Sequence[Definition]) -> None:
        """The models to hold from now on; of files that have changed, new versions."""
        self._first = list(definitions)
        if not self._opened:
            return
        wanted = {}
        for asked in definitions:
            definition, mark = self._versions.look(now, asked)
            self._definitions[definition.name, mark] = definition
            wanted[definition.name] = Wanted(mark, definition.memory_mb << 20)
        self._versions.keep(set(wanted))
        self._tell_unusable(now)
        self._do(self._life.want(now, wanted))
        used = {(copy.model, copy.fingerprint) for copy in self._life.copies()}
        self._definitions = {what: d for what, d in self._definitions.items() if what in used}

    def first_ready(self) -> Ready | None:
        """What is held once the first models have come, None before.

        Raises:
            SymphonyError: what the first of them that failed raised.
        """
        if self._started:
            return self.held
        if self._errors:
            raise self._errors[0]
        if not self._opened or not self._life.settled():
            return None
        for copy in self._life.copies():
            if copy.state == State.FAILED:
                raise SymphonyError(f"model {copy.model!r}: {copy.reason}")
        self._started = True
        return self.held

    def failed(self) -> dict[str, str]:
        """Models that are wanted and cannot be loaded, or not in their newest version, and why."""
        return self._unusable | {c.model: c.reason for c in self._life.copies() if c.state == State.FAILED}

    def changes(self) -> list[Change]:
        """What has happened to models since the last call."""
        told, self._news = self._news, []
        return told + self._life.take_changes()

    def versions(self) -> dict[str, str]:
        """Of the models that serve: the fingerprint of what they were loaded from, and the copy."""
        serving = self._life.serving()
        return {model: f"{self._fingerprints[copy]}#{copy}" for model, copy in serving.items()}

    def _tell_unusable(self, now: int) -> None:
        """A definition that has become unusable is an event; so is its becoming usable again."""
        before, self._unusable = self._unusable, self._versions.errors()
        serving = self._life.serving()
        for model in sorted(before.keys() | self._unusable.keys()):
            if (text := self._unusable.get(model, "")) != before.get(model, ""):
                state = State.FAILED if text else State.READY
                self._news.append(Change(now, model, serving.get(model, 0), state, one_line(text)))

    def begin(self, model: str) -> int | None:
        """A batch of the model is accepted: the copy it will run on; None: the model is not here."""
        return self._life.begin(model)

    def end(self, now: int, copy: int, *, out_of_memory: bool, ran: bool) -> None:
        """That batch is over."""
        self._do(self._life.end(now, copy, out_of_memory=out_of_memory, ran=ran))

    def report(self, now: int, report: Report) -> None:
        """The loader has finished something."""
        action, free = report.action, report.free_bytes
        if report.error is not None and action is not None and not isinstance(action, Unload):
            if not self._started:
                self._errors.append(report.error)
            reason = one_line(report.error)
            self._do(
                self._life.failed(
                    now, action.copy or 0, reason, out_of_memory=report.out_of_memory, free_bytes=free
                )
            )
            return
        match action:
            case None:
                self._opened = True
                self._do(self._life.memory(now, free))
                self.want(now, self._first)  # files may have changed
            case Load(copy=copy):
                self._took_ns[copy] = report.took_ns
                self._do(self._life.loaded(now, copy, free))
            case WarmUp(copy=copy):
                assert report.profile is not None
                self._profiles[copy] = report.profile
                self._took_ns[copy] += report.took_ns
                self._do(self._life.warmed(now, copy, free))
            case Unload(copy=copy):
                for table in (self._profiles, self._took_ns, self._fingerprints):
                    table.pop(copy, None)
                self._do(self._life.unloaded(now, copy, free))
            case Serve():
                pass

    def _do(self, actions: Sequence[Action]) -> None:
        marks = {copy.number: copy.fingerprint for copy in self._life.copies()}
        for action in actions:
            if isinstance(action, Serve):
                if action.copy is not None:
                    self._fingerprints[action.copy] = marks[action.copy]
                self._refresh()
                continue
            mark = marks.get(action.copy, "")
            self._ask(action, key_of(action.model, action.copy), self._definitions.get((action.model, mark)))

    def _refresh(self) -> None:
        serving = self._life.serving()
        self.held = Ready(
            {model: self._profiles[copy] for model, copy in serving.items()},
            self.held.gpu_type,
            self.held.memory_mb,
            {model: self._definitions[model, self._fingerprints[copy]] for model, copy in serving.items()},
            {model: self._took_ns[copy] / 1e6 for model, copy in serving.items()},
        )
