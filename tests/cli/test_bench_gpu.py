"""``symphony bench gpu``: its time is kept to by phases, and what it leaves out is named."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import gpu
from bench.budget import Budget
from bench.gpu_live import judge
from bench.search import Tried, highest
from symphony.profile import Profile
from symphony.profile_file import BatchFigures, ProfileFile
from symphony.status import SymphonyError


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def budget(clock: Clock, limit: float = 100) -> Budget:
    return Budget(limit, {"a": 0.5, "b": 0.3, "c": 0.2}, clock)


def test_a_phase_passes_on_what_it_saves_and_takes_what_it_overruns() -> None:
    clock = Clock()
    saved = budget(clock)
    assert saved.begin("a") == 50
    clock.now += 20
    assert saved.begin("b") == pytest.approx(48)
    assert saved.each_s(4) == pytest.approx(12)
    clock.now += 70
    assert saved.left_s() == 0
    assert saved.begin("c") == pytest.approx(10)
    clock.now += 20
    saved.end()
    assert saved.took_s == {"a": 20, "b": 70, "c": 20}
    assert (saved.total_left_s(), saved.spent_s()) == (0, 110)


def test_a_search_ends_when_there_is_no_time_but_not_before_its_first_run() -> None:
    ran: list[float] = []

    def attempt(scale: float, seed: int) -> Tried:
        ran.append(scale)
        return Tried(scale, 0.0, seed)

    assert highest(attempt, 4, enough=lambda: True).scale == 0.7
    assert highest(attempt, 3).scale > 0.9
    assert len(ran) == 4


def made(name: str) -> ProfileFile:
    batch = BatchFigures(b=1, p50_ms=1, p95_ms=1, p99_ms=1, memory_mb=1)
    return ProfileFile(
        model=name, device="g", precision="fp16", torch="2", measured_at="now", weights_mb=1, load_ms=1,
        batches=[batch, batch.model_copy(update={"b": 8, "p50_ms": 2, "p95_ms": 2})],
    )  # fmt: skip


class Measured(gpu.Profiles):
    """Each profile takes what the test says, and the time that it may use per size is kept."""

    def __init__(self, clock: Clock, takes: dict[str, float], limit: float) -> None:
        options = argparse.Namespace(precision="fp16", budget=0.25)
        super().__init__(options, Budget(limit, gpu.SHARES, clock), Path("."))
        self.clock, self.takes = clock, takes
        self.per_size: dict[str, float] = {}

    def _one(self, name: str, precision: str, per_size: float) -> ProfileFile:
        self.per_size[name] = per_size
        self.clock.now += self.takes[name]
        if self.takes[name] == 7:
            raise SymphonyError("out of memory")
        return made(name)


def test_profiles_get_less_time_each_and_in_the_end_are_left_out_by_name() -> None:
    profiles = Measured(Clock(), {"a": 60, "b": 60, "c": 60, "d": 20}, 450)
    profiles._budget.begin("profiles")
    profiles.measure(["a", "b", "c", "d"], "fp16")
    assert profiles.made.keys() == {"a", "b"}
    assert profiles.per_size["b"] < profiles.per_size["a"] <= 0.25
    assert profiles._budget.left_out == ["profile of c in fp16", "profile of d in fp16"]


def test_one_profile_that_fails_is_left_out_unless_it_is_the_first() -> None:
    profiles = Measured(Clock(), {"a": 20, "b": 7}, 450)
    profiles._budget.begin("profiles")
    profiles.measure(["a", "b"], "fp16")
    assert profiles._budget.left_out == ["profile of b in fp16: out of memory"]
    with pytest.raises(SymphonyError, match="out of memory"):
        profiles.measure(["b", "a"], "fp16")


def test_what_a_command_says_last_is_the_error_and_nothing_else() -> None:
    fails = [sys.executable, "-c", "import sys; sys.exit('noise\\nsymphony: no such device')"]
    with pytest.raises(SymphonyError, match=r"^no such device$"):
        gpu._run(fails, "it", 60)
    with pytest.raises(SymphonyError, match=r"^it: not done after 0 s$"):
        gpu._run([sys.executable, "-c", "import threading; threading.Event().wait()"], "it", 0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "nothing"], "bench gpu: no model 'nothing' in the zoo: there is bert-base"),
        (["--models", "resnet50-emulated"], "bench gpu: model 'resnet50-emulated' is emulated"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.main(arguments)
    assert str(ended.value.code).startswith(message)


def test_everything_is_put_together_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def one(self: gpu.Profiles, name: str, precision: str, per_size: float) -> ProfileFile:
        return made(name).model_copy(update={"precision": precision})

    def live(how: Any, names: list[str], files: Any, tables: Any, factor: float, *rest: Any) -> Any:
        if factor == 5:
            raise RuntimeError("log\nthe cluster is not ready")
        row = dict.fromkeys(("goodput_rps", "fluid_ideal_rps", "share", "busy_share", "bad_share"), 0.5)
        row |= {"predicted_vs_measured_p99": 0.01, "gap_p50_us": None, "mean_batch": 1.0}
        rows = [{"model": name, "slo_factor": factor, "slo_ms": 10.0, **row} for name in names]
        point = {"rates": [1.0] * len(names), "slo_ms": [10.0] * len(names), "least_s": 40.0}
        return rows, {"name": f"{factor:g}", **point}

    monkeypatch.setattr(gpu.Profiles, "_one", one)
    monkeypatch.setattr(gpu, "live", live)
    monkeypatch.setattr(gpu, "plain", lambda *rest: {"2.5": {"minilm": 3.0, "crepe-full": 4.0}})
    options = argparse.Namespace(
        device="cpu", precision="fp16", max_batch=8, threads=1, cuda_graphs=False, seconds=1.0, steps=2,
        limit=450.0, models="minilm,crepe-full", also_profile="fp32", slo_factors="2.5,5,10", budget=0.25,
    )  # fmt: skip
    found = gpu.measure(options)
    assert found["profiles"]["minilm"].keys() == {"fp16", "fp32"}
    assert found["left_out"] == ["SLO 5 l(1): the cluster is not ready"]
    assert found["phases_s"].keys() == gpu.SHARES.keys()
    keys = {"goodput_rps", "fluid_ideal_rps", "share", "busy_share", "predicted_vs_measured_p99"}
    keys |= {"gap_p50_us", "plain_loop_goodput_rps", "model", "slo_ms"}
    assert all(keys <= row.keys() for row in found["results"])
    assert [row["plain_loop_goodput_rps"] for row in found["results"]] == [3.0, 4.0, None, None]
    shown = gpu.show(found)
    assert "left out: SLO 5 l(1): the cluster is not ready" in shown
    assert found["device"] == "g"
    options.limit = 50.0  # of which no 40 s are left for the second SLO
    assert gpu.measure(options)["left_out"] == ["SLO 5 l(1)", "SLO 10 l(1)"]


def test_batches_are_judged_by_their_times() -> None:
    table = Profile((1000, 2000))
    batches = [  # model, size, received, exec_at, started, finished
        ("m", 1, 0, 0, 0, 1000),
        ("m", 2, 500, 0, 1100, 3300),
        ("m", 1, 5000, 0, 6000, 7000),
        ("m", 0, 0, 0, 0, 0),
    ]
    judged = judge(batches, {"m": table}, 1e-5)
    assert judged["busy_share"] == 0.42
    assert judged["gap_p50_us"] == 0.1, "the third batch was planned after the second had ended"
    assert judged["off_p99"]["m"] == pytest.approx(0.098, abs=1e-3)
    assert judged["batches"] == 3
