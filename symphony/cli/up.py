"""``symphony up``: broker, shards and workers on this machine, supervised until Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from symphony import local
from symphony.bus import Bus
from symphony.cli import options as shared
from symphony.cli.up_scaling import LocalScaling
from symphony.clock import ClusterClock
from symphony.config import POLICIES, Config, load_config
from symphony.membership import Membership, Published, describe
from symphony.supervisor import ChildEvent, Died, GaveUp, Started, Supervisor, SupervisorError
from symphony.waiter import Waiter

REMIND_NS: Final = 10_000_000_000
_S: Final = 1_000_000_000


@click.command()
@shared.config("Configuration file; without one: one shard, eight emulated GPUs, resnet50.")
@click.option(
    "--port",
    type=click.IntRange(1, 65_533),
    help="The registry's port; the publish and subscribe ports are the two after it.",
)
@click.option(
    "--policy",
    metavar="POLICY",
    help=f"When a batch is ready: {POLICIES}.  [default: the file's, else adaptive]",
)
def command(path: Path | None, port: int | None, policy: str | None) -> None:
    """Start a whole cluster on this machine and keep it running.

    Starts a broker, scheduler shards and workers as the configuration says, restarts what dies, and
    stops all of it in order on Ctrl-C or SIGTERM (a second one kills it). Exit code 0 after an ordered
    stop, 1 if the cluster could not be started or kept up.
    """
    environment = local.child_environment(os.environ)
    if port is not None:
        for offset, key in enumerate(("REGISTRY", "PUBLISH", "SUBSCRIBE")):
            environment[f"SYMPHONY_BROKER_{key}_PORT"] = str(port + offset)
    if policy is not None:
        environment["SYMPHONY_SCHEDULER_POLICY"] = policy
    config = load_config(path, environment)
    _check_models(config)
    local.check_ports(config)
    Up(config, environment).run()


def _check_models(config: Config) -> None:
    """Refuse definitions that the workers would refuse, before anything is started."""
    from worker.choice import chosen

    for worker in config.workers:
        chosen(config, worker, [])


class Up:
    """The supervising process: children, a membership to watch them by, and what is said of both.

    Args:
        config: the cluster.
        environment: of the children; carries what the command's options override.
    """

    def __init__(self, config: Config, environment: dict[str, str]) -> None:
        self._config = config
        self._environment = environment
        self._signals: list[signal.Signals] = []
        self._said_ready: dict[str, int] = {}
        self._complete = False
        self._failure: GaveUp | None = None

    def run(self) -> None:
        """Until a signal, or until a child is given up.

        Raises:
            SupervisorError: a child was given up; everything else has been stopped.
        """
        config = self._config
        say(
            f"symphony up: {len(config.shard_ids)} shard(s), {len(config.workers)} worker(s), "
            f"registry {config.registry}"
        )
        with contextlib.ExitStack() as stack:
            self._waiter = Waiter()
            stack.callback(self._waiter.close)
            self._supervisor = Supervisor(
                local.children(config), self._waiter, _print_line, self._environment
            )
            stack.callback(self._supervisor.kill)
            local_scaling = config.autoscale.actuator == "local"
            self._scaling = LocalScaling(config, self._supervisor, say) if local_scaling else None
            bus = stack.enter_context(Bus(config.cluster.insecure))
            self._membership = Membership(
                bus,
                config.registry,
                config.subscribe,
                describe(f"up-{os.getpid()}", "ops", state="ready"),
                clock=ClusterClock(),
                topics=["decision."] if local_scaling else [],
            )
            for sock in self._membership.sockets:
                self._waiter.register(sock)
            stack.enter_context(self._signals_wake())
            self._loop()
        if self._failure is not None:
            raise SupervisorError(_last_words(self._failure))
        say("symphony up: stopped")

    def _loop(self) -> None:
        began = remind_at = time.monotonic_ns()
        self._tell(self._supervisor.start(began))
        while not self._supervisor.stopped:
            self._wait(remind_at + REMIND_NS)
            now = time.monotonic_ns()
            self._tell(self._supervisor.step(now))
            self._follow(now)
            self._greet()
            if not self._supervisor.stopping:
                if self._signals or self._failure:
                    why = f"got {self._signals[0].name}" if self._signals else "a process was given up"
                    say(f"symphony up: {why}; stopping in order (a signal more kills)")
                    self._membership.leave()
                    self._supervisor.stop(now)
                    continue
                missing = local.waiting_for(self._config, self._membership.members)
                if not missing and not self._complete:
                    self._complete = True
                    say(f"ready after {(now - began) / _S:.1f} s; Ctrl-C stops it. {self._hint()}")
                elif missing and not self._complete and now >= remind_at + REMIND_NS:
                    remind_at = now
                    say(f"still waiting for {', '.join(missing)}")
                elif missing and self._complete:
                    self._complete, began = False, now
            elif len(self._signals) > 1:
                self._supervisor.kill()

    def _follow(self, now: int) -> None:
        for event in self._membership.step(now):
            if isinstance(event, Published) and self._scaling is not None and not self._supervisor.stopping:
                self._scaling.take(event, self._membership.members, now)
                self._tell(self._scaling.events)
                self._scaling.events = []

    def _wait(self, limit: int) -> None:
        now = time.monotonic_ns()
        moments = [self._supervisor.next_wakeup(now), self._membership.next_wakeup()]
        if not self._complete and not self._supervisor.stopping:
            moments.append(limit)
        for source in self._waiter.wait(min(moment for moment in moments if moment is not None)):
            if source == self._wakeup.fileno():
                with contextlib.suppress(BlockingIOError):
                    self._wakeup.recv(4096)

    def _greet(self) -> None:
        """Say who has become ready, once per run of each child."""
        members = self._membership.members
        if self._membership.joined and not self._said_ready.get(local.BROKER):
            self._said_ready[local.BROKER] = self._supervisor.pid(local.BROKER) or 0
            self._supervisor.mark_ready(local.BROKER)
            say(f"  {local.BROKER:<10} ready at {self._config.registry}")
        for name in self._supervisor.running:
            member, pid = members.get(name), self._supervisor.pid(name)
            if member is None or pid is None or member.pid != pid or self._said_ready.get(name) == pid:
                continue
            if local.is_ready(member, members):
                self._said_ready[name] = pid
                self._supervisor.mark_ready(name)
                say(f"  {name:<10} ready: {local.describe(member)}")

    def _tell(self, events: list[ChildEvent]) -> None:
        for event in events:
            match event:
                case Died():
                    say(f"  {event.name:<10} {event.how}; starting it again in {event.pause_ns / _S:g} s")
                case GaveUp() if self._scaling is not None and self._scaling.started(event.name):
                    # The cluster is what it was before; the autoscaler sees that the GPU does not come.
                    say(f"  {_last_words(event)}")
                case GaveUp():
                    self._failure = event
                case Started(first=False):
                    say(f"  {event.name:<10} started again, process {event.pid}")
                case Started():
                    pass

    def _hint(self) -> str:
        models = [model for worker in self._config.workers for model in worker.models]
        if not models:
            return ""
        default = load_config(None, {}).broker
        where = "" if self._config.broker == default else f" --registry {self._config.registry}"
        return f"Try: symphony load {models[0]}=100 --seconds 10{where}"

    @contextlib.contextmanager
    def _signals_wake(self) -> Iterator[None]:
        """SIGINT and SIGTERM are counted, and wake the waiter."""
        self._wakeup, write = socket.socketpair()
        with self._wakeup, write:
            self._wakeup.setblocking(False)
            write.setblocking(False)
            before = {
                number: signal.signal(number, self._count) for number in (signal.SIGINT, signal.SIGTERM)
            }
            previous = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
            self._waiter.register(self._wakeup.fileno())
            try:
                yield
            finally:
                self._waiter.unregister(self._wakeup.fileno())
                signal.set_wakeup_fd(previous)
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _count(self, number: int, _frame: object) -> None:
        self._signals.append(signal.Signals(number))


def say(text: str) -> None:
    """One line on standard output, at once."""
    click.echo(text)
    sys.stdout.flush()


def _print_line(name: str, line: str) -> None:
    click.echo(f"{name:<10} | {line}", err=True)


def _last_words(event: GaveUp) -> str:
    words = next((line for line in reversed(event.tail) if line.strip()), "it said nothing")
    return f"{event.name} {event.how}, and starting it again would not help; its last words: {words}"
