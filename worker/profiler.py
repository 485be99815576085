"""Measures one model on one device and makes its profile file: what ``symphony profile`` does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

from symphony.profile import ProfileError
from symphony.profile_file import BatchFigures, ProfileFile
from worker.definition import PRECISIONS, Definition, DefinitionError
from worker.device import Device, OutOfMemory
from worker.loading import sampler
from worker.profiling import Trial
from worker.sweep import Plan, Size, Timing, complaints, first_sizes, spreads, sweep
from worker.turns import Turns

MB: Final = 1 << 20

Progress = Callable[[int, int, int], None]


def measure_profile(
    device: Device,
    definition: Definition,
    plan: Plan,
    *,
    threads: int = 1,
    clocks: Callable[[], dict[str, int]] = dict,
    progress: Progress = lambda done, total, size: None,
) -> ProfileFile:
    """Load, warm up, measure, unload.

    Args:
        device: where nothing else runs.
        definition: the model; its own profile, if any, is ignored.
        plan: which sizes, and how often each.
        threads: for the file: what the device was opened with.
        clocks: MHz by name, asked once per batch size; empty where there is nobody to ask.
        progress: see :func:`~worker.sweep.sweep`.

    Raises:
        DefinitionError: the model cannot be loaded or run, or nobody can tell what its inputs are.
        OutOfMemory: not even the smallest batch fits; larger ones that do not are left out, with a note.
    """
    sample = sampler(definition)
    if sample is None:
        raise DefinitionError(
            f"model {definition.name!r}: give it samples (module:function that makes one request's inputs): "
            "inputs of any length cannot be made up to measure it with"
        )
    key = f"{definition.name}#profile"
    before = device.peak_bytes(reset=True)
    began = time.monotonic_ns()
    device.load(key, definition)
    loaded = time.monotonic_ns()
    trial = Trial(device, key, definition, sample, Turns())
    try:
        trial.first()
        for size in plan.sizes or first_sizes(plan.max_batch):
            try:
                trial.run(size)
            except OutOfMemory:
                break
        warmed = time.monotonic_ns()
        measured, peaks, seen, notes = _measure(device, trial, plan, clocks, progress)
        graphs = device.graph_sizes(key)
        weights = device.weights_bytes(key) / MB
    finally:
        device.unload(key)
    base = 0.0 if device.memory_mb else before / MB
    unstable = complaints(measured)
    notes += unstable
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if not device.memory_mb and load > cores:
        notes.append(f"{load:.1f} processes wanted this machine's {cores} cores: figures are theirs, too")
    versions = device.describe()
    batches = [
        _figures(size, spread, max(0.0, peaks[size.b] / MB - base), graphs)
        for size, spread in zip(measured, spreads(measured), strict=True)
    ]
    made = ProfileFile(
        model=definition.name,
        device=device.gpu_type,
        precision=PRECISIONS[definition.precision],
        torch=versions.get("torch", ""),
        driver=versions.get("driver"),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        weights_mb=round(weights, 3),
        load_ms=round((loaded - began) / 1e6, 3),
        warm_up_ms=round((warmed - loaded) / 1e6, 3),
        threads=None if device.memory_mb else threads,
        compile=definition.compile,
        cuda_graphs=definition.cuda_graphs,
        clocks_mhz={name: [min(values), max(values)] for name, values in seen.items()},
        stable=not unstable,
        notes=notes,
        batches=batches,
    )
    try:
        fit = made.profile().fit()
    except ProfileError as error:
        return made.model_copy(update={"stable": False, "notes": [*notes, str(error)]})
    found = {"alpha_ms": fit.alpha_ms, "beta_ms": fit.beta_ms, "r2": fit.r2}
    return made.model_copy(update={"fit": {name: round(value, 6) for name, value in found.items()}})


def _measure(
    device: Device, trial: Trial, plan: Plan, clocks: Callable[[], dict[str, int]], progress: Progress
) -> tuple[list[Size], dict[int, int], dict[str, list[int]], list[str]]:
    peaks: dict[int, int] = {}
    seen: dict[str, list[int]] = {}
    notes: list[str] = []
    limit = plan.max_batch

    def run(size: int) -> Timing:
        fresh = size not in peaks
        if fresh:
            device.peak_bytes(reset=True)
        executed, pre = trial.run(size)
        if fresh:
            peaks[size] = device.peak_bytes()
            for name, value in clocks().items():
                seen.setdefault(name, []).append(value)
        busy = executed.finished_ns - executed.started_ns
        return Timing(pre, executed.copy_in_ns, max(busy, 1), executed.copy_out_ns, executed.post_ns)

    while True:
        sizes = plan.sizes if plan.sizes is None else [size for size in plan.sizes if size <= limit]
        try:
            fitting = Plan(
                limit, sizes, plan.runs, plan.least, plan.budget_s, plan.tolerance, plan.most_sizes
            )
            return sweep(run, fitting, progress), peaks, seen, notes
        except OutOfMemory:
            # Sizes are measured in ascending order first: what failed is more than what fits.
            largest = max((size for size in peaks if size < limit), default=0)
            tried = [size for size in first_sizes(limit) if size <= largest]
            if not tried or tried[-1] == limit:
                raise
            notes.append(f"batches of more than {tried[-1]} do not fit into the device's memory")
            limit = tried[-1]
            peaks.clear()


def _figures(size: Size, spread: float, memory_mb: float, graphs: list[int]) -> BatchFigures:
    times = size.times()
    p50, p90, p95, p99 = np.percentile(times, (50, 90, 95, 99))
    parts: dict[str, Any] = {
        f"{name}_ms": round(float(np.median(size.times(name))), 4)
        for name in ("pre", "copy_in", "copy_out", "post")
    }
    return BatchFigures(
        b=size.b,
        p50_ms=round(float(p50), 5),
        p90_ms=round(float(p90), 5),
        p95_ms=round(float(p95), 5),
        p99_ms=round(float(p99), 5),
        max_ms=round(float(times.max()), 5),
        memory_mb=round(memory_mb, 3),
        runs=len(times),
        spread=round(spread, 4),
        runs_with=graphs[size.b - 1] if size.b <= len(graphs) else 0,
        **parts,
    )
