"""What a shard is told at its start."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.leadership import LeaderSettings
from symphony.scaling import AutoscaleConfig, EpochConfig


@dataclass(slots=True, frozen=True)
class Settings:
    """What a shard is told; latencies in nanoseconds, as :class:`~scheduler.core.machine.Core` has them."""

    id: str
    registry: str
    publish: str
    subscribe: str
    host: str = "127.0.0.1"
    insecure: bool = False
    policy: str = "adaptive"
    control_ns: int = 300_000
    data_ns: int = 20_000
    result_ns: int = 2_000_000
    margin_ns: int = 1_000_000
    spin_ns: int = 0
    rest_ns: int = 2_000_000
    max_queue: int = 100_000
    overdue_ns: int = 1_000_000_000
    drain_s: float = 5.0
    epoch: EpochConfig | None = None
    autoscale: AutoscaleConfig | None = None

    def leading(self, incarnation: int) -> LeaderSettings | None:
        """What the process is told that leads in this shard's name; None if there is no leading."""
        autoscale = self.autoscale or AutoscaleConfig()
        if self.epoch is None and autoscale.actuator == "none":
            return None
        return LeaderSettings(
            shard=self.id,
            incarnation=incarnation,
            registry=self.registry,
            publish=self.publish,
            subscribe=self.subscribe,
            insecure=self.insecure,
            control_us=self.control_ns / 1e3,
            data_us=self.data_ns / 1e3,
            result_us=self.result_ns / 1e3,
            epoch=self.epoch,
            autoscale=autoscale,
        )
