"""A user's executable as actuator: the request as JSON on its standard input, the answer by its exit code.

It is given ``{"v": 1, "request": KEY, "shard": …, "counts": {type: n}, "drain": [numbers], "reason": …}``
and must be idempotent: the same counts again change nothing, and the same ``request`` is the same request.
Exit code 0 is "accepted", unless standard output holds ``{"accepted": false, "reason": …}``; any other code
is a failure, of which the last line of its output is told. One process per shard at a time, in a session of
its own, so that what it starts is killed with it when it hangs.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from scheduler.actuators.base import Code, Outcome, Recent, Request

MAX_OUTPUT: Final = 65_536
"""Bytes that are kept of what the program prints; the rest is read and thrown away."""
MAX_DETAIL: Final = 400
POLL_NS: Final = 50_000_000
SECOND: Final = 1_000_000_000


@dataclass(slots=True)
class _Running:
    request: Request
    process: subprocess.Popen[bytes]
    began: int
    output: bytes = b""
    errors: bytes = b""


class CommandActuator:
    """See the module's text.

    Args:
        argv: the executable and its arguments; no shell is between.
        timeout_s: after that long it is killed, with everything that it has started.
    """

    def __init__(self, argv: Sequence[str], timeout_s: float = 30.0) -> None:
        self._argv = list(argv)
        self._timeout_ns = int(timeout_s * SECOND)
        self._running: dict[str, _Running] = {}
        self._waiting: dict[str, Request] = {}
        self._outcomes: list[Outcome] = []
        self._accepted = Recent()

    def submit(self, request: Request, now: int) -> None:
        """Start the program, or wait for the one that runs for this shard."""
        shard = request.shard
        running = self._running.get(shard)
        if request.key in self._accepted:
            self._outcomes.append(Outcome(request.key, shard, "accepted", "asked before"))
        elif running is not None:
            if running.request.key == request.key:
                return
            older = self._waiting.pop(shard, None)
            if older is not None and older.key != request.key:
                self._outcomes.append(Outcome(older.key, shard, "superseded", f"by {request.key}"))
            self._waiting[shard] = request
        else:
            self._start(request, now)

    def poll(self, now: int) -> list[Outcome]:
        """Read what was printed, notice ends, kill what takes too long, start what waits."""
        for shard, running in list(self._running.items()):
            self._read(running)
            code = running.process.poll()
            if code is None and now - running.began < self._timeout_ns:
                continue
            del self._running[shard]
            self._end(running)
            seconds = (now - running.began) / SECOND
            if code is None:
                verdict: tuple[Code, str] = ("timeout", f"no answer within {seconds:.1f} s: killed")
            else:
                verdict = _verdict(code, running)
            if verdict[0] == "accepted":
                self._accepted.add(running.request.key)
            self._outcomes.append(Outcome(running.request.key, shard, *verdict, seconds))
            if shard in self._waiting:
                self._start(self._waiting.pop(shard), now)
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def next_wakeup(self, now: int) -> int | None:
        """Soon, while a program runs."""
        if self._outcomes:
            return now
        return now + POLL_NS if self._running else None

    def close(self) -> None:
        """Kill what runs."""
        for running in self._running.values():
            self._end(running)
        self._running.clear()
        self._waiting.clear()

    def _start(self, request: Request, now: int) -> None:
        text = json.dumps(
            {
                "v": 1,
                "request": request.key,
                "shard": request.shard,
                "counts": dict(request.counts),
                "drain": list(request.drain),
                "reason": request.reason,
            }
        )
        # From a file: a program that does not read its input must not block us.
        with tempfile.TemporaryFile() as stdin:
            stdin.write(text.encode())
            stdin.seek(0)
            try:
                process = subprocess.Popen(
                    self._argv,
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
            except OSError as error:
                detail = f"cannot start {self._argv[0]}: {error.strerror}"
                self._outcomes.append(Outcome(request.key, request.shard, "missing", detail))
                return
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        self._running[request.shard] = _Running(request, process, now)

    def _read(self, running: _Running) -> None:
        assert running.process.stdout is not None
        assert running.process.stderr is not None
        running.output += _available(running.process.stdout.fileno(), MAX_OUTPUT - len(running.output))
        running.errors += _available(running.process.stderr.fileno(), MAX_OUTPUT - len(running.errors))

    def _end(self, running: _Running) -> None:
        """Close its pipes; if it still runs, kill it with its children (what it left on purpose stays)."""
        process = running.process
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._read(running)
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def _available(fd: int, room: int) -> bytes:
    """What can be read now, at most ``room`` bytes of it kept; a bounded amount per call."""
    kept = b""
    for _ in range(64):
        try:
            data = os.read(fd, MAX_OUTPUT)
        except BlockingIOError:
            break
        if not data:
            break
        kept += data[: max(0, room - len(kept))]
    return kept


def _verdict(code: int, running: _Running) -> tuple[Code, str]:
    """What an exit code and the output mean."""
    if code != 0:
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        said = _last_line(running.errors) or _last_line(running.output)
        return "failed", f"{how}: {said}" if said else how
    text = running.output.strip()
    if not text:
        return "accepted", ""
    try:
        answer: Any = json.loads(text)
    except ValueError:
        return "malformed", f"its output is no JSON: {_last_line(running.output)}"
    if not isinstance(answer, dict) or not isinstance(answer.get("accepted", True), bool):
        return "malformed", f"expected {{accepted, reason}}: {_last_line(running.output)}"
    reason = str(answer.get("reason", ""))[:MAX_DETAIL]
    return ("accepted", reason) if answer.get("accepted", True) else ("refused", reason)


def _last_line(data: bytes) -> str:
    lines = data.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:MAX_DETAIL] if lines else ""
