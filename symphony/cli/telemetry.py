"""``symphony telemetry``: follow the control channel as JSON lines."""

from __future__ import annotations

import json
import logging
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any, Final, TextIO

import click
import zmq

from symphony.bus import Bus, drain, subscribe
from symphony.cli import options as shared
from symphony.config import load_config
from symphony.control import decode_stamp
from symphony.faults import Faults
from symphony.snapshot import fetch_snapshot
from symphony.status import Unavailable
from symphony.stopping import StopRequest
from symphony.topics import decode_body, decode_topic, to_json
from symphony.waiter import Waiter
from symphony.wire import WireError

_log = logging.getLogger(__name__)
_S: Final = 1_000_000_000


@click.command()
@shared.config("Configuration file that says where the broker is.")
@shared.broker("subscribe")
@click.option(
    "--topic",
    "topics",
    multiple=True,
    metavar="PREFIX",
    help="Only topics that begin so; repeatable. There are member, model, plan, done.<worker>, gpu.<worker>, "
    "stats.<shard>, decision.<shard> and event.<leading shard>.",
)
@click.option("--count", type=click.IntRange(1), help="Stop after so many messages.")
@click.option("--seconds", type=click.FloatRange(0), metavar="SECONDS", help="Stop after so long.")
def command(
    path: Path | None,
    subscribe: str | None,
    topics: tuple[str, ...],
    count: int | None,
    seconds: float | None,
) -> None:
    """Follow the cluster's telemetry as JSON lines.

    One object per message: topic, broker (its incarnation), seq (the topic's number; a step of more
    than one is a loss) and body. Times are nanoseconds of cluster time. Runs until Ctrl-C, SIGTERM, a
    closed pipe or a limit, all of which end it with exit code 0.
    """
    config = load_config(path)
    if subscribe is None:
        subscribe = config.subscribe
        _warn_without_broker(config.registry)
    stopping = StopRequest()
    try:
        with stopping.on_signals():
            follow(subscribe, topics or ("",), sys.stdout, stopping, count, seconds)
    except BrokenPipeError:
        # What is still buffered has no reader; click would make an exit code 1 of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        stopping.close()


def _warn_without_broker(registry: str) -> None:
    try:
        fetch_snapshot(registry, 1.0)
    except Unavailable as error:
        _log.warning("%s Waiting for one.", error)


def follow(
    endpoint: str,
    topics: tuple[str, ...],
    out: TextIO,
    stopping: StopRequest,
    count: int | None = None,
    seconds: float | None = None,
) -> int:
    """Write what comes in to ``out``; returns how many lines that were.

    Args:
        endpoint: the broker's subscribe endpoint.
        topics: prefixes; the empty one stands for all.
        out: gets one JSON object a line, flushed whenever nothing more has arrived.
        stopping: ends it.
        count: lines after which to stop.
        seconds: time after which to stop.

    Raises:
        BrokenPipeError: the reader of ``out`` has gone.
    """
    until = None if seconds is None else time.monotonic_ns() + int(seconds * _S)
    faults = Faults(_log)
    written = 0
    with Bus() as bus:
        sock = bus.connect(zmq.SUB, endpoint)
        subscribe(sock, topics)
        waiter = Waiter()
        try:
            waiter.register(sock)
            waiter.register(stopping.fd)
            pipe = _pipe_of(out)
            if pipe is not None:
                waiter.register(pipe)  # never has input, but tells when its reader has gone
            while not stopping.is_set() and (until is None or time.monotonic_ns() < until):
                ready = waiter.wait(until)
                if pipe is not None and pipe in ready:
                    break
                for frames in drain(sock):
                    line = _line(frames, faults)
                    if line is None:
                        continue
                    out.write(json.dumps(line) + "\n")
                    written += 1
                    if written == count:
                        out.flush()
                        return written
                out.flush()
        finally:
            waiter.close()
    return written


def _pipe_of(out: TextIO) -> int | None:
    try:
        descriptor = out.fileno()
    except (OSError, ValueError):
        return None
    return descriptor if stat.S_ISFIFO(os.fstat(descriptor).st_mode) else None


def _line(frames: list[bytes], faults: Faults) -> dict[str, Any] | None:
    try:
        if len(frames) != 3:
            raise WireError("malformed", f"{len(frames)} frames instead of 3")
        topic = decode_topic(frames[0])
        stamp = decode_stamp(frames[1])
        body = decode_body(*topic, frames[2])
    except WireError as error:
        faults.count(f"telemetry-{error.reason}", error)
        return None
    name = frames[0].decode()
    return {"topic": name, "broker": stamp.broker, "seq": stamp.seq, "body": to_json(body)}
