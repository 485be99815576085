"""Arrival processes: rates, dispersion, modulation, traces; the same pattern at every rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.arrivals import START_NS, arrival_blocks, check_arrivals, copy_rates, make_arrivals
from simulator.experiment import Experiment, ExperimentError, parse_experiment
from simulator.processes import BLOCK, Choice
from simulator.traces import load_trace, trace_path


def experiment(seconds: float = 100, base: Path = Path("."), **model: Any) -> Experiment:
    model = {"name": "a", "alpha_ms": 1, "beta_ms": 5, "slo_ms": 50, "rate": 200.0} | model
    return parse_experiment({"gpus": 2, "seconds": seconds, "models": [model]}, "test", base)


def seconds_of(what: Experiment, scale: float = 1.0) -> Any:
    return (make_arrivals(what, scale).at - START_NS) / 1e9


@pytest.mark.parametrize(
    ("arrivals", "dispersion"), [("constant", 0.0), ("poisson", 1.0), ("gamma:0.1", 10.0), ("gamma:4", 0.25)]
)
def test_rate_and_dispersion(arrivals: str, dispersion: float) -> None:
    times = seconds_of(experiment(500, arrivals=arrivals))
    assert len(times) / 500 == pytest.approx(200, rel=0.05)
    gaps = np.diff(times)
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(dispersion, rel=0.1, abs=1e-6)
    assert times.min() >= 0
    assert times.max() < 500


def test_deadlines_and_numbers() -> None:
    arrivals = make_arrivals(experiment(1, count=3))
    assert set(arrivals.model) == {0, 1, 2}
    assert (arrivals.deadline - arrivals.at == 50_000_000).all()
    assert (np.diff(arrivals.at) >= 0).all()


def test_same_seed_same_pattern_at_every_rate() -> None:
    one, two = seconds_of(experiment()), seconds_of(experiment(), 2.0)
    assert (seconds_of(experiment()) == one).all()
    assert two[: len(one)] == pytest.approx(one / 2, abs=1e-6)
    other = parse_experiment(experiment().model_dump(exclude={"kind"}) | {"seed": 2}, "test")
    assert seconds_of(other)[0] != one[0]


def test_popularity() -> None:
    group = experiment(count=4, popularity="zipf:1").models[0]
    rates = copy_rates(group, 300.0)
    assert sum(rates) == pytest.approx(1200)
    assert rates[0] / rates[3] == pytest.approx(4)


def test_modulation() -> None:
    step = seconds_of(experiment(modulation={"step": [{"at": 50, "factor": 3}]}))
    assert (step >= 50).sum() / (step < 50).sum() == pytest.approx(3, rel=0.05)
    ramp = seconds_of(experiment(modulation={"ramp": [{"at": 0, "factor": 0}, {"at": 100, "factor": 2}]}))
    assert (ramp < 50).sum() / len(ramp) == pytest.approx(0.25, rel=0.05)
    sine = seconds_of(experiment(modulation={"sine": {"amplitude": 1, "period_s": 100}}))
    assert (sine < 50).sum() / len(sine) == pytest.approx(0.5 + 1 / np.pi, rel=0.05)
    off = seconds_of(experiment(modulation={"step": [{"at": 20, "factor": 0}, {"at": 80, "factor": 1}]}))
    assert ((off > 20.001) & (off < 79.999)).sum() == 0
    assert (off >= 80).sum() > 3000


STAMPS = "TIMESTAMP,Tokens\n" + "".join(
    f"2023-11-16 18:15:{s:02}.{t}000000,1\n" for s in range(50) for t in (0, 1, 5)
)


def test_timestamps_are_replayed(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(STAMPS)
    trace = load_trace(tmp_path / "t.csv")
    assert trace.times is not None
    assert trace.times[:4] == pytest.approx([0.0, 0.1, 0.5, 1.0])
    same = seconds_of(experiment(40, tmp_path, arrivals="trace:t.csv", rate=None))
    assert len(same) / 40 == pytest.approx(3, rel=0.05)
    double = seconds_of(experiment(40, tmp_path, arrivals="trace:t.csv", rate=None, trace_speed=2))
    assert len(double) / 40 == pytest.approx(6, rel=0.05)
    many = seconds_of(experiment(200, tmp_path, arrivals="trace:t.csv", rate=30))
    assert len(many) / 200 == pytest.approx(30, rel=0.05)
    few = seconds_of(experiment(200, tmp_path, arrivals="trace:t.csv", rate=1))
    assert len(few) / 200 == pytest.approx(1, rel=0.2)


def test_counts_per_minute(tmp_path: Path) -> None:
    (tmp_path / "wide.csv").write_text("Owner,Trigger,1,2,3\nx,http,10,0,20\ny,http,0,30,0\n")
    trace = load_trace(tmp_path / "wide.csv")
    assert trace.per_minute is not None
    assert trace.per_minute.tolist() == [10, 30, 20]
    times = seconds_of(experiment(180, tmp_path, arrivals="trace:wide.csv", rate=100))
    shares = np.histogram(times, [0, 60, 120, 180])[0] / len(times)
    assert shares == pytest.approx([1 / 6, 1 / 2, 1 / 3], rel=0.1)
    (tmp_path / "long.csv").write_text("minute,count\n0,5\n1,7\n")
    long = load_trace(tmp_path / "long.csv").per_minute
    assert long is not None
    assert long.tolist() == [5, 7]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("timestamp\n", "is empty"),
        ("1,2\n0,0\n", "all its counts are 0"),
        ("timestamp\n1\n3\n2\n", "out of order: line 4"),
        ("timestamp\n1\nx\n", "line 3: 'x' is neither a number nor an ISO time"),
        ("timestamp\n5\n5\n", "spans no time"),
        ("1,2\n3,x\n", "line 2: expected a number"),
        ("count\n-3\n", "out of range"),
        ("colour,size\n1,2\n", "has the columns colour, size: expected"),
    ],
)
def test_bad_traces(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ExperimentError, match=words):
        check_arrivals(experiment(10, tmp_path, arrivals="trace:t.csv"))


def test_a_missing_trace(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"cannot read the trace .*No such file"):
        check_arrivals(experiment(10, tmp_path, arrivals="trace:t.csv"))


def test_traces_that_come_with_the_simulator(tmp_path: Path) -> None:
    what = experiment(60, arrivals="trace:azure_llm_conv_2023", trace_speed=60, base=tmp_path)
    counts, _ = np.histogram(seconds_of(what), bins=58, range=(0, 58))
    assert len(seconds_of(what)) / 60 == pytest.approx(200, rel=0.05)
    assert counts[31] / counts[5] == pytest.approx(507 / 273, rel=0.25)
    example = load_trace(trace_path(tmp_path, "azure_functions_2019"))
    assert example.requests == 4525
    assert example.seconds == 86400
    (tmp_path / "azure_functions_2019").write_text("time\n0\n1\n")
    assert trace_path(tmp_path, "azure_functions_2019").parent == tmp_path
    with pytest.raises(ExperimentError, match=r"cannot read the trace .*no_such"):
        check_arrivals(experiment(arrivals="trace:no_such"))


@pytest.mark.parametrize("shares", [[1.0], [1.0, 1.0, 1.0], [5.0, 0.1, 3.0, 1.9]])
def test_choices_are_as_often_as_their_shares_however_many_at_a_time(shares: list[float]) -> None:
    def choice() -> Choice:
        return Choice(np.random.default_rng(5), np.array(shares))

    whole = choice().draw(50_000)
    parts = choice()
    assert (np.concatenate([parts.draw(n) for n in (1, 777, 20_001, 29_221)]) == whole).all()
    found = np.bincount(whole, minlength=len(shares)) / len(whole)
    assert found == pytest.approx(np.array(shares) / sum(shares), abs=0.01)


def test_copies_with_poisson_arrivals_are_independent_poisson_processes() -> None:
    arrivals = make_arrivals(experiment(1000, count=3, popularity="zipf:1", rate=100))
    rates = copy_rates(experiment(count=3, popularity="zipf:1").models[0], 100)
    counts = np.empty((3, 1000))
    for copy in range(3):
        times = (arrivals.at[arrivals.model == copy] - START_NS) / 1e9
        gaps = np.diff(times)
        assert len(times) / 1000 == pytest.approx(rates[copy], rel=0.02)
        assert gaps.var() / gaps.mean() ** 2 == pytest.approx(1, rel=0.05)
        counts[copy] = np.histogram(times, bins=1000, range=(0, 1000))[0]
    assert abs(np.corrcoef(counts) - np.eye(3)).max() < 0.12


def test_the_same_copies_at_every_rate() -> None:
    what = experiment(count=3, popularity="zipf:1")
    one, two = make_arrivals(what), make_arrivals(what, 2.0)
    assert (two.model[: len(one.model)] == one.model).all()


@pytest.mark.parametrize("changes", [{"rate": 3000}, {"count": 3}, {"count": 2, "arrivals": "gamma:0.5"}])
def test_pieces_join_to_the_whole(changes: dict[str, Any]) -> None:
    what = experiment(50, **changes)
    whole, parts = make_arrivals(what), list(arrival_blocks(what))
    assert (len(parts) > 1) == (len(whole.at) > BLOCK)
    for cut in (parts, list(whole.pieces())):
        assert (np.concatenate([part.at for part in cut]) == whole.at).all()
        assert (np.concatenate([part.model for part in cut]) == whole.model).all()
    assert (np.diff(whole.at) >= 0).all()
    with pytest.raises(ExperimentError, match="nothing arrives"):
        make_arrivals(experiment(1e-6))
