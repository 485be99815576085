"""Which version of a model counts: told from the files it is made of, its definition's own among them.

A version has a fingerprint, made of the definition and of the size, time and identity of every file that it
names; none is read for that. :class:`Versions` looks again and again: what has changed and been left alone
for :data:`SETTLE_NS` since is a new version, so that a file that is still being written is not loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from symphony.status import SymphonyError
from worker.definition import Definition, DefinitionError, load_definition

SETTLE_NS: Final = 1_000_000_000
PROMISED: Final = ("name", "loader", "slo_ms", "max_batch", "inputs", "outputs")
"""What the cluster was told of a model; of the loader only whether it is an emulated one."""


def fingerprint(definition: Definition) -> str:
    """Changes when the definition, or the size, time or identity of a file that it names, changes.

    Files are those that its options, its weights or its loader name (relative to the definition's folder),
    its profile, and the modules of its loader and hooks where they lie beside the definition.
    """
    digest = hashlib.sha256(definition.model_dump_json().encode())
    for file in sorted(set(files(definition))):
        digest.update(_mark(file).encode())
    return digest.hexdigest()[:16]


def files(definition: Definition) -> Iterator[Path]:
    """Files that the model is made from."""
    for value in definition.options.values():
        if isinstance(value, str) and (definition.base / value).is_file():
            yield definition.base / value
    if definition.weights is not None:
        yield definition.base / definition.weights
    if definition.file is not None:
        yield definition.file
    if definition.profile is not None and definition.profile.file is not None:
        yield definition.base / definition.profile.file
    hooks = (definition.check, definition.preprocess, definition.postprocess, definition.samples)
    for reference in (definition.loader, *hooks):
        if reference is not None and ":" in reference:
            beside = definition.base / f"{reference.partition(':')[0].replace('.', '/')}.py"
            if beside.is_file():
                yield beside


def _mark(file: Path) -> str:
    try:
        status = file.stat()
    except OSError:
        return f"{file}: missing"
    return f"{file}: {status.st_size} {status.st_mtime_ns} {status.st_ino}"


@dataclass(slots=True)
class _Followed:
    """``asked``: as it was wanted; ``now``: as its file says. ``source``: that file's mark when it was read.
    ``seen``, ``since``: another state of the files, and when it was first seen."""

    asked: Definition
    now: Definition
    fingerprint: str
    source: str
    seen: str = ""
    since: int = 0
    error: str = ""


class Versions:
    """Follows the files of models that are wanted. One thread's own."""

    def __init__(self) -> None:
        self._followed: dict[str, _Followed] = {}

    def look(self, now: int, asked: Definition) -> tuple[Definition, str]:
        """The definition as its file says, and its fingerprint; what was wanted before and has changed on
        disk a moment ago is given as it was.

        Args:
            now: ns, of any clock.
            asked: as it is wanted; another one than before counts at once.
        """
        source = "" if asked.source is None else _mark(asked.source)
        held = self._followed.get(asked.name)
        if held is None or held.asked != asked:
            self._followed[asked.name] = _Followed(asked, asked, fingerprint(asked), source)
            return asked, self._followed[asked.name].fingerprint
        seen = source + fingerprint(held.now)
        if seen == held.source + held.fingerprint:
            held.seen = ""
        elif seen != held.seen:
            held.seen, held.since = seen, now
        elif now - held.since >= SETTLE_NS:
            self._take(held, source)
        return held.now, held.fingerprint

    def keep(self, names: set[str]) -> None:
        """Forget all other models."""
        self._followed = {name: held for name, held in self._followed.items() if name in names}

    def errors(self) -> dict[str, str]:
        """Definitions that have changed into something that cannot be used, by model, and why."""
        return {name: held.error for name, held in self._followed.items() if held.error}

    def _take(self, held: _Followed, source: str) -> None:
        if source != held.source:
            held.source, held.error = source, ""
            try:
                held.now = _read_again(held.asked, held.now)
            except DefinitionError as error:
                held.error = f"its definition has changed, the version before goes on: {error}"
        held.fingerprint, held.seen = fingerprint(held.now), ""


def _read_again(asked: Definition, before: Definition) -> Definition:
    """Raises DefinitionError: it cannot be read, or promises something else."""
    assert asked.source is not None
    try:
        found = load_definition(asked.source)
    except SymphonyError as error:
        raise DefinitionError(str(error)) from None
    for key in PROMISED:
        old, new = getattr(before, key), getattr(found, key)
        if key == "loader":
            old, new = before.emulated, found.emulated
        if old != new:
            raise DefinitionError(
                f"{asked.source}: {key} is another, but what the cluster was told of a model stays while it "
                "runs: give it another name, or start the workers anew"
            )
    return found
