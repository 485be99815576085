"""Random settings and random events for a rig."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from rig import MS, SETTINGS, Rig, linear

POLICIES = ("adaptive", "adaptive:0.7", "deferred", "eager", "target", "latest", "timeout:4", "timeout:3:5")


def random_settings(rng: random.Random, names: tuple[str, ...] = SETTINGS) -> dict[str, Any]:
    """Settings of a core; half of the time with 0 for each of ``names``; the others are 0."""
    spans = {
        name: rng.choice((0, rng.randrange(2 * MS) // (20 if name == "data_ns" else 1))) for name in names
    }
    return {
        "policy": rng.choice(POLICIES),
        "max_queue": rng.choice((3, 20, 65_536)),
        "horizon_ns": 1000 * MS,
        "overdue_ns": rng.choice((0, 30 * MS)),
        **spans,
    }


class Stream:
    """Random events for a rig: requests, completions early and late, timers on time and late, models
    and GPUs that come, change, drain and go, and a share of nonsense.

    Args:
        rig: takes them.
        rng: where the choices come from.
        start: the first event's time in ns.
        churn: how often models and GPUs change, as a share of the events.
        kinds: GPU types; None for 1 to 3, by chance.
        apart: each type is slower than the one before by so many times the first one's slope.
    """

    def __init__(
        self,
        rig: Rig,
        rng: random.Random,
        start: int = 0,
        churn: float = 0.05,
        kinds: int | None = None,
        apart: int = 1,
    ) -> None:
        self.rig = rig
        self.rng = rng
        self.churn = churn
        self.now = start
        self.sequence = Counter(dict.fromkeys(range(4), 0))
        self.kinds = kinds or rng.choice((1, 1, 2, 3))
        self.apart = apart
        self.partial = rng.random() < 0.5
        self.load = rng.choice((1, 3, 10, 30))
        rig.tell("advance", start)
        for model in range(rng.choice((1, 2, 4))):
            self.new_model(model)
        for gpu in range(rng.choice((1, 2, 5))):
            self.new_gpu(gpu)

    def profile(self, model: int, kind: int) -> None:
        rng = self.rng
        largest = self.rig.core.models.max_batch[model]
        alpha, beta = rng.choice((0, 0.2, 1, 2)), rng.choice((0, 1, 5))
        slope = alpha * (1 + self.apart * kind)
        self.rig.tell("set_profile", self.now, model, kind, linear(slope, beta, largest))

    def new_model(self, model: int) -> None:
        rng = self.rng
        self.rig.tell("add_model", model, rng.choice((10, 25, 100)) * MS, rng.choice((1, 4, 16)))
        for kind in range(self.kinds):
            if rng.random() < 0.9:
                self.profile(model, kind)

    def new_gpu(self, gpu: int) -> None:
        self.rig.tell("add_gpu", self.now, gpu, self.rng.randrange(self.kinds), self.held())

    def held(self) -> list[int] | None:
        rng = self.rng
        return [m for m in range(4) if rng.random() < 0.7] if self.partial and rng.random() < 0.7 else None

    def pass_time(self) -> None:
        rng = self.rng
        choice = rng.random()
        due = self.rig.core.next_wakeup() if choice < 0.4 else self.rig.due()
        if choice < 0.6 and due < self.now + 5000 * MS:
            self.now = due + rng.choice((0, 0, 0, 1, rng.randrange(MS)))
        elif choice < 0.98:
            self.now += rng.randrange(1 + rng.choice((0, 1000, MS, 20 * MS)))
        else:
            self.now += rng.choice((60, 500, 6000)) * MS

    def step(self) -> None:
        rng = self.rng
        self.pass_time()
        choice = rng.random()
        if choice < self.churn:
            self.change()
        elif choice < 0.5:
            self.requests()
        elif choice < 0.75:
            self.completions()
        elif choice < 0.77:
            self.nonsense()
        else:
            self.rig.tell("advance", self.now)

    def requests(self) -> None:
        rng = self.rng
        n = rng.randrange(1 + self.load)
        model = [rng.randrange(5) for _ in range(n)]
        deadline, key, priority = [], [], []
        for m in model:
            slot = rng.choice((0, 0, 1, 3))
            self.sequence[slot] += 1
            key.append((slot << 48) + self.sequence[slot])
            known = self.rig.core.has_model(m)
            slo = self.rig.core.models.slo[m] if known else MS
            jitter = rng.choice((0, 0, 0, -rng.randrange(slo), rng.randrange(slo), rng.randrange(1000)))
            deadline.append(self.now + slo + jitter)
            priority.append(rng.choice((0, 0, 1, 3, 7)))
        self.rig.submit(self.now, model, deadline, key, priority if rng.random() < 0.5 else None)

    def completions(self) -> None:
        rng = self.rng
        gpu, batch, finished = [], [], []
        for g, out in sorted(self.rig.books.out.items()):
            for b, exec_at, finish_at in out:
                if finish_at <= self.now and rng.random() < 0.8:
                    gpu.append(g)
                    batch.append(b)
                    finished.append(rng.choice((finish_at, exec_at, self.now, self.now + MS, -1)))
        if rng.random() < 0.1:  # early
            for g, out in sorted(self.rig.books.out.items()):
                if out and g not in gpu:
                    gpu.append(g)
                    batch.append(out[0][0])
                    finished.append(self.now)
        self.rig.complete(self.now, gpu, batch, finished)

    def nonsense(self) -> None:
        rng = self.rng
        rig = self.rig
        choice = rng.randrange(5)
        if choice == 0:
            rig.complete(self.now, [0, 999_999, 2], [0, 1, 2**64 - 1], [self.now] * 3)
        elif choice == 1:
            rig.tell("advance", self.now - rng.randrange(1, MS) if self.now > MS else 0)
        elif choice == 2:
            rig.tell("advance", 2**62)
        elif choice == 3 and self.sequence[1]:
            known = (1 << 48) + rng.randrange(self.sequence[1]) + 1
            rig.submit(self.now, [0], [self.now + 50 * MS], [known])
        else:
            self.sequence[2] += 2
            keys = [(2 << 48) + self.sequence[2] - 1, (2 << 48) + self.sequence[2]]
            rig.submit(self.now, [0, 2**32 - 1], [rng.choice((-1, 0, 2**63 - 1)), self.now], keys)

    def change(self) -> None:
        rng = self.rng
        rig = self.rig
        model, gpu = rng.randrange(4), rng.randrange(6)
        choice = rng.randrange(13)
        if choice < 2 and rig.core.has_model(model):
            if rng.random() < 0.5:
                rig.tell("drain_model", model)
            else:
                rig.tell("remove_model", self.now, model)
        elif choice < 4 and not rig.core.has_model(model):
            self.new_model(model)
        elif choice == 4 and rig.core.has_model(model):
            self.profile(model, rng.randrange(self.kinds))
        elif choice < 8:
            if not rig.core.has_gpu(gpu):
                self.new_gpu(gpu)
            else:
                self._shake(gpu)
        elif choice == 8:
            rig.tell("set_gpu_margin", gpu, rng.choice((0, MS, 20 * MS)))
        elif choice == 9:
            rig.tell("set_type_margin", rng.randrange(self.kinds), rng.choice((0, MS)))
        elif choice == 10:
            name = rng.choice(("set_control", "set_result"))
            rig.tell(name, self.now, rng.choice((0, MS, 3 * MS)))
        else:
            self.again()

    def _shake(self, gpu: int) -> None:
        name = self.rng.choice(("drain_gpu", "remove_gpu", "set_gpu_models"))
        extra = (self.held(),) if name == "set_gpu_models" else ()
        self.rig.tell(name, self.now, gpu, *extra)

    def again(self) -> None:
        """A GPU dies; what was out on it comes back."""
        gpu = self.rng.choice(sorted(self.rig.books.out) or [0])
        lost = [self.rig.books.taken[batch] for batch, _, _ in self.rig.books.out.get(gpu, [])]
        self.rig.tell("remove_gpu", self.now, gpu)
        for model, priority, _, size, _, _, _, keys, deadlines in lost:
            self.rig.submit(
                self.now, [model] * size, list(deadlines), list(keys), [priority] * size, again=True
            )
