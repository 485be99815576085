"""Random events, chosen and shrunk by hypothesis: every invariant after every step.

The rig compares the Python core, the compiled core and the reference after each event, validates the
state, and keeps its own books (each key leaves once, no overlap on a GPU, nothing after its latest).
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from rig import MS, Rig, linear
from streams import POLICIES

SPANS = st.sampled_from([0, 1, 20_000, 300_000, MS])
MODELS = st.integers(0, 2)
GPUS = st.integers(0, 4)
HELD = st.none() | st.sets(MODELS).map(sorted)
PROFILES = st.builds(linear, st.sampled_from([0, 0.5, 1]), st.sampled_from([0, 2, 5]), st.just(8))


class CoreMachine(RuleBasedStateMachine):
    """One shard's core in a small world; ``kinds`` GPU types."""

    kinds = 3

    @initialize(
        policy=st.sampled_from(POLICIES),
        control=SPANS,
        data=st.sampled_from([0, 0, 20_000]),
        result=SPANS,
        margin=SPANS,
        most=st.sampled_from([4, 1000]),
        overdue=st.sampled_from([0, 20 * MS]),
        start=st.sampled_from([0, 1_763_800_000_000_000_000]),
    )
    def begin(
        self,
        policy: str,
        control: int,
        data: int,
        result: int,
        margin: int,
        most: int,
        overdue: int,
        start: int,
    ) -> None:
        self.rig = Rig(
            plain=self.kinds == 1,
            policy=policy,
            control_ns=control,
            data_ns=data,
            result_ns=result,
            margin_ns=margin,
            max_queue=most,
            overdue_ns=overdue,
        )
        self.rig.tell("advance", start)
        self.rig.tell("add_model", 0, 30 * MS, 8)
        for kind in range(self.kinds):
            self.rig.tell("set_profile", start, 0, kind, linear(1 + kind, 5, 8))
        self.rig.tell("add_gpu", start, 1, self.kinds - 1)
        self.key = 0

    @property
    def now(self) -> int:
        return self.rig.now

    # --- requests and time -------------------------------------------------------------------

    @rule(
        after=st.integers(0, 3 * MS),
        requests=st.lists(
            st.tuples(
                MODELS, st.sampled_from([30, 30, 30, 12, 50]), st.integers(0, 3 * MS), st.integers(0, 3)
            ),
            min_size=1,
            max_size=12,
        ),
    )
    def submit(self, after: int, requests: list[tuple[int, int, int, int]]) -> None:
        now = self.now + after
        keys = list(range(self.key + 1, self.key + len(requests) + 1))
        self.key += len(requests)
        self.rig.submit(
            now,
            [model for model, _, _, _ in requests],
            [now + slo * MS + jitter for _, slo, jitter, _ in requests],
            keys,
            [priority for _, _, _, priority in requests],
        )

    @rule(n=st.integers(1, 20), model=MODELS)
    def burst(self, n: int, model: int) -> None:
        keys = list(range(self.key + 1, self.key + n + 1))
        self.key += n
        self.rig.submit(self.now, [model] * n, [self.now + 30 * MS] * n, keys)

    @rule(late=st.sampled_from([0, 0, 0, 1, 100_000]))
    def wake(self, late: int) -> None:
        due = self.rig.core.next_wakeup()
        assert due > self.now
        if due < self.now + 10_000 * MS:
            self.rig.tell("advance", due + late)

    @rule(after=st.integers(-MS, 40 * MS))
    def advance(self, after: int) -> None:
        self.rig.tell("advance", self.now + after)

    @rule(data=st.data(), drift=st.integers(-2 * MS, 2 * MS))
    def complete(self, data: st.DataObject, drift: int) -> None:
        out = [(gpu, *batch) for gpu, batches in sorted(self.rig.books.out.items()) for batch in batches]
        if not out:
            self.rig.complete(self.now, [0], [7], [self.now])
            return
        gpu, batch, _, finish_at = data.draw(st.sampled_from(out))
        now = max(self.now, finish_at + drift)
        self.rig.complete(now, [gpu], [batch], [finish_at + drift])

    # --- models and GPUs come and go ---------------------------------------------------------

    @rule(model=MODELS, profile=PROFILES, kind=st.integers(0, 2))
    def set_profile(self, model: int, profile: list[int], kind: int) -> None:
        if not self.rig.core.has_model(model):
            self.rig.tell("add_model", model, 30 * MS, 8)
        self.rig.tell("set_profile", self.now, model, kind % self.kinds, profile)

    @rule(model=MODELS)
    def remove_model(self, model: int) -> None:
        self.rig.tell("remove_model", self.now, model)

    @rule(model=MODELS)
    def drain_model(self, model: int) -> None:
        self.rig.tell("drain_model", model)

    @rule(gpu=GPUS, kind=st.integers(0, 2), held=HELD, after=st.integers(0, MS))
    def add_or_change_gpu(self, gpu: int, kind: int, held: list[int] | None, after: int) -> None:
        if self.rig.core.has_gpu(gpu):
            self.rig.tell("set_gpu_models", self.now + after, gpu, held)
        else:
            self.rig.tell("add_gpu", self.now + after, gpu, kind % self.kinds, held)

    @rule(gpu=GPUS, remove=st.booleans(), after=st.integers(0, MS))
    def drop_gpu(self, gpu: int, remove: bool, after: int) -> None:
        self.rig.tell("remove_gpu" if remove else "drain_gpu", self.now + after, gpu)

    @precondition(lambda self: self.kinds > 1)
    @rule(gpu=GPUS, kind=st.integers(0, 2), margin=st.sampled_from([0, MS, 20 * MS]), own=st.booleans())
    def learn_margin(self, gpu: int, kind: int, margin: int, own: bool) -> None:
        if own:
            self.rig.tell("set_gpu_margin", gpu, margin)
        else:
            self.rig.tell("set_type_margin", kind, margin)

    @rule(gpu=GPUS)
    def lose_gpu(self, gpu: int) -> None:
        """What was out on a GPU that dies is submitted again."""
        lost: list[Any] = [self.rig.books.taken[entry[0]] for entry in self.rig.books.out.get(gpu, [])]
        self.rig.tell("remove_gpu", self.now, gpu)
        for model, priority, _, size, _, _, _, keys, deadlines in lost:
            self.rig.submit(self.now, [model] * size, list(deadlines), list(keys), [priority] * size, True)

    # --- what must hold ----------------------------------------------------------------------

    @invariant()
    def books_balance(self) -> None:
        """What has not left is queued, and nothing else is."""
        if hasattr(self, "rig"):
            for core in self.rig.cores:
                assert sum(core.queued_by_model(3)) == self.rig.queued()

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self.rig.settle()


class OneTypeMachine(CoreMachine):
    """One GPU type and no learned margins: the rig checks windows and GPU numbers from outside, too."""

    kinds = 1


LIMITS = settings(
    max_examples=70,
    stateful_step_count=30,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestCoreMachine = CoreMachine.TestCase
TestCoreMachine.settings = LIMITS
TestOneTypeMachine = OneTypeMachine.TestCase
TestOneTypeMachine.settings = LIMITS
