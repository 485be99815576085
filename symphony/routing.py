"""Which shard a request goes to, or why none: a pure table that the engine keeps up to date.

A model is served by every ready shard whose announced table holds it, over a connection that
stands. Where the cluster's plan has a route for the model, requests are split by its weights among those
of its shards that serve it; without a route, or while none of its shards does, evenly among all.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from symphony.control import Member
from symphony.pending import Line
from symphony.status import Status

CONNECT_NS: Final = 1_000_000_000
"""How long a first connection to a shard may take before callers are told that there is none."""


@dataclass(slots=True, eq=False)
class Link:
    """The way to one shard. ``since``: when it was first known; ``line`` is None while it is down."""

    member: Member
    since: int
    index: dict[str, int] = field(default_factory=dict)
    line: Line | None = None
    ever_up: bool = False

    def __post_init__(self) -> None:
        self.refresh(self.member)

    def refresh(self, member: Member) -> None:
        """Take over a newer record of the same incarnation. A hole in the table is an empty name."""
        self.member = member
        self.index = {name: i for i, name in enumerate(member.models) if name}


class Split:
    """Smooth weighted round robin: in any row of picks each link has its share, spread evenly.

    Every pick adds to each link's credit its weight; the one with the most is taken and pays the sum of
    all weights. Known from nginx's upstream module. Ties go to the first.
    """

    __slots__ = ("_credit", "_links", "_sum", "_weights")

    def __init__(self, links: list[Link], weights: list[float]) -> None:
        self._links = links
        self._weights = weights
        self._sum = sum(weights)
        self._credit = [0.0] * len(links)

    def next(self) -> Link | None:
        """The next link; None if there is none."""
        links = self._links
        if len(links) < 2:
            return links[0] if links else None
        credit = self._credit
        best = 0
        for i, weight in enumerate(self._weights):
            credit[i] += weight
            if credit[i] > credit[best]:
                best = i
        credit[best] -= self._sum
        return links[best]


class Routes:
    """See the module's text. ``now`` is monotonic nanoseconds."""

    def __init__(self) -> None:
        self._links: dict[str, Link] = {}
        self._ways: dict[str, Split] = {}
        self._planned: Mapping[str, Mapping[str, float]] = {}

    def __iter__(self) -> Iterator[Link]:
        return iter(self._links.values())

    def follow(self, planned: Mapping[str, Mapping[str, float]]) -> None:
        """Take over the routes of the cluster's plan: for each model the weights of its shards."""
        self._planned = planned
        self._ways.clear()

    def put(self, member: Member, now: int) -> Link:
        """Add a shard, or take over its newer record; a new incarnation needs :meth:`remove` first."""
        link = self._links.get(member.id)
        if link is None:
            link = self._links[member.id] = Link(member, now)
        else:
            link.refresh(member)
        self._ways.clear()
        return link

    def remove(self, shard: str, why: str) -> Link | None:
        """A shard has left or died; what was sent to it is marked as lost."""
        self.disconnected(shard, why)
        return self._links.pop(shard, None)

    def connected(self, shard: str) -> None:
        """The connection stands."""
        link = self._links.get(shard)
        if link is not None and link.line is None:
            link.line = Line()
            link.ever_up = True
            self._ways.clear()

    def disconnected(self, shard: str, why: str) -> None:
        """The connection is gone: requests on it that stay unanswered end as UNAVAILABLE."""
        link = self._links.get(shard)
        if link is not None and link.line is not None:
            link.line.lost = why
            link.line = None
        self._ways.clear()

    def pick(self, model: str) -> Link | None:
        """The shard that takes the next request for ``model``; see :meth:`refusal` if there is none."""
        ways = self._ways.get(model)
        if ways is None:
            if not any(model in link.index for link in self._links.values()):
                return None  # names that callers make up are not to fill the table
            ways = self._ways[model] = self._split(model)
        return ways.next()

    def _split(self, model: str) -> Split:
        links = [link for link in self._serving(model) if link.line is not None]
        weights = self._planned.get(model, {})
        routed = [link for link in links if link.member.id in weights]
        if routed:
            return Split(routed, [weights[link.member.id] for link in routed])
        return Split(links, [1.0] * len(links))

    def served(self) -> set[str]:
        """Every model that some shard has announced."""
        return {name for link in self._links.values() for name in link.index}

    def reachable(self) -> frozenset[str]:
        """Every model that some connected and ready shard serves."""
        ready = [k for k in self._links.values() if k.line is not None and k.member.state == "ready"]
        return frozenset(name for link in ready for name in link.index)

    def connecting(self, now: int) -> int | None:
        """Until when a first connection to some shard may still come about; None if none is awaited."""
        young = [link.since for link in self._links.values() if not link.ever_up]
        until = max(young, default=now - CONNECT_NS) + CONNECT_NS
        return until if until > now else None

    def refusal(self, model: str, catalogue: Container[str], now: int) -> tuple[Status, str] | None:
        """Why :meth:`pick` found nothing; None if a connection may yet come about.

        Args:
            model: the name that was asked for.
            catalogue: names of all models that the cluster knows.
            now: monotonic ns.
        """
        serving = self._serving(model)
        if any(not link.ever_up and now < link.since + CONNECT_NS for link in serving):
            return None
        if serving:
            shards = ", ".join(link.member.id for link in serving)
            return Status.UNAVAILABLE, f"no connection to {shards}, which would serve {model!r}"
        if not self._links:
            return Status.UNAVAILABLE, "the cluster has no scheduler shard now"
        if model in catalogue or any(model in link.index for link in self._links.values()):
            return Status.UNAVAILABLE, f"{model!r} is known, but no shard serves it now"
        names = ", ".join(sorted(self.served())) or "none"
        return Status.UNKNOWN_MODEL, f"unknown model {model[:128]!r}; the cluster serves: {names}"

    def _serving(self, model: str) -> list[Link]:
        return [k for k in self._links.values() if k.member.state == "ready" and model in k.index]
