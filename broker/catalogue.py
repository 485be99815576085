"""The models that the cluster knows: one specification per name, profiles merged by GPU type."""

from __future__ import annotations

import itertools
from typing import Final

from symphony.control import ModelSpec
from symphony.status import SymphonyError

MAX_MODELS: Final = 10_000
_FIXED: Final = ("slo_ms", "max_batch", "inputs", "outputs")


class Conflict(SymphonyError):
    """The specification cannot be taken; the text says what differs from what."""


class Catalogue:
    """A name stays known when its last announcer is gone, but may then be announced with other values."""

    def __init__(self) -> None:
        self._specs: dict[str, ModelSpec] = {}
        self._announcers: dict[str, set[str]] = {}

    def specs(self) -> list[ModelSpec]:
        """All, in the order in which they were first announced."""
        return list(self._specs.values())

    def announce(self, member: str, specs: list[ModelSpec]) -> list[ModelSpec]:
        """Take in what ``member`` announces, all or nothing; returns what is new or has changed.

        Raises:
            Conflict: a profile is malformed, or a live member has announced other values.
        """
        merged: dict[str, ModelSpec] = {}
        for spec in specs:
            _check(spec)
            merged[spec.name] = self._merge(member, merged.get(spec.name, self._specs.get(spec.name)), spec)
        if len(self._specs.keys() | merged.keys()) > MAX_MODELS:
            raise Conflict(f"the cluster knows {MAX_MODELS} models already")
        changed = [spec for name, spec in merged.items() if self._specs.get(name) != spec]
        self._specs |= merged
        for name in merged:
            self._announcers.setdefault(name, set()).add(member)
        return changed

    def _merge(self, member: str, known: ModelSpec | None, spec: ModelSpec) -> ModelSpec:
        if known is None:
            return spec
        others = self._announcers.get(spec.name, set()) - {member}
        for field in _FIXED:
            old, new = getattr(known, field), getattr(spec, field)
            if old == new:
                continue
            if others:
                raise Conflict(
                    f"model {spec.name!r}: {field} is {_text(new)} here and {_text(old)} on "
                    f"{', '.join(sorted(others)[:3])}; one name must mean the same everywhere"
                )
            return spec
        return known.model_copy(update={"profiles": known.profiles | spec.profiles})

    def forget(self, member: str) -> None:
        """``member`` is gone: what only it has announced may be announced with other values."""
        for announcers in self._announcers.values():
            announcers.discard(member)


def _check(spec: ModelSpec) -> None:
    for gpu_type, table in spec.profiles.items():
        where = f"model {spec.name!r}, profile for {gpu_type!r}"
        if len(table) != spec.max_batch:
            raise Conflict(f"{where}: {len(table)} latencies, but max_batch is {spec.max_batch}")
        if min(table) <= 0 or max(table) >= 1 << 62:
            raise Conflict(f"{where}: a latency is no positive number of nanoseconds")
        if any(after < before for before, after in itertools.pairwise(table)):
            raise Conflict(f"{where}: the latency falls as the batch grows")


def _text(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(f"{t.name} {t.dtype}{t.shape}" for t in value)[:200] + "]"
    return str(value)
