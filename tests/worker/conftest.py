"""What every test of the worker's loop needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_peers import FakePeers, fake_peers


@pytest.fixture
def peers() -> Iterator[FakePeers]:
    with fake_peers() as made:
        yield made
