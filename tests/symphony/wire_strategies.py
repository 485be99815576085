"""Hypothesis strategies for every hot message."""

from __future__ import annotations

from hypothesis import strategies as st
from wire_examples import array

from symphony import wire

U8, U32 = st.integers(0, 255), st.integers(0, 2**32 - 1)
U64, I64 = st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1)
TIME = st.integers(-(2**63) + 1, 2**63 - 1)
NAME = st.text(max_size=40)


def _columns(count: int, **kinds: st.SearchStrategy[int]) -> st.SearchStrategy[dict[str, list[int]]]:
    return st.fixed_dictionaries(
        {name: st.lists(kind, min_size=count, max_size=count) for name, kind in kinds.items()}
    )


@st.composite
def submits(draw: st.DrawFn) -> wire.Submit:
    slot = draw(st.integers(0, 0xFFFF))
    count = draw(st.integers(0, 6))
    c = draw(_columns(count, model=U32, deadline=I64, seq=st.integers(0, 2**48 - 1), priority=U8))
    return wire.Submit(
        draw(U64),
        slot,
        array(c["model"], "<u4"),
        array(c["deadline"], "<i8"),
        array([slot << 48 | seq for seq in c["seq"]], "<u8"),
        array(c["priority"], "u1") if draw(st.booleans()) else None,
    )


@st.composite
def plans(draw: st.DrawFn) -> wire.Plan:
    names = draw(st.lists(NAME, min_size=1, max_size=3))
    sizes = draw(st.lists(st.integers(0, 4), max_size=4))
    n, k = len(sizes), sum(sizes)
    c = draw(_columns(n, batch=U64, gpu=U32, model=st.integers(0, len(names) - 1), exec_at=I64))
    r = draw(_columns(k, key=U64, deadline=I64))
    return wire.Plan(
        draw(NAME),
        names,
        array(c["batch"], "<u8"),
        array(c["gpu"], "<u4"),
        array(c["model"], "<u4"),
        array(c["exec_at"], "<i8"),
        array(sizes, "<u4"),
        array(r["key"], "<u8"),
        array(r["deadline"], "<i8"),
    )


SHAPE = st.lists(st.integers(0, 2**31 - 1), max_size=8)


@st.composite
def tensors(draw: st.DrawFn) -> wire.Tensors:
    names = draw(st.lists(NAME, max_size=3))
    keys = draw(st.lists(U64, max_size=3))
    count = len(names) * len(keys)
    specs = draw(st.lists(st.tuples(NAME, SHAPE).map(list), min_size=count, max_size=count))
    return wire.Tensors(draw(U64), array(keys, "<u8"), names, specs)


@st.composite
def results(draw: st.DrawFn) -> wire.Result:
    c = draw(st.integers(0, 5).flatmap(lambda n: _columns(n, key=U64, status=U8)))
    return wire.Result(
        draw(NAME),
        draw(NAME),
        draw(U64),
        draw(U32),
        draw(st.integers(0, wire.MAX_REQUESTS)),
        draw(TIME),
        draw(TIME),
        array(c["key"], "<u8"),
        array(c["status"], "u1"),
        draw(st.lists(st.tuples(NAME, NAME, SHAPE).map(list), max_size=3)),
        draw(st.none() | st.text(max_size=300)),
    )


@st.composite
def many_results(draw: st.DrawFn) -> wire.Results:
    names = draw(st.lists(NAME, min_size=1, max_size=3))
    counts = draw(st.lists(st.integers(0, 4), max_size=4))
    b = draw(_columns(len(counts), batch=U64, gpu=U32, model=st.integers(0, len(names) - 1), size=U32))
    t = draw(_columns(len(counts), started=TIME, finished=TIME))
    r = draw(_columns(sum(counts), key=U64, status=U8))
    return wire.Results(
        draw(NAME),
        names,
        array(b["batch"], "<u8"),
        *(array(b[name], "<u4") for name in ("gpu", "model", "size")),
        *(array(column, "<i8") for column in t.values()),
        array(counts, "<u4"),
        array(r["key"], "<u8"),
        array(r["status"], "u1"),
    )


@st.composite
def answers(draw: st.DrawFn) -> wire.Answer:
    c = draw(st.integers(0, 5).flatmap(lambda n: _columns(n, key=U64, status=U8)))
    return wire.Answer(
        draw(NAME),
        array(c["key"], "<u8"),
        array(c["status"], "u1"),
        draw(st.none() | st.text(max_size=300)),
    )


@st.composite
def dones(draw: st.DrawFn) -> wire.Done:
    names = draw(st.lists(NAME, min_size=1, max_size=3))
    index = st.integers(0, len(names) - 1)
    times = dict.fromkeys(("received", "exec_at", "started", "finished"), I64)
    c = draw(
        st.integers(0, 5).flatmap(
            lambda n: _columns(n, batch=U64, gpu=U32, model=index, size=U32, failed=U32, **times)
        )
    )
    return wire.Done(
        draw(NAME),
        draw(U64),
        names,
        array(c["batch"], "<u8"),
        *(array(c[name], "<u4") for name in ("gpu", "model", "size", "failed")),
        *(array(c[name], "<i8") for name in times),
    )
