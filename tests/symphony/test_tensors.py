from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from symphony import tensors
from symphony.control import TensorSpec
from symphony.status import InvalidRequest

TEXT = TensorSpec(name="text", dtype="BYTES")
IMAGE = TensorSpec(name="image", dtype="FP32", shape=[3, -1])


class OnTheGpu:
    """Makes no array of itself, with an error of its own, as a CUDA tensor does."""

    def __array__(self, *_: object, **__: object) -> Any:
        raise RuntimeError("it is on the GPU")


@given(st.sampled_from(sorted(tensors.DTYPES)), st.data())
def test_every_numeric_type_survives_the_round_trip(name: str, data: st.DataObject) -> None:
    array = data.draw(hnp.arrays(tensors.DTYPES[name], hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)))
    dtype, shape, frame = tensors.encode(array)
    back = tensors.decode(dtype, shape, bytes(frame))
    assert dtype == name
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@given(st.lists(st.binary(max_size=20), max_size=12))
def test_bytes_survive_the_round_trip(items: list[bytes]) -> None:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    dtype, shape, frame = tensors.encode(array)
    assert tensors.decode(dtype, shape, frame).tolist() == items


@given(st.binary(max_size=64), st.lists(st.integers(0, 5), max_size=3), st.integers(1, 4))
def test_hostile_frames_raise_nothing_but_invalid_request(frame: bytes, shape: list[int], rows: int) -> None:
    for dtype in (*tensors.DTYPES, "BYTES", "FP8", ""):
        try:
            out = tensors.Rows(dtype, shape, frame, rows)
        except InvalidRequest:
            continue
        assert [out.row(i).shape for i in range(rows)] == [tuple(shape)] * rows


def test_layouts_other_than_c_little_endian_are_put_in_order() -> None:
    base = np.arange(12, dtype=">i4").reshape(3, 4)
    for array in (base, base.T, base[:, ::2], np.asfortranarray(base)):
        dtype, shape, frame = tensors.encode(array)
        assert (dtype, shape) == ("INT32", list(array.shape))
        assert tensors.decode(dtype, shape, frame).tolist() == array.tolist()


def test_encoding_a_contiguous_array_copies_nothing() -> None:
    array = np.zeros(1000, dtype=np.float32)
    array.flags.writeable = False
    frame = tensors.encode(array)[2]
    assert np.shares_memory(np.frombuffer(frame, dtype=np.float32), array)


def test_rows_are_taken_apart_and_owned_by_the_caller() -> None:
    batch = np.arange(6, dtype=np.float32).reshape(3, 2)
    rows = tensors.Rows("FP32", [2], batch.tobytes(), 3)
    row = rows.row(1)
    row += 1
    assert row.tolist() == [3, 4]
    assert rows.row(1).tolist() == [2, 3]


def test_rows_of_bytes() -> None:
    frame = b"".join(struct.pack("<I", len(x)) + x for x in (b"a", b"", b"ccc", b"d"))
    rows = tensors.Rows("BYTES", [2], frame, 2)
    assert [rows.row(i).tolist() for i in range(2)] == [[b"a", b""], [b"ccc", b"d"]]


@pytest.mark.parametrize(
    "value", ["héllo", b"h\xc3\xa9llo", np.array("héllo"), np.array("héllo", dtype=object)]
)
def test_text_is_a_bytes_scalar(value: Any) -> None:
    encoded = tensors.encode_inputs([TEXT], {"text": value})
    assert encoded.specs == [["BYTES", []]]
    assert tensors.decode("BYTES", [], encoded.frames[0])[()] == "héllo".encode()


def test_python_numbers_take_the_type_that_the_model_wants() -> None:
    encoded = tensors.encode_inputs([IMAGE], {"image": [[1, 2.5], [3, 4], [5, 6]]})
    assert encoded.specs == [["FP32", [3, 2]]]


@pytest.mark.parametrize(
    ("spec", "inputs", "text"),
    [
        (IMAGE, {}, "tensor 'image' is missing; the model takes image"),
        (IMAGE, {"imgae": np.zeros((3, 1))}, "unknown tensor 'imgae'; the model takes image"),
        (IMAGE, {"image": np.zeros((3, 1))}, "tensor 'image' must be FP32, not FP64"),
        (
            IMAGE,
            {"image": np.zeros((2, 1), np.float32)},
            r"must have shape \[3, -1\] \(-1: any length\), not \[2, 1\]",
        ),
        (IMAGE, {"image": np.zeros((1, 3, 2), np.float32)}, "there is no batch dimension"),
        (IMAGE, {"image": "text"}, "tensor 'image' must be FP32, not BYTES"),
        (
            IMAGE,
            {"image": np.zeros((3, 1), np.complex64)},
            "tensor 'image': arrays of complex64 cannot be sent",
        ),
        (IMAGE, {"image": [[1], [2, 3]]}, "tensor 'image': no array can be made of it"),
        (TEXT, {"text": np.array([1, None], dtype=object)}, "must be str or bytes, not int"),
        (TEXT, {"text": "\ud800"}, "tensor 'text': a text is no valid Unicode"),
        (IMAGE, {"image": OnTheGpu()}, "tensor 'image': no array can be made of it: it is on the GPU"),
        (IMAGE, {"image": [OnTheGpu()]}, "tensor 'image': no array can be made of it: it is on the GPU"),
        (TEXT, {"text": ["a", "b"]}, r"must have shape \[\], not \[2\]"),
        (TensorSpec(name="n", dtype="UINT8"), {"n": 300}, "does not fit in UINT8"),
        (TensorSpec(name="n", dtype="FP16"), {"n": 1e6}, "does not fit in FP16"),
        (TensorSpec(name="n", dtype="INT32"), {"n": 1.5}, "must be INT32, not FP64"),
        (TEXT, [("text", "a")], "inputs must map tensor names to arrays"),
    ],
)
def test_a_wrong_input_is_told_what_was_expected(spec: TensorSpec, inputs: Any, text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        tensors.encode_inputs([spec], inputs)


def test_a_model_without_inputs_takes_none() -> None:
    assert tensors.encode_inputs([], {}) == ((), [], [])
    with pytest.raises(InvalidRequest, match="the model takes no tensors"):
        tensors.encode_inputs([], {"x": 1})
