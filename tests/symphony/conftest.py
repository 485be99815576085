"""The fake cluster and an engine that talks to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_cluster import GRACE_MS, FakeCluster

from symphony.engine import Engine


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        yield cluster


@pytest.fixture
def engine(cluster: FakeCluster) -> Iterator[Engine]:
    engine = Engine(cluster.registry, cluster.subscribe, grace_ms=GRACE_MS)
    engine.start()
    yield engine
    engine.close()
