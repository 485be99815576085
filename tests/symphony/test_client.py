"""The blocking and the asyncio client, over real loopback sockets."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from typing import Any

import numpy as np
import pytest
from fake_cluster import GRACE_MS, SLO_MS, FakeCluster
from helpers import free_ports, wait_until

import symphony
from symphony import AsyncClient, Client, InferResult
from symphony.status import (
    Dropped,
    Failed,
    InvalidRequest,
    Overloaded,
    RequestTimeout,
    SymphonyError,
    Unavailable,
    UnknownModel,
)

X = {"x": np.arange(3, dtype=np.float32)}

ERRORS: list[tuple[str, dict[str, Any] | None, type[SymphonyError], type[Exception], str]] = [
    ("drops", None, Dropped, SymphonyError, "deadline could not be met"),
    ("full", None, Overloaded, SymphonyError, "queue is full"),
    ("fails", X, Failed, SymphonyError, "ValueError: the model's own text"),
    ("refuses", X, InvalidRequest, ValueError, "x is not what it should be"),
    ("silent", None, RequestTimeout, TimeoutError, "nobody answered"),
    ("nix", None, UnknownModel, LookupError, "unknown model 'nix'; the cluster serves: "),
    ("double", {"z": 1}, InvalidRequest, ValueError, "unknown tensor 'z'"),
]


@pytest.fixture
def client(cluster: FakeCluster) -> Iterator[Client]:
    with Client(cluster.registry, cluster.subscribe, grace_ms=GRACE_MS) as client:
        yield client


def test_infer_returns_the_callers_own_arrays(client: Client) -> None:
    y = client.infer("double", X)["y"]
    assert y.tolist() == [0, 2, 4]
    y += 1
    assert client.infer("upper", {"text": "a sentence"})["upper"].item() == b"A SENTENCE"
    assert client.infer("plain") == {}


@pytest.mark.parametrize(("model", "inputs", "error", "builtin", "text"), ERRORS)
def test_infer_raises_the_exception_of_the_status(
    client: Client,
    model: str,
    inputs: dict[str, Any] | None,
    error: type[SymphonyError],
    builtin: type[Exception],
    text: str,
) -> None:
    with pytest.raises(error, match=text) as caught:
        client.infer(model, inputs)
    assert isinstance(caught.value, builtin)
    assert caught.value.status is not None


def test_a_result_tells_how_it_came_about(client: Client) -> None:
    result = client.submit("double", X).result(10)
    assert (result.worker, result.gpu, result.batch_size, result.late) == ("worker-0", 3, 1, False)
    assert result.finished - result.started == 1_000_000
    assert 0 < result.latency_ns < SLO_MS * 1e6
    assert "double" not in repr(result)
    assert "y: " in repr(result)
    assert client.submit("late", deadline_ms=20).result(10).late


@pytest.mark.parametrize("deadline_ms", [0, -5, float("nan"), float("inf"), 1e12, "soon"])
def test_a_deadline_in_the_past_or_absurd_is_told(
    client: Client, cluster: FakeCluster, deadline_ms: Any
) -> None:
    with pytest.raises(InvalidRequest, match="deadline_ms must be"):
        client.infer("plain", deadline_ms=deadline_ms)
    assert cluster.shards[0].submitted == []


def test_the_model_is_told_the_deadline_and_the_priority(client: Client, cluster: FakeCluster) -> None:
    for deadline_ms, priority in ((None, 0), (900.0, 2), (np.int64(800), 0), (np.float32(800), 0)):
        now = client.engine.clock.now()
        client.infer("plain", deadline_ms=deadline_ms, priority=priority)
        sent = cluster.shards[0].submitted[-1]
        assert 0 <= int(sent.deadline[0]) - now - (deadline_ms or SLO_MS) * 1e6 < 500e6
        assert (None if sent.priority is None else sent.priority.tolist()) == (
            [priority] if priority else None
        )


def test_many_in_flight_from_several_threads(client: Client) -> None:
    results: list[list[float]] = [[] for _ in range(6)]

    def caller(number: int) -> None:
        futures = [client.submit("double", {"x": np.array([number, i], np.float32)}) for i in range(150)]
        results[number] = [float(f.result(20).outputs["y"][1]) for f in futures]
        for i in range(10):
            assert client.infer("double", {"x": [number, i]})["y"].tolist() == [2 * number, 2 * i]

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[2.0 * i for i in range(150)]] * 6


def test_closing_with_requests_in_flight_ends_each(cluster: FakeCluster) -> None:
    client = Client(cluster.registry, cluster.subscribe, grace_ms=GRACE_MS, drain_s=0.05)
    futures = [client.submit("silent", deadline_ms=60_000) for _ in range(200)]
    client.close()
    assert all(isinstance(f.exception(0), Unavailable) for f in futures)
    assert isinstance(client.submit("plain").exception(0), Unavailable)
    client.close()


def test_a_waiting_thread_is_freed_by_a_close(cluster: FakeCluster) -> None:
    client = Client(cluster.registry, cluster.subscribe, grace_ms=GRACE_MS, drain_s=0)
    caught: list[Exception] = []

    def caller() -> None:
        try:
            client.infer("silent", deadline_ms=60_000)
        except SymphonyError as error:
            caught.append(error)

    thread = threading.Thread(target=caller)
    thread.start()
    wait_until(lambda: client.engine.in_flight == 1)
    client.close()
    thread.join(10)
    assert [type(error) for error in caught] == [Unavailable]


def test_closing_waits_for_what_comes_in_time(cluster: FakeCluster) -> None:
    with Client(cluster.registry, cluster.subscribe, grace_ms=GRACE_MS) as client:
        futures = [client.submit("holds", X) for _ in range(10)]
        wait_until(lambda: len(cluster.shards[0].fetched) == 10)
        cluster.shards[0].release()
    assert [f.result(0).outputs["y"].tolist() for f in futures] == [[0, 2, 4]] * 10


def test_a_cancelled_future_ignores_its_answer(client: Client, cluster: FakeCluster) -> None:
    futures = [client.submit("holds", X) for _ in range(2)]
    wait_until(lambda: len(cluster.shards[0].fetched) == 2)
    assert futures[0].cancel()
    cluster.shards[0].release()
    assert futures[1].result(10).outputs["y"].tolist() == [0, 2, 4]
    with pytest.raises(CancelledError):
        futures[0].result(0)
    assert client.engine.faults.counts == {}


def test_every_future_has_its_outcome_when_everything_goes_wrong(cluster: FakeCluster) -> None:
    client = Client(cluster.registry, cluster.subscribe, grace_ms=GRACE_MS, drain_s=0)
    models = ["double", "plain", "silent", "drops", "fails", "twice", "nix", "late", "refuses", ""]
    futures: list[Future[InferResult]] = []
    for i in range(600):
        model = models[i % len(models)]
        inputs = X if model in ("double", "fails", "refuses") else None
        futures.append(client.submit(model, inputs, deadline_ms=200 if i % 3 else None))
        if i == 300:
            cluster.shards[0].kill()
    assert not wait(futures, 20).not_done
    client.close()
    kinds = Counter(type(f.exception()).__name__ for f in futures)
    assert kinds["Unavailable"] >= 200
    assert kinds.total() == 600


def test_no_broker() -> None:
    (port,) = free_ports(1)
    endpoint = f"tcp://127.0.0.1:{port}"
    with pytest.raises(Unavailable, match=f"no broker answered at {endpoint}"):
        Client(endpoint, endpoint, connect_timeout_s=0.05)


# -- asyncio -------------------------------------------------------------------------------------


def run(cluster: FakeCluster, scenario: Callable[[AsyncClient], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with AsyncClient(cluster.registry, cluster.subscribe, grace_ms=GRACE_MS, **options) as client:
            await asyncio.wait_for(scenario(client), 30)

    asyncio.run(main())


def test_async_thousands_at_once(cluster: FakeCluster) -> None:
    async def scenario(client: AsyncClient) -> None:
        tasks = [
            client.infer("double", {"x": np.array([i], np.float32)}, deadline_ms=10_000) for i in range(3_000)
        ]
        answers = await asyncio.gather(*tasks)
        assert [float(a["y"][0]) for a in answers] == [2.0 * i for i in range(3_000)]

    run(cluster, scenario)


@pytest.mark.parametrize(("model", "inputs", "error", "builtin", "text"), ERRORS)
def test_async_raises_the_exception_of_the_status(
    cluster: FakeCluster,
    model: str,
    inputs: dict[str, Any] | None,
    error: type[SymphonyError],
    builtin: type[Exception],
    text: str,
) -> None:
    async def scenario(client: AsyncClient) -> None:
        with pytest.raises(error, match=text):
            await client.infer(model, inputs)
        with pytest.raises(InvalidRequest, match="deadline_ms must be above 0"):
            await client.infer("plain", deadline_ms=-1)

    run(cluster, scenario)


def test_async_cancellation_leaves_the_others_alone(cluster: FakeCluster) -> None:
    async def scenario(client: AsyncClient) -> None:
        tasks = [asyncio.create_task(client.submit("holds", X)) for _ in range(2)]
        await asyncio.to_thread(wait_until, lambda: len(cluster.shards[0].fetched) == 2)
        tasks[0].cancel()
        await asyncio.gather(tasks[0], return_exceptions=True)
        cluster.shards[0].release()
        assert (await tasks[1]).outputs["y"].tolist() == [0, 2, 4]
        assert tasks[0].cancelled()

    run(cluster, scenario)


def test_async_close_with_requests_in_flight(cluster: FakeCluster) -> None:
    async def main() -> None:
        client = AsyncClient(cluster.registry, cluster.subscribe, grace_ms=GRACE_MS, drain_s=0)
        tasks = [asyncio.create_task(client.infer("silent", deadline_ms=60_000)) for _ in range(50)]
        await asyncio.to_thread(wait_until, lambda: client.engine.in_flight == 50)
        await client.close()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {Unavailable}

    asyncio.run(main())


def test_async_no_broker_is_told_to_each() -> None:
    (port,) = free_ports(1)
    endpoint = f"tcp://127.0.0.1:{port}"

    async def main() -> None:
        with pytest.raises(Unavailable, match="no broker answered"):
            async with AsyncClient(endpoint, endpoint, connect_timeout_s=0.05):
                pass
        client = AsyncClient(endpoint, endpoint, connect_timeout_s=0.05)
        outcomes = await asyncio.gather(*(client.infer("plain") for _ in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Unavailable] * 3
        await client.close()

    asyncio.run(main())


def test_async_one_client_one_loop(cluster: FakeCluster) -> None:
    client = AsyncClient(cluster.registry, cluster.subscribe, grace_ms=GRACE_MS)
    asyncio.run(client.connect())

    async def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="belongs to the event loop"):
            await client.infer("plain")

    asyncio.run(elsewhere())
    client.engine.close()


# -- the package ---------------------------------------------------------------------------------


def test_the_public_names_are_there() -> None:
    assert all(getattr(symphony, name) is not None for name in symphony.__all__)
    assert set(symphony.__all__) <= set(dir(symphony))
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        _ = symphony.Nonsense


def test_importing_the_package_imports_neither_zmq_nor_numpy() -> None:
    code = "import symphony, sys; print(sorted({'zmq', 'numpy', 'msgpack'} & sys.modules.keys()))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"
