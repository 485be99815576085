"""Counting what went wrong, and saying so once in a while instead of once per message."""

from __future__ import annotations

import logging
import time
from collections import Counter


class Faults:
    """Counters by reason with a rate-limited log line each.

    Args:
        logger: where the lines go.
        every_s: at most one line per reason in that many seconds.
    """

    def __init__(self, logger: logging.Logger, every_s: float = 5.0) -> None:
        self.counts: Counter[str] = Counter()
        self._logger = logger
        self._every = every_s
        self._said: dict[str, float] = {}

    def count(self, reason: str, detail: object = "", n: int = 1) -> None:
        """Add ``n`` to ``reason``; ``detail`` is shown in the log line, if one is due."""
        self.counts[reason] += n
        now = time.monotonic()
        if now - self._said.get(reason, -self._every) >= self._every:
            self._said[reason] = now
            text = str(detail)[:200]
            self._logger.warning("%s (%d so far)%s", reason, self.counts[reason], f": {text}" if text else "")
