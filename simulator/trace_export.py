"""Schedules as Chrome traces, for https://ui.perfetto.dev: one track per GPU, one slice per batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .arrivals import START_NS
from .engine import Record
from .experiment import ExperimentError
from .system import NEVER, Cluster

MOST = 200_000
"""Slices that are written; viewers are slow beyond."""
PROCESS = 1
"""Process and threads are numbered from 1: Perfetto takes number 0 for the kernel's idle task."""


def trace_events(cluster: Cluster, record: Record) -> list[dict[str, Any]]:
    """The first :data:`MOST` batches in the Trace Event Format (times in µs from the beginning)."""
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": PROCESS, "args": {"name": "GPUs"}},
    ]
    for gpu in range(len(cluster.gpu_type)):
        track = {"ph": "M", "pid": PROCESS, "tid": gpu + 1}
        events.append(track | {"name": "thread_name", "args": {"name": f"GPU {gpu}"}})
        events.append(track | {"name": "thread_sort_index", "args": {"sort_index": gpu}})
    for i in range(min(MOST, len(record.start))):
        model = cluster.models[int(record.model[i])]
        lost = bool(record.answered[i] >= NEVER)
        events.append(
            {
                "ph": "X",
                "name": f"{model.name} × {record.size[i]}" + (" (lost)" if lost else ""),
                "cat": "lost" if lost else "batch",
                "pid": PROCESS,
                "tid": int(record.gpu[i]) + 1,
                "ts": (int(record.start[i]) - START_NS) / 1e3,
                "dur": int(record.end[i] - record.start[i]) / 1e3,
                "args": {
                    "batch": i,
                    "size": int(record.size[i]),
                    "decided_ms": (int(record.decided[i]) - START_NS) / 1e6,
                },
            }
        )
    return events


def write_trace(path: Path, cluster: Cluster, record: Record) -> None:
    """Write the file.

    Raises:
        ExperimentError: it cannot be written.
    """
    content = {"displayTimeUnit": "ms", "traceEvents": trace_events(cluster, record)}
    try:
        path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
    except OSError as error:
        raise ExperimentError(f"cannot write {path}: {error.strerror}") from None
