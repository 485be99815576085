"""Actuators: a user's command that works, fails, hangs, lies or babbles; worker processes of this machine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from scheduler.actuators.base import Outcome, Recent, Request, message_of, request_of
from scheduler.actuators.command import MAX_DETAIL, CommandActuator
from scheduler.actuators.local import LocalActuator, Process
from scheduler.autoscale import State, decide
from scheduler.evidence import SECOND, Sample
from symphony.scaling import AutoscaleConfig
from symphony.status import SymphonyError
from tests.helpers import wait_until

REQUEST = Request("1-shard-0-1", "shard-0", {"a": 5}, (7, 6), "idle")


@pytest.fixture
def made(tmp_path: Path) -> Iterator[list[CommandActuator]]:
    actuators: list[CommandActuator] = []
    yield actuators
    for actuator in actuators:
        actuator.close()


def script(directory: Path, text: str) -> list[str]:
    file = directory / "scale.sh"
    file.write_text("#!/bin/sh\n" + text)
    file.chmod(0o755)
    return [str(file), str(directory)]


def outcomes(actuator: CommandActuator, count: int = 1) -> list[Outcome]:
    found: list[Outcome] = []
    wait_until(lambda: found.extend(actuator.poll(time.monotonic_ns())) or len(found) >= count)
    return found


def run(made: list[CommandActuator], argv: list[str], timeout_s: float = 60.0) -> Outcome:
    made.append(CommandActuator(argv, timeout_s))
    made[-1].submit(REQUEST, time.monotonic_ns())
    return outcomes(made[-1])[0]


def test_a_command_gets_the_request_as_json(made: list[CommandActuator], tmp_path: Path) -> None:
    outcome = run(made, script(tmp_path, 'cat > "$1/got.json"\n'))
    assert (outcome.key, outcome.shard, outcome.code, outcome.accepted) == (
        "1-shard-0-1",
        "shard-0",
        "accepted",
        True,
    )
    assert json.loads((tmp_path / "got.json").read_text()) == {
        "v": 1,
        "request": "1-shard-0-1",
        "shard": "shard-0",
        "counts": {"a": 5},
        "drain": [7, 6],
        "reason": "idle",
    }
    assert made[-1].next_wakeup(0) is None


@pytest.mark.parametrize(
    ("text", "code", "detail"),
    [
        ("echo no quota >&2; exit 3", "failed", "exit code 3: no quota"),
        ("kill -9 $$", "failed", "killed by signal 9"),
        ('echo \'{"accepted": false, "reason": "full"}\'', "refused", "full"),
        ("echo '{\"accepted\": true}'", "accepted", ""),
        ("echo hello", "malformed", "its output is no JSON: hello"),
        ("echo '[1]'", "malformed", "expected {accepted, reason}: [1]"),
        ("head -c 9000000 /dev/zero | tr '\\0' x", "malformed", "its output is no JSON: " + "x" * MAX_DETAIL),
    ],
)
def test_a_command_that_fails_refuses_or_babbles(
    made: list[CommandActuator], tmp_path: Path, text: str, code: str, detail: str
) -> None:
    outcome = run(made, script(tmp_path, text + "\n"))
    assert (outcome.code, outcome.detail) == (code, detail)
    assert outcome.accepted == (code == "accepted")


def test_a_command_that_hangs_is_killed_with_what_it_started(
    made: list[CommandActuator], tmp_path: Path
) -> None:
    argv = script(tmp_path, 'sleep 600 & echo $! > "$1/child"\necho $$ > "$1/self"\nwait\n')
    made.append(CommandActuator(argv, timeout_s=30))
    began = time.monotonic_ns()
    made[-1].submit(REQUEST, began)
    wait_until(lambda: (tmp_path / "self").exists() and (tmp_path / "self").read_text().strip() != "")
    assert made[-1].poll(began + 29 * SECOND) == []
    (outcome,) = made[-1].poll(began + 30 * SECOND)
    assert (outcome.code, outcome.detail) == ("timeout", "no answer within 30.0 s: killed")
    for name in ("self", "child"):
        pid = int((tmp_path / name).read_text())
        wait_until(lambda pid=pid: not _runs(pid))  # type: ignore[misc]


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_command_that_does_not_exist(made: list[CommandActuator], tmp_path: Path) -> None:
    outcome = run(made, [str(tmp_path / "nothing")])
    assert (outcome.code, "No such file" in outcome.detail) == ("missing", True)


def test_the_same_request_runs_once_and_the_newest_waits(made: list[CommandActuator], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    argv = script(tmp_path, 'cat "$1/gate" > "$1/unused"\ncat > "$1/log.$$"\n')
    made.append(CommandActuator(argv))
    now = time.monotonic_ns()
    for number in (1, 1, 2, 3, 3):
        made[-1].submit(Request(f"k{number}", "shard-0", {"a": number}), now)
    made[-1].submit(Request("other", "shard-1", {"a": 9}), now)
    found: list[Outcome] = made[-1].poll(now)
    assert [(outcome.key, outcome.code) for outcome in found] == [("k2", "superseded")]
    deadline = time.monotonic() + 60
    while len(found) < 4 and time.monotonic() < deadline:
        _open_gate(tmp_path / "gate")
        found += made[-1].poll(time.monotonic_ns())
    assert {outcome.key for outcome in found if outcome.accepted} == {"k1", "k3", "other"}
    keys = [json.loads(file.read_text())["request"] for file in tmp_path.glob("log.*")]
    assert sorted(keys) == ["k1", "k3", "other"]
    order = [outcome.key for outcome in found]
    assert order.index("k1") < order.index("k3")
    made[-1].submit(Request("k1", "shard-0", {"a": 1}), now)
    assert [outcome.detail for outcome in made[-1].poll(now)] == ["asked before"]


def _open_gate(gate: Path) -> None:
    try:
        os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return  # nobody is waiting there yet


def test_close_leaves_nothing(tmp_path: Path) -> None:
    actuator = CommandActuator(script(tmp_path, 'echo $$ > "$1/self"\nexec sleep 600\n'))
    actuator.submit(REQUEST, time.monotonic_ns())
    wait_until(lambda: (tmp_path / "self").exists() and (tmp_path / "self").read_text().strip() != "")
    actuator.close()
    assert not _runs(int((tmp_path / "self").read_text()))


def test_a_command_that_lies_is_found_out_and_asked_again_with_pauses_that_double(
    made: list[CommandActuator], tmp_path: Path
) -> None:
    """It says yes and does nothing: what was asked for never joins."""
    made.append(CommandActuator(script(tmp_path, 'cat >> "$1/log"\necho >> "$1/log"\n')))
    settings = AutoscaleConfig(startup_s=10, patience_s=20, backoff_max_s=100)
    state, samples, asked = State(), [], []
    for at in range(300):
        samples.append(
            Sample(
                at=SECOND * (1_000 + at),
                seconds=1.0,
                offered=100,
                good=70,
                late=0,
                dropped=30,
                need={"a": 6.0},
                busy=dict.fromkeys(range(4), 1.0),
                types=dict.fromkeys(range(4), "a"),
            )
        )
        decision, state = decide(samples[-60:], state, settings)
        if decision.kind != "hold":
            asked.append(at)
            message = message_of(decision, epoch=3, leader="shard-0", shard="shard-0")
            made[-1].submit(request_of(message), time.monotonic_ns())
            assert outcomes(made[-1])[0].accepted
            assert decision.attempt == len(asked)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["counts"] for line in lines] == [{"a": 7}] * len(asked)
    assert len({line["request"] for line in lines}) == len(asked)
    pauses = [b - a for a, b in pairwise(asked)]
    assert pauses == [20, 40, 80, 100]


class Machine:
    """A launcher without processes."""

    def __init__(self, *processes: Process, most: int = 100) -> None:
        self.all = list(processes)
        self.most = most
        self.launched: list[tuple[str, str, int]] = []
        self.retired: list[str] = []

    def processes(self) -> list[Process]:
        return [process for process in self.all if process.name not in self.retired]

    def launch(self, shard: str, gpu_type: str, gpus: int) -> None:
        if sum(process.gpus for process in self.processes()) + gpus > self.most:
            raise SymphonyError(f"this machine has {self.most} GPUs")
        self.launched.append((shard, gpu_type, gpus))
        self.all.append(Process(f"new-{len(self.all)}", shard, gpu_type, gpus))

    def retire(self, name: str) -> None:
        self.retired.append(name)


def test_local_starts_what_is_missing_and_only_once() -> None:
    machine = Machine(Process("w0", "shard-0", "a", 4, frozenset(range(4))), Process("w1", "shard-1", "a", 4))
    actuator = LocalActuator(machine)
    actuator.submit(Request("k1", "shard-0", {"a": 6}), 0)
    actuator.submit(Request("k1", "shard-0", {"a": 6}), 0)
    actuator.submit(Request("k2", "shard-0", {"a": 6}), 0)
    assert machine.launched == [("shard-0", "a", 2)]
    assert [outcome.detail for outcome in actuator.poll(0)] == [
        "2 GPUs starting, 0 draining",
        "asked before",
        "0 GPUs starting, 0 draining",
    ]
    assert actuator.poll(0) == []


def test_local_lets_a_process_go_when_all_its_gpus_may() -> None:
    machine = Machine(
        Process("w0", "shard-0", "a", 2, frozenset({0, 1})),
        Process("w1", "shard-0", "a", 2, frozenset({2, 3})),
        Process("w2", "shard-0", "a", 1, frozenset({4})),
        Process("w3", "shard-1", "a", 1, frozenset({5})),
    )
    actuator = LocalActuator(machine)
    actuator.submit(Request("k", "shard-0", {"a": 2}, (5, 4, 3)), 0)
    assert machine.retired == ["w2"]
    actuator.submit(Request("l", "shard-0", {"a": 3}, (4, 3, 2)), 0)
    assert machine.retired == ["w2"]  # two would leave too few
    actuator.submit(Request("m", "shard-0", {"a": 2}, (3, 2)), 0)
    assert machine.retired == ["w2", "w1"]
    assert machine.launched == []


def test_local_says_no_when_the_machine_is_full_and_may_be_asked_again() -> None:
    machine = Machine(Process("w0", "shard-0", "a", 2), most=3)
    actuator = LocalActuator(machine)
    actuator.submit(Request("k", "shard-0", {"a": 5}), 0)
    (outcome,) = actuator.poll(0)
    assert (outcome.code, outcome.detail) == ("refused", "this machine has 3 GPUs")
    machine.most = 5
    actuator.submit(Request("k", "shard-0", {"a": 5}), 0)
    assert actuator.poll(0)[0].accepted


def test_keys_are_forgotten_in_the_end() -> None:
    recent = Recent(most=2)
    for key in "abc":
        recent.add(key)
    assert ("a" in recent, "b" in recent, "c" in recent) == (False, True, True)
