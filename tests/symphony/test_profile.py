"""Latency profiles: exact tables, monotone points, files, and refusals that name the size."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symphony.profile import FORMAT, Profile, ProfileError

MS = 1_000_000


def test_line() -> None:
    profile = Profile.linear(1.082, 5.204, 128)
    assert profile.max_batch == 128
    assert profile.latency(1) == 6_286_000
    assert profile.latency(77) == 88_518_000
    fit = profile.fit()
    assert (round(fit.alpha_ms, 6), round(fit.beta_ms, 6), round(fit.r2, 9)) == (1.082, 5.204, 1.0)


def test_points_are_interpolated_and_cut_at_max_batch() -> None:
    profile = Profile.points({1: 5.0, 2: 6.0, 4: 9.0, 8: 13.0}, 6)
    assert [value / MS for value in profile.latency_ns] == [5.0, 6.0, 7.5, 9.0, 10.0, 11.0]


def test_a_small_fall_is_levelled_and_a_large_one_refused() -> None:
    assert Profile.points({1: 5.0, 2: 4.95, 3: 7.0}, 3).latency_ns == (5 * MS, 5 * MS, 7 * MS)
    with pytest.raises(ProfileError, match="falls from 5 ms at batch size 1 to 4 ms at batch size 2"):
        Profile.points({1: 5.0, 2: 4.0}, 2)


def test_many_small_falls_do_not_add_up_unseen() -> None:
    with pytest.raises(ProfileError, match="falls from 5 ms at batch size 1"):
        Profile.points({size: 5.0 - 0.05 * (size - 1) for size in range(1, 9)}, 8)


@pytest.mark.parametrize(
    ("points", "max_batch", "text"),
    [
        ({2: 5.0, 4: 6.0}, 4, "no point for batch size 1"),
        ({}, 4, "no point for batch size 1"),
        ({1: 5.0, 2: 6.0}, 8, "ends at batch size 2, but max_batch is 8"),
        ({1: 0.0, 2: 6.0}, 2, "batch size 1 is 0.0"),
        ({1: 5.0, 2: -1.0}, 2, "batch size 2 is -1.0"),
        ({1: 5.0, 2: math.nan}, 2, "batch size 2 is nan"),
        ({1: 5.0, 2: math.inf}, 2, "batch size 2 is inf"),
        ({0: 5.0, 1: 6.0}, 1, "batch size 0"),
        ({1: 5.0}, 0, "max_batch is 0"),
        ({1: 5.0}, 5000, "max_batch is 5000"),
        ({1: True}, 1, "batch size 1 is True"),
    ],
)
def test_unusable_points(points: dict[int, float], max_batch: int, text: str) -> None:
    with pytest.raises(ProfileError, match=text):
        Profile.points(points, max_batch)


@pytest.mark.parametrize("table", [(), (0,), (5, 4), (1.5,), (True,), (1,) * 5000])
def test_unusable_tables(table: tuple[int, ...]) -> None:
    with pytest.raises(ProfileError):
        Profile(table)


@pytest.mark.parametrize(("alpha", "beta"), [(-1.0, 5.0), (math.nan, 1.0), (0.0, 0.0), (1.0, math.inf)])
def test_unusable_lines(alpha: float, beta: float) -> None:
    with pytest.raises(ProfileError):
        Profile.linear(alpha, beta, 4)


def test_sizes_outside_the_table_are_refused() -> None:
    profile = Profile.linear(1, 1, 4)
    for size in (0, 5, -1):
        with pytest.raises(ProfileError, match="outside 1 … 4"):
            profile.latency(size)


@given(
    st.dictionaries(st.integers(2, 64), st.floats(0.001, 1e4), max_size=20),
    st.floats(0.001, 1e4),
    st.integers(1, 64),
    st.integers(0, 10**11),
)
def test_any_sorted_points_make_a_monotone_table(
    more: dict[int, float], first: float, max_batch: int, budget: int
) -> None:
    sizes = sorted({1, max_batch, *more})
    values = sorted([first, *more.values(), *([1e4] * (len(sizes) - len(more) - 1))])
    profile = Profile.points(dict(zip(sizes, values, strict=True)), max_batch)
    assert list(profile.latency_ns) == sorted(profile.latency_ns)
    assert profile.latency_ns[0] == round(values[0] * MS)
    fits = profile.largest_within(budget)
    assert fits == sum(value <= budget for value in profile.latency_ns)


def test_save_and_load(tmp_path: Path) -> None:
    profile = Profile.points({1: 5.0, 2: 6.1, 4: 9.3}, 4)
    profile.save(tmp_path / "p.json", {"model": "m"})
    assert Profile.load(tmp_path / "p.json") == profile
    assert json.loads((tmp_path / "p.json").read_text())["meta"]["model"] == "m"


def test_load_of_points_in_yaml(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(f"format: {FORMAT}\nmax_batch: 3\nlatency_ms: {{1: 5, 2: 6, 4: 8}}\n")
    assert Profile.load(tmp_path / "p.yaml") == Profile((5 * MS, 6 * MS, 7 * MS))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "neither JSON nor YAML"),
        ("format: 2026-02-31", "neither JSON nor YAML"),
        ("[1, 2]", "no profile"),
        ("format: other", "no profile"),
        (f"format: {FORMAT}", "one of 'latency_ns' and 'latency_ms'"),
        (f"format: {FORMAT}\nlatency_ns: 5", "expected a list"),
        (f"format: {FORMAT}\nlatency_ns: [5, 0]", "batch size 2 is 0"),
        (f"format: {FORMAT}\nlatency_ns: [5, 6]\nmax_batch: 3", "max_batch is 3"),
        (f"format: {FORMAT}\nlatency_ms: {{a: 3}}", "batch size 'a' is no integer"),
        (f"format: {FORMAT}\nlatency_ms: [3]", "expected a map"),
        (f"format: {FORMAT}\nlatency_ms: {{1: x}}", "batch size 1 is 'x'"),
        (f"format: {FORMAT}\nlatencies: []", "unknown key 'latencies'"),
    ],
)
def test_unusable_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(ProfileError, match=message) as caught:
        Profile.load(file)
    assert "broken.yaml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"cannot read the profile .*gone\.json: No such file"):
        Profile.load(tmp_path / "gone.json")
