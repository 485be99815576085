"""Running promptly: what a process whose timers decide about deadlines asks of the system and of Python."""

from __future__ import annotations

import gc
import logging
import os
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

AUTOGROUP: Final = Path("/proc/self/autogroup")

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
        _raise_session(niceness)
    except OSError:
        _log.info("running at normal priority: lowering the niceness is not allowed here")
        return False
    return True


def _raise_session(niceness: int) -> None:
    """Give the process's session the same niceness, if the process leads it.

    Linux may share processor time first among sessions (``kernel.sched_autogroup_enabled``, on by default
    in most distributions) and only then, by niceness, among the processes of each. ``symphony up`` starts
    every process in a session of its own, whose niceness is therefore the one that counts.
    """
    if os.getsid(0) == os.getpid() and AUTOGROUP.exists():
        AUTOGROUP.write_text(str(niceness))


def keep_collector_out() -> None:
    """Make pauses of the garbage collector rare and short: call it once everything is imported.

    A full collection looks at every object of every imported module, tens of milliseconds in a
    process with NumPy. What is there now is set aside for good, and the collector looks at the rest
    only once it has grown by 100,000 containers: the loops make no reference cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
