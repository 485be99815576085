from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from frontend.inputs import POOL, InputError, find_provider, make_pool
from symphony.control import ModelSpec, TensorSpec
from symphony.tensors import DTYPES, decode


def spec(*inputs: TensorSpec) -> ModelSpec:
    return ModelSpec(name="m", slo_ms=10, max_batch=4, inputs=list(inputs))


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_random_inputs_of_every_type_fit_their_model() -> None:
    inputs = [TensorSpec(name=t, dtype=t, shape=[2, -1]) for t in (*DTYPES, "BYTES")]
    pool, again = (make_pool(spec(*inputs), None, rng()) for _ in range(2))
    assert len(pool) == POOL
    first = pool[0]
    assert first is not None
    assert [decode(d, s, f).shape for (d, s), f in zip(first.specs, first.frames, strict=True)] == [
        (2, 8)
    ] * 13
    assert [bytes(f) for f in first.frames] == [bytes(f) for f in again[0].frames]  # type: ignore[union-attr]


def test_a_model_without_inputs_needs_none() -> None:
    assert make_pool(spec(), None, rng()) == [None]


def test_large_inputs_make_a_smaller_pool() -> None:
    assert len(make_pool(spec(TensorSpec(name="x", dtype="FP32", shape=[8 << 20])), None, rng())) == 3


def test_a_users_function_is_found_and_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_load_inputs.py").write_text("def texts(i, rng):\n    return {'text': f'sentence {i}'}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    pool = make_pool(
        spec(TensorSpec(name="text", dtype="BYTES")), find_provider("my_load_inputs:texts"), rng()
    )
    assert pool[5] is not None
    assert decode("BYTES", [], pool[5].frames[0]).item() == b"sentence 5"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "must be given as module:function"),
        ("no_such_module_here:f", "cannot import 'no_such_module_here'"),
        ("math:no_such_function", "'math' has no function 'no_such_function'"),
        ("math:pi", "'math' has no function 'pi'"),
    ],
)
def test_what_is_no_function_is_told(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_provider(text)


def test_a_function_that_raises_or_does_not_fit_is_told() -> None:
    model = spec(TensorSpec(name="x", dtype="FP32"))
    with pytest.raises(InputError, match="inputs for 'm' do not fit: unknown tensor 'y'"):
        make_pool(model, lambda i, rng: {"y": 1}, rng())
    with pytest.raises(InputError, match=r"the function that makes inputs for 'm' raised ZeroDivisionError"):
        make_pool(model, lambda i, rng: {"x": 1 / 0}, rng())
    with pytest.raises(InputError, match="no random inputs of type 'FP8'"):
        make_pool(spec(TensorSpec(name="x", dtype="FP8")), None, rng())
