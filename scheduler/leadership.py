"""Whether this shard leads, and the process that does the leading's work while it does."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel, ConfigDict

from scheduler.census import leader_of
from symphony.control import Member
from symphony.scaling import AutoscaleConfig, EpochConfig
from symphony.supervisor import PARENT_VARIABLE

_log = logging.getLogger(__name__)

AGAIN_NS: Final = 1_000_000_000
"""Pause before a leading process that has died is started again."""
END_S: Final = 2.0


class LeaderSettings(BaseModel):
    """What a shard tells its leading process."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shard: str
    incarnation: int
    registry: str
    publish: str
    subscribe: str
    insecure: bool = False
    control_us: float = 0.0
    data_us: float = 0.0
    result_us: float = 0.0
    epoch: EpochConfig | None = None
    autoscale: AutoscaleConfig = AutoscaleConfig()


class Leadership:
    """Runs ``python -m scheduler.leader`` while this shard is the ready one with the lowest id.

    Args:
        settings: the process's; None: this cluster is not planned by epochs.
    """

    def __init__(self, settings: LeaderSettings | None) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._ending: list[subprocess.Popen[bytes]] = []
        self._due = 0

    def step(self, mono: int, members: Mapping[str, Member]) -> None:
        """Members may have changed; ``mono`` is monotonic ns."""
        if self._settings is None:
            return
        self._ending = [process for process in self._ending if process.poll() is None]
        leads = leader_of(members.values()) == self._settings.shard
        process = self._process
        if process is not None and process.poll() is not None:
            _log.warning("the leading process has ended with code %s", process.returncode)
            self._process, self._due = None, mono + AGAIN_NS
        if leads and self._process is None and mono >= self._due:
            _log.info("%s leads", self._settings.shard)
            self._process = subprocess.Popen(
                (sys.executable, "-m", "scheduler.leader", self._settings.model_dump_json()),
                stdin=subprocess.DEVNULL,
                env={**os.environ, PARENT_VARIABLE: str(os.getpid())},
            )
        elif not leads and self._process is not None:
            _log.info("%s leads no more", self._settings.shard)
            self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._ending.append(self._process)
            self._process = None

    def close(self) -> None:
        """End what runs, and wait for it."""
        self._end()
        for process in self._ending:
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
