"""Lower niceness counts only if the session has it, too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from symphony import urgency


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file that stands for the session's niceness; nothing of the test's own process is changed."""
    file = tmp_path / "autogroup"
    monkeypatch.setattr(urgency, "AUTOGROUP", file)
    monkeypatch.setattr(os, "setpriority", lambda *_: None)
    return file


def test_a_process_that_leads_its_session_raises_the_session(
    asked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked.write_text("/autogroup-1 nice 0")
    monkeypatch.setattr(os, "getsid", lambda _: os.getpid())
    assert urgency.be_prompt(-7)
    assert asked.read_text() == "-7"


def test_a_process_of_somebody_elses_session_leaves_it_alone(
    asked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked.write_text("/autogroup-1 nice 0")
    monkeypatch.setattr(os, "getsid", lambda _: os.getpid() + 1)
    assert urgency.be_prompt(-7)
    assert asked.read_text() == "/autogroup-1 nice 0"


def test_a_kernel_without_sessions_groups_has_no_such_file(
    asked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getsid", lambda _: os.getpid())
    assert urgency.be_prompt(-7)
    assert not asked.exists()


def test_where_it_is_not_allowed_the_process_runs_on(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refuse)
    assert not urgency.be_prompt(-20)
