"""Asking the operating system to run this process promptly."""

from __future__ import annotations

import logging
import os
from typing import Final

_log = logging.getLogger(__name__)

URGENT: Final = -10
"""Niceness of processes whose timers decide whether deadlines are met: shards and emulated GPUs."""


def be_prompt(niceness: int = URGENT) -> bool:
    """Lower this process's niceness where that is allowed (root, or CAP_SYS_NICE); False elsewhere.

    A process that wakes hundreds of times a second for microseconds loses milliseconds each time it has
    to wait for a busy neighbour; with a lower niceness the kernel lets it in at once. It takes no more
    processor time than it would have taken anyway.
    """
    try:
        if os.getpriority(os.PRIO_PROCESS, 0) > niceness:
            os.setpriority(os.PRIO_PROCESS, 0, niceness)
    except OSError:
        _log.info("running at normal priority: lowering the niceness is not allowed here")
        return False
    return True
