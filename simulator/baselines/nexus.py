"""Nexus: a plan of sessions on GPUs with duty cycles, queues at the GPUs, early drop.

Source: Shen et al., "Nexus: A GPU Cluster Engine for Accelerating DNN-Based Video Analysis",
SOSP 2019, as the authors' program has it (uwsampl/nexus: ``GetBatchTask`` of ``model_exec.cpp``,
``gpu_executor.cpp``, ``model_handler.cpp``, ``scheduler.cpp``). The paper's own text was not at hand.

Rule. The plan (:mod:`.squishy`) says which sessions share a GPU, each with a batch size. Requests go to
the GPUs of their session in proportion to the planned rates. A GPU runs its sessions in turn. When a
session's turn comes, a window of the planned batch size slides over its queue until the window's
first request could still be met with the whole batch; the requests before it are dropped (early
drop). At the end of a queue the window is what is there; a session without requests gives up its
turn, and nobody waits for the end of a duty cycle.

Static: one plan, for the mean rates that the experiment states. Re-planned: a new plan every epoch for
the rates measured in the last one. GPUs of several types: placed one by one (:func:`.squishy.assign`).

Choices in its favour: the plan is for the largest multiple of the load that fits the GPUs, so none
is idle by plan and the excess of an overload is spread; the mean rates are known exactly; requests
are spread evenly (the program's round robin with quanta for 200 ms, without its randomness); a new
plan takes effect at once, costs no loading of models, and what waits goes to the new places; epochs
are 10 s, the program's shortest, instead of 30 s.
"""

from __future__ import annotations

import heapq

from simulator.system import NEVER, Cluster

from .base import Base, Request
from .squishy import Node, Session, plan, plan_types

EPOCH_S = 10.0


class _Backend:
    """One GPU's sessions in their order, each with planned batch size and own queue."""

    def __init__(self) -> None:
        self.models: list[int] = []
        self.batch: dict[int, int] = {}
        self.queue: dict[int, list[Request]] = {}
        self.turn = 0
        self.queued = 0


class Nexus(Base):
    """``epoch_s``: seconds between plans, None for one static plan."""

    def __init__(self, cluster: Cluster, epoch_s: float | None = None) -> None:
        super().__init__(cluster)
        self.epoch = None if epoch_s is None else round(epoch_s * 1e9)
        self.next_plan = NEVER
        self.arrived = [0] * len(cluster.models)
        self.backends: list[_Backend] = []
        self.due: list[tuple[int, int]] = []  # when a GPU with requests should be looked at
        self.due_at = [NEVER] * len(cluster.gpu_type)  # which entry of a GPU in the heap counts
        self.routes: list[list[tuple[int, float]]] = []
        self.credit: list[list[float]] = []
        self._plan([model.rate for model in cluster.models])

    def _nodes(self, rates: list[float]) -> list[Node | None]:
        around = self.cluster.control + self.cluster.result + self.cluster.margin
        sessions = [
            [
                Session(i, max(rate, 1e-3), model.slo - around, table, self.cluster.data)
                for table in model.latency
            ]
            for i, (model, rate) in enumerate(zip(self.cluster.models, rates, strict=True))
        ]
        if self.one_type:
            kind = self.cluster.gpu_type[0]
            return list(plan([kinds[kind] for kinds in sessions], len(self.cluster.gpu_type)))
        return plan_types(sessions, self.cluster.gpu_type)

    def _plan(self, rates: list[float]) -> None:
        """Make a plan for these rates and move what waits to its new places."""
        waiting = [(r, m) for backend in self.backends for m in backend.models for r in backend.queue[m]]
        self.backends = [_Backend() for _ in self.cluster.gpu_type]
        self.due = []
        self.due_at = [NEVER] * len(self.backends)
        self.queued = 0
        self.routes = [[] for _ in self.cluster.models]
        for gpu, node in enumerate(self._nodes(rates)):
            for share in node.shares if node is not None else ():
                backend = self.backends[gpu]
                model = share.session.model
                backend.models.append(model)
                backend.batch[model] = share.batch
                backend.queue[model] = []
                self.routes[model].append((gpu, share.rate))
        self.credit = [[0.0] * len(routes) for routes in self.routes]
        for request, model in sorted(waiting):
            self._route(model, request)

    def _route(self, model: int, request: Request) -> int:
        """Put the request to a GPU of its session in proportion to the planned rates; -1 without any."""
        routes = self.routes[model]
        if not routes:
            self.decisions.dropped.append(request[1])
            return -1
        chosen = 0
        if len(routes) > 1:
            credit = self.credit[model]
            total = 0.0
            for i, (_, rate) in enumerate(routes):
                credit[i] += rate
                total += rate
            chosen = max(range(len(routes)), key=credit.__getitem__)
            credit[chosen] -= total
        gpu = routes[chosen][0]
        backend = self.backends[gpu]
        backend.queue[model].append(request)
        backend.queued += 1
        self.queued += 1
        return gpu

    def submit(self, now: int, model: int, deadline: int, key: int) -> None:
        """A request goes to one GPU for good (until there is another plan)."""
        if self.epoch is not None and self.next_plan == NEVER:
            self.next_plan = now + self.epoch
        self.arrived[model] += 1
        gpu = self._route(model, (deadline - self.cluster.result - self.cluster.margin, key))
        if gpu >= 0:
            self._turns(now, gpu)

    def complete(self, now: int, gpu: int, number: int, finished: int) -> None:
        """The free time is corrected, and the next turn may begin."""
        out = self.out[gpu]
        while out and out[0][0] <= number:
            out.popleft()
        self.free[gpu] = finished if not out else self.free[gpu]
        self._turns(now, gpu)

    def next_wakeup(self) -> int:
        """The next turn of any GPU, or the next plan while anything waits."""
        due = self.due[0][0] if self.due else NEVER
        return min(due, self.next_plan) if self.queued else due

    def decide(self, now: int) -> None:
        """A new plan when an epoch has ended; turns that are due."""
        if now >= self.next_plan and self.epoch is not None:
            self._plan([n / self.epoch * 1e9 for n in self.arrived])
            self.arrived = [0] * len(self.arrived)
            self.next_plan = now + self.epoch if self.queued else NEVER
            for gpu in range(len(self.backends)):
                self._turns(now, gpu)
        while self.due and self.due[0][0] <= now:
            at, gpu = heapq.heappop(self.due)
            if at == self.due_at[gpu]:
                self.due_at[gpu] = NEVER
                self._turns(now, gpu)

    def _next(self, backend: _Backend) -> int:
        """The model whose turn it is: the next one that has requests."""
        n = len(backend.models)
        for i in range(n):
            model = backend.models[(backend.turn + i) % n]
            if backend.queue[model]:
                backend.turn = (backend.turn + i) % n
                return model
        raise AssertionError("the GPU has nothing queued")

    def _turns(self, now: int, gpu: int) -> None:
        """Run sessions in turn while the GPU is open."""
        backend = self.backends[gpu]
        while backend.queued:
            model = self._next(backend)
            queue = backend.queue[model]
            want = backend.batch[model]
            opens = self.free[gpu] - self.lead(min(len(queue), want))
            if opens > now:
                if opens < self.due_at[gpu]:
                    self.due_at[gpu] = opens
                    heapq.heappush(self.due, (opens, gpu))
                return
            first = self.early_drop(now, gpu, model, queue, want)
            if first:
                self.decisions.dropped += [key for _, key in queue[:first]]
                del queue[:first]
                backend.queued -= first
                self.queued -= first
            size = min(len(queue), want)
            if size:
                backend.queued -= size
                self.queues[model] = queue  # send() takes from there
                self.send(now, model, gpu, 0, size)
            backend.turn += 1

    def early_drop(self, now: int, gpu: int, model: int, queue: list[Request], want: int) -> int:
        """How many requests to drop: up to the first whose window could end in time."""
        for first in range(len(queue)):
            size = min(want, len(queue) - first)
            if self.start(now, gpu, size) + self.latency(model, gpu, size) <= queue[first][0]:
                return first
        return len(queue)
