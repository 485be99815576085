"""The worker's loop over real loopback sockets, between a fake broker, shard and frontends."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import zmq
from fake_device import FakeDevice, definition, double, runner, xs
from fake_peers import FakeFrontend, FakePeers, answered, running

from symphony import control, wire
from symphony.membership import describe
from symphony.profile import Profile
from symphony.status import Status, SymphonyError
from worker.definition import Definition, load_definition
from worker.device import DeviceLost
from worker.process import Settings, Worker, span
from worker.runners import EmulatedRunner

MODEL = definition()


def emulated(peers: FakePeers, gpus: int = 8, profile: Profile | None = None) -> Any:
    model = load_definition("resnet50-emulated")
    if profile is not None:
        points = {size: ns / 1e6 for size, ns in enumerate(profile.latency_ns, 1)}
        model = load_definition(
            {"name": "resnet50", "slo_ms": 100, "max_batch": len(points), "loader": "emulated"}
            | {"profile": {"points": points}}
        )
    return running(peers, EmulatedRunner([model], "emulated"), [model], gpus=gpus)


# -- a real device ---------------------------------------------------------------------------------


def test_requests_of_two_frontends_get_their_own_answers_once(peers: FakePeers) -> None:
    with running(peers, runner(FakeDevice(), MODEL), [MODEL]):
        member = peers.ready()
        assert (member.models, member.shard) == (["double"], "shard-0")
        assert [(g.type, g.memory_mb) for g in member.gpus] == [("fake", 123)]
        one, two = peers.frontend(), peers.frontend()
        keys = {f.request(xs(i, 1)): (f, i) for i in range(20) if (f := (one, two)[i % 2])}
        batch = peers.plan("double", list(keys))
        peers.until(answered(one, [k for k, (f, _) in keys.items() if f is one]))
        peers.until(answered(two, [k for k, (f, _) in keys.items() if f is two]))
        for key, (frontend, i) in keys.items():
            ((status, outputs, error),) = frontend.answers[key]
            if i == 13:  # which this model refuses
                assert status == Status.INVALID
            else:
                assert (status, error, float(outputs["y"])) == (Status.OK, None, 2 * (i + 1))
        peers.until(lambda: peers.done)
        assert len(one.results) == len(two.results) == 1
        assert one.results[0].size == 19
        assert (one.results[0].batch, one.results[0].worker) == (batch, "worker-0")
        assert peers.batches_done() == {batch: (19, 1)}
        (done,) = peers.done
        assert done.received[0] <= done.started[0] <= done.finished[0]


def test_ops_are_told_the_same_timings_as_the_shard(peers: FakePeers) -> None:
    with running(peers, runner(FakeDevice(), MODEL), [MODEL]):
        peers.ready()
        frontend = peers.frontend()

        def heard() -> bool:  # nothing is kept for subscribers that come late
            if len(frontend.answers) == peers._batch:
                peers.plan("double", [frontend.request(xs(1))])
            return bool(peers.telemetry)

        peers.until(heard)
        (told, *_) = peers.telemetry
        peers.until(lambda: [done for done in peers.done if done.sequence == told.sequence])
        (same,) = (done for done in peers.done if done.sequence == told.sequence)
        assert wire.encode_done(told) == wire.encode_done(same)


def test_missing_invalid_and_good_requests_in_one_batch(peers: FakePeers) -> None:
    with running(peers, runner(FakeDevice(), MODEL), [MODEL]):
        peers.ready()
        frontend = peers.frontend()
        good, gone = frontend.request(xs(1, 2)), frontend.request(None)
        bad = frontend.request({"x": np.zeros(3, dtype=np.float32)})
        batch = peers.plan("double", [gone, bad, good])
        peers.until(answered(frontend, [good, bad]))
        peers.until(lambda: batch in peers.batches_done())
        assert gone not in frontend.answers
        assert frontend.answers[good][0][:2] == (Status.OK, {"y": np.float32(6)})
        status, _, error = frontend.answers[bad][0]
        assert status == Status.INVALID
        assert error is not None
        assert "'x' must have shape [2], not [3]" in error
        assert peers.batches_done() == {batch: (1, 2)}


def test_a_batch_of_which_nothing_is_left_is_done_with_size_0(peers: FakePeers) -> None:
    device = FakeDevice()
    with running(peers, runner(device, MODEL), [MODEL]):
        peers.ready()
        frontend = peers.frontend()
        batch = peers.plan("double", [frontend.request(None), frontend.request(None)])
        peers.until(lambda: batch in peers.batches_done())
        assert peers.batches_done() == {batch: (0, 2)}
        assert frontend.answers == {}


def test_a_model_that_raises_on_some_batches_fails_those(peers: FakePeers) -> None:
    def picky(x: Any) -> Any:
        if x.sum() > 100:
            raise ValueError("too loud")
        return double(x)

    with running(peers, runner(FakeDevice(picky), MODEL), [MODEL]):
        peers.ready()
        frontend = peers.frontend()
        keys = [frontend.request(xs(60 * i)) for i in range(4)]
        for key in keys:
            peers.plan("double", [key])
        peers.until(answered(frontend, keys))
        assert [frontend.answers[key][0][0] for key in keys] == [Status.OK] * 2 + [Status.FAILED] * 2
        assert frontend.answers[keys[3]][0][2] == "ValueError: too loud"


def test_inputs_of_the_next_batch_are_fetched_while_one_runs(peers: FakePeers) -> None:
    device = FakeDevice()
    with running(peers, runner(device, MODEL), [MODEL]):
        peers.ready()
        frontend = peers.frontend()
        device.gate.clear()
        first, second = frontend.request(xs(1)), frontend.request(xs(2))
        entered = device.entered
        peers.plan("double", [first])
        peers.until(lambda: device.entered > entered)
        prepared = len(device.prepared)
        peers.plan("double", [second])
        peers.until(lambda: len(device.prepared) > prepared)
        assert frontend.answers == {}
        device.gate.set()
        peers.until(answered(frontend, [first, second]))


def test_a_plan_for_a_frontend_that_is_not_known_yet_waits_for_it(peers: FakePeers) -> None:
    with running(peers, runner(FakeDevice(), MODEL), [MODEL]):
        peers.ready()
        frontend = peers.frontend()  # its announcement is published by the next pump, after the plan
        key = frontend.request(xs(5))
        held, peers.registry.events = peers.registry.events, type(peers.registry.events)()
        peers.plan("double", [key])
        peers.until(lambda: outstanding(peers) == 1)
        assert frontend.answers == {}
        peers.registry.events.extend(held)
        peers.until(answered(frontend, [key]))


def outstanding(peers: FakePeers) -> object:
    """Batches that have not finished, as the worker's heartbeats say."""
    member = peers.member("worker-0")
    return None if member is None else member.stats.get("outstanding")


def test_a_silent_frontend_costs_its_own_requests_only(peers: FakePeers) -> None:
    with running(peers, runner(FakeDevice(), MODEL), [MODEL]):
        peers.ready()
        silent, good = peers.frontend(), peers.frontend()
        silent.silent = True
        mixed = [silent.request(xs(1)), good.request(xs(2))]
        lost = silent.request(xs(3))
        later = good.request(xs(4))
        peers.plan("double", [lost], deadline_ms=400)
        peers.plan("double", mixed, deadline_ms=400)
        peers.plan("double", [later], deadline_ms=400)
        peers.until(answered(good, [mixed[1], later]))
        peers.until(answered(silent, [lost, mixed[0]]))
        assert good.answers[mixed[1]][0][0] == good.answers[later][0][0] == Status.OK
        for key in (lost, mixed[0]):
            assert silent.answers[key] == [(Status.UNAVAILABLE, {}, "the inputs did not come in time")]


def test_a_dead_frontend_does_not_hold_its_batch(peers: FakePeers) -> None:
    with running(peers, runner(FakeDevice(), MODEL), [MODEL]) as worker:
        peers.ready()
        dying, good = peers.frontend(), peers.frontend()
        dying.silent = True
        keys = [dying.request(xs(1)), good.request(xs(2))]
        batch = peers.plan("double", keys, deadline_ms=60_000)
        peers.until(lambda: dying.fetched and good.fetched)
        dying.die()
        peers.until(answered(good, keys[1:]))
        peers.until(lambda: batch in peers.batches_done())
        assert peers.batches_done()[batch] == (1, 1)
        again = peers.plan("double", [dying.request(xs(3))], deadline_ms=60_000)
        peers.until(lambda: again in peers.batches_done())
        assert peers.batches_done()[again] == (0, 1)
        assert worker.faults.counts["fetch-frontend-gone"] == 1


def test_plans_that_cannot_be_run_are_answered(peers: FakePeers) -> None:
    with running(peers, runner(FakeDevice(), MODEL), [MODEL]) as worker:
        peers.ready()
        frontend = peers.frontend()
        keys = [frontend.request(xs(1)) for _ in range(40)]
        peers.plan("other", keys[:1])
        peers.plan("double", keys[1:2], gpu=7)
        peers.plan("double", keys[2:])
        peers.plan("double", [])
        peers.until(answered(frontend, keys))
        peers.until(lambda: len(peers.batches_done()) == 4)
        assert {frontend.answers[key][0][0] for key in keys} == {Status.UNAVAILABLE}
        texts = [frontend.answers[key][0][2] for key in keys[:3]]
        assert texts == [
            "worker-0: model 'other' is not loaded here",
            "worker-0: GPU 7 is not here",
            "worker-0: a batch of 38 is more than 'double' takes: 32",
        ]
        assert worker.faults.counts["dispatch-unavailable"] == 3
        assert sorted(peers.batches_done().values()) == [(0, 0), (0, 1), (0, 1), (0, 38)]


def test_a_restarted_shard_gets_the_timings_again(peers: FakePeers) -> None:
    with running(peers, runner(FakeDevice(), MODEL), [MODEL]):
        peers.ready()
        frontend = peers.frontend()
        peers.registry.dead("shard-0", peers.shard.incarnation)
        peers.bus.drop(peers._done)
        peers._done, endpoint = peers.bus.bind(zmq.SUB, "tcp://127.0.0.1:*")
        peers._done.setsockopt(zmq.SUBSCRIBE, b"done.")
        peers.join(describe("shard-0", "scheduler", endpoints={"done": endpoint}))

        peers.until(lambda: _again(peers, frontend))


def _again(peers: FakePeers, frontend: FakeFrontend) -> bool:
    """The first batches may end before the worker knows the new shard; those are the old one's."""
    if len(frontend.answers) == peers._batch:
        peers.plan("double", [frontend.request(xs(1))])
    return bool(peers.done)


def test_no_timing_is_lost_while_the_shard_has_not_subscribed_yet(peers: FakePeers) -> None:
    peers._done.setsockopt(zmq.UNSUBSCRIBE, b"done.")
    with running(peers, runner(FakeDevice(), MODEL), [MODEL]):
        peers.ready()
        frontend = peers.frontend()
        keys = [frontend.request(xs(i)) for i in range(5)]
        batches = [peers.plan("double", [key]) for key in keys]
        peers.until(answered(frontend, keys))
        assert peers.done == []
        peers._done.setsockopt(zmq.SUBSCRIBE, b"done.worker")
        peers.until(lambda: list(peers.batches_done()) == batches)
        assert [done.sequence for done in peers.done] == sorted(done.sequence for done in peers.done)


def test_a_lost_device_ends_the_worker_with_an_error(peers: FakePeers) -> None:
    device = FakeDevice()
    with running(peers, runner(device, MODEL), [MODEL]) as worker:
        peers.ready()
        frontend = peers.frontend()

        def lost(x: Any) -> Any:
            raise DeviceLost("device-side assert")

        device.function = lost
        key = frontend.request(xs(1))
        peers.plan("double", [key])
        peers.until(answered(frontend, [key]))
        assert frontend.answers[key][0][0] == Status.FAILED
        peers.until(lambda: peers.member("worker-0") is None)
    (error,) = worker.errors  # type: ignore[attr-defined]
    assert isinstance(error, SymphonyError)
    assert "the device is lost: device-side assert" in str(error)


# -- stopping --------------------------------------------------------------------------------------


def test_stopping_finishes_what_is_queued_then_leaves(peers: FakePeers) -> None:
    device = FakeDevice()
    with running(peers, runner(device, MODEL), [MODEL]) as worker:
        peers.ready()
        frontend = peers.frontend()
        device.gate.clear()
        keys = [frontend.request(xs(i)) for i in range(3)]
        entered = device.entered
        for key in keys:
            peers.plan("double", [key])
        peers.until(lambda: device.entered > entered and len(frontend.fetched) == 3)
        worker.stop()
        peers.until(lambda: (m := peers.member("worker-0")) and m.state == "draining")
        device.gate.set()
        peers.until(answered(frontend, keys))
        peers.until(lambda: peers.member("worker-0") is None)
    assert [frontend.answers[key][0][0] for key in keys] == [Status.OK] * 3
    assert worker.errors == []  # type: ignore[attr-defined]
    assert worker.stopped_cleanly


def test_what_does_not_finish_within_the_bound_is_unavailable(peers: FakePeers) -> None:
    device = FakeDevice()
    with running(peers, runner(device, MODEL), [MODEL], drain_s=0.5) as worker:
        peers.ready()
        frontend = peers.frontend()
        device.gate.clear()
        key, entered = frontend.request(xs(1)), device.entered
        batch = peers.plan("double", [key])
        peers.until(lambda: device.entered > entered)
        worker.stop()
        peers.until(answered(frontend, [key]))
        assert frontend.answers[key] == [(Status.UNAVAILABLE, {}, "the worker stops")]
        peers.until(lambda: batch in peers.batches_done())
        device.gate.set()
    assert len(frontend.answers[key]) == 1


def test_stopping_before_there_is_a_broker_ends_at_once() -> None:
    settings = Settings("w", "shard-0", *(f"tcp://127.0.0.1:{port}" for port in (9, 10, 11)))
    worker = Worker(settings, EmulatedRunner([], "emulated"))
    worker.stop()
    worker.run()
    worker.stop()  # once more does no harm


def test_a_final_refusal_ends_the_worker_with_the_brokers_reason(peers: FakePeers) -> None:
    other = MODEL.spec({}).model_copy(update={"slo_ms": 5.0})
    join = control.Join(member=describe("elsewhere", "worker"), models=[other])
    assert isinstance(peers.registry.handle(0, 0, join), control.Joined)
    with running(peers, runner(FakeDevice(), MODEL), [MODEL]) as worker:
        peers.until(lambda: worker._error is not None)
    (error,) = worker.errors  # type: ignore[attr-defined]
    reason = "the broker refuses worker-0: model 'double': slo_ms is 100.0 here and 5.0 on elsewhere"
    assert reason in str(error)


# -- emulated GPUs ---------------------------------------------------------------------------------


def test_emulated_gpus_fetch_nothing_and_keep_their_time(peers: FakePeers) -> None:
    with emulated(peers):
        member = peers.ready()
        assert [gpu.number for gpu in member.gpus] == list(range(8))
        frontend = peers.frontend()
        keys = [frontend.request(None) for _ in range(60)]
        for gpu in range(8):
            peers.plan("resnet50", keys[gpu * 5 : gpu * 5 + 5], gpu=gpu)
        for _ in range(4):
            peers.plan("resnet50", keys[40:45], gpu=0)
        peers.until(lambda: sum(len(d.batch) for d in peers.done) == 12)
        peers.until(answered(frontend, keys[:45]))
        assert frontend.fetched == []
        busy = {r.finished - r.started for r in frontend.results}
        assert max(abs(b - (5 * 1_082_000 + 5_204_000)) for b in busy) <= 50_000  # the clock may be adjusted
        on_0 = sorted((r.started, r.finished) for r in frontend.results if r.gpu == 0)
        assert all(a[1] <= b[0] + 50_000 for a, b in itertools.pairwise(on_0))
        assert all(r.outputs == [] for r in frontend.results)


def test_emulated_gpus_need_no_pytorch() -> None:
    code = "import sys, worker.process, worker.runners, symphony.cli.worker; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert done.stdout.strip() == b"False"


def test_a_fresh_definition_of_the_same_name_is_used(peers: FakePeers) -> None:
    other: Definition = definition("double", slo_ms=50)
    with running(peers, runner(FakeDevice(), other), [other]):
        peers.ready()
        peers.until(lambda: peers.registry.catalogue.specs())
        assert peers.registry.catalogue.specs()[0].profiles["fake"][0] == 1_100_000


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], "none"), ([3], "3"), ([0, 1], "0, 1"), ([0, 1, 2], "0-2"), ([1, 3, 4], "1, 3, 4")],
)
def test_gpu_numbers_for_people(numbers: list[int], text: str) -> None:
    assert span(numbers) == text


def test_a_frontend_with_a_malformed_endpoint_is_counted(peers: FakePeers) -> None:
    with emulated(peers) as worker:
        peers.ready()
        joined = peers.join(describe("odd", "frontend", endpoints={"reply": "nonsense"}))
        assert joined.slot is not None
        peers.plan("resnet50", [joined.slot << 48 | 1])
        peers.until(lambda: worker.faults.counts["reply-bad-endpoint"])
