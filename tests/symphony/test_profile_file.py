"""The profile file: what it must hold, what is refused, when two measurements agree."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

import symphony.profile
import symphony.profile_file
from symphony.profile import Profile, ProfileError
from symphony.profile_file import FORMAT, ProfileFile

LEAST: dict[str, Any] = {
    "format": FORMAT,
    "model": "m",
    "device": "NVIDIA-H100",
    "precision": "fp16",
    "torch": "2.13.0",
    "measured_at": "2026-01-31T12:00:00+00:00",
    "weights_mb": 40.5,
    "load_ms": 500,
    "batches": [
        {"b": 1, "p50_ms": 2.0, "p95_ms": 2.5, "p99_ms": 3.0, "memory_mb": 60},
        {"b": 4, "p50_ms": 5.0, "p95_ms": 5.5, "p99_ms": 6.0, "memory_mb": 90},
    ],
}


def changed(*times: float, spread: float = 0.05) -> ProfileFile:
    batches = [
        {"b": b, "p50_ms": t, "p95_ms": t, "p99_ms": t, "memory_mb": 1, "spread": spread}
        for b, t in enumerate(times, 1)
    ]
    return ProfileFile.parse(LEAST | {"batches": batches})


@pytest.mark.parametrize("module", [symphony.profile, symphony.profile_file])
def test_the_example_that_the_documentation_gives_can_be_loaded(module: Any, tmp_path: Path) -> None:
    example = re.search(r"one map::\n\n((?: {4}.*\n)+)", module.__doc__)
    assert example is not None
    file = tmp_path / "example.yaml"
    file.write_text(textwrap.dedent(example[1]))
    assert Profile.load(file).latency_ns[0] > 0


def test_the_fields_that_every_file_holds_suffice(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(json.dumps(LEAST))
    made = ProfileFile.load(file)
    assert made.profile().latency_ns == (2_500_000, 3_500_000, 4_500_000, 5_500_000)
    assert (made.memory_mb(1), made.memory_mb(4)) == (60, 90)
    assert Profile.load(file) == made.profile()


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    made = ProfileFile.parse(LEAST | {"notes": ["unstable"], "stable": False, "clocks_mhz": {"sm": [1, 2]}})
    made.save(tmp_path / "p.json")
    assert ProfileFile.load(tmp_path / "p.json") == made
    held = json.loads((tmp_path / "p.json").read_text())
    assert LEAST.keys() <= held.keys()
    assert LEAST["batches"][0].keys() <= held["batches"][0].keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": []}, "batches: List should have at least 1 item"),
        ({"batches": LEAST["batches"][::-1]}, r"batches: expected ascending sizes, found \[4, 1\]"),
        ({"precision": "int8"}, "precision: "),
        ({"colour": "red"}, "colour: "),
        ({"batches": [LEAST["batches"][0] | {"p95_ms": 0}]}, r"batches.0.p95_ms: "),
        ({"device": None}, "device: "),
    ],
)
def test_a_bad_file_names_itself_and_the_field(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(LEAST | change))
    with pytest.raises(ProfileError, match=f"bad.json: {message}"):
        ProfileFile.load(file)
    with pytest.raises(ProfileError, match=f"bad.json: {message}"):
        Profile.load(file)


def test_a_file_of_another_device_or_precision_is_refused() -> None:
    made = ProfileFile.parse(LEAST)
    made.check_device("NVIDIA-H100", "fp16")
    with pytest.raises(ProfileError, match="measured on 'NVIDIA-H100', but this device is 'cpu': measure"):
        made.check_device("cpu", "fp16")
    with pytest.raises(ProfileError, match="measured in fp16, but the model runs in fp32"):
        made.check_device("NVIDIA-H100", "fp32")


def test_noise_is_levelled_out_and_a_deep_fall_refused() -> None:
    assert changed(10, 9.2, 12).profile().latency_ns == (10_000_000, 10_000_000, 12_000_000)
    with pytest.raises(ProfileError, match="falls from 10 ms at batch size 1 to 5 ms"):
        changed(10, 5).profile()
    assert changed(10, 5, spread=0.3).profile().latency(2) == 10_000_000


def test_two_measurements_agree_within_their_spreads_or_the_sizes_are_named() -> None:
    assert changed(10, 20).differences(changed(10.9, 18.5)) == []
    (said,) = changed(10, 20).differences(changed(11.2, 20))
    assert said == "batch 1: 10 and 11.2 ms are 12.0% apart, the stated spreads allow 10.0%"
    assert changed(10, 20).differences(changed(10)) == [], "sizes that only one of them has say nothing"
