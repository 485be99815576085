"""Which version of a model a definition stands for, told from the files it names without reading them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from worker.definition import Definition


def fingerprint(definition: Definition) -> str:
    """Changes when the definition, or the size, time or identity of a file that it names, changes.

    Files are those that its options, its weights or its loader name (relative to the definition's folder),
    its profile, and the module of its loader where that lies beside the definition.
    """
    digest = hashlib.sha256(definition.model_dump_json().encode())
    for file in sorted(set(files(definition))):
        try:
            status = file.stat()
        except OSError:
            digest.update(f"{file}: missing".encode())
            continue
        digest.update(f"{file}: {status.st_size} {status.st_mtime_ns} {status.st_ino}".encode())
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
    if ":" in definition.loader:
        module = definition.loader.partition(":")[0]
        beside = definition.base / f"{module.replace('.', '/')}.py"
        if beside.is_file():
            yield beside
