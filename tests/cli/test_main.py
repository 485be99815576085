"""The command line as a whole: help without imports, versions, and errors that are one line."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import click
import pytest

from symphony import __version__
from symphony.cli import main as module
from symphony.status import SymphonyError


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "symphony", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A sub-command ``fail`` that raises or returns what its option says."""
    fake = ModuleType("symphony.cli.fail")

    @click.command()
    @click.option("--how", required=True)
    def command(how: str) -> int:
        if how == "explained":
            raise SymphonyError("the file x.yaml\n   is not there")
        if how == "interrupt":
            raise KeyboardInterrupt
        if how == "bug":
            raise ZeroDivisionError
        return int(how)

    fake.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(module.COMMANDS, "fail", "Fails.")
    monkeypatch.setitem(sys.modules, "symphony.cli.fail", fake)
    real = module.importlib.util.find_spec
    monkeypatch.setattr(
        module.importlib.util, "find_spec", lambda name: fake if name == fake.__name__ else real(name)
    )
    handlers, level = logging.root.handlers[:], logging.root.level
    yield fake
    logging.root.handlers[:] = handlers  # ours writes to a stream that pytest is about to close
    logging.root.setLevel(level)


def _exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        module.main(list(arguments))
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.usefixtures("failing")
def test_an_explained_error_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code("fail", "--how", "explained") == 1
    assert capsys.readouterr().err == "symphony: the file x.yaml is not there\n"


@pytest.mark.usefixtures("failing")
@pytest.mark.parametrize(("how", "code"), [("0", 0), ("3", 3), ("interrupt", 130)])
def test_exit_codes(how: str, code: int) -> None:
    assert _exit_code("fail", "--how", how) == code


@pytest.mark.usefixtures("failing")
def test_misuse_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code("fail") == 2
    assert "Missing option '--how'" in capsys.readouterr().err
    assert _exit_code("nothing") == 2
    assert "No such command 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["scheduler", "--id", "my shard"], "expected up to 128 letters, digits and ._:@/-, not 'my shard'"),
        (["scheduler", "--host", "gpu-box"], "expected an IP address such as 127.0.0.1, not 'gpu-box'"),
        (["worker", "--host", "0.0.0.0"], "not a wildcard, not '0.0.0.0'"),
        (["load", "m=1", "--host", "gpu-box"], "expected an IP address"),
        (["broker", "--host", "gpu-box"], "expected an IP address"),
    ],
)
def test_names_and_addresses_are_checked_before_anything_starts(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exit_code(*arguments) == 2
    assert text in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("failing")
def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        module.main(["fail", "--how", "bug"])


def test_help_names_every_command_and_imports_none() -> None:
    code = (
        "import sys\n"
        "from symphony.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "known = [name for name in sys.modules if name.startswith('symphony.cli.')]\n"
        "assert known == ['symphony.cli.main'], known\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    for name, line in module.COMMANDS.items():
        if module.importlib.util.find_spec(f"symphony.cli.{name}") is not None:
            assert name in done.stdout
            assert line.split()[0] in done.stdout


@pytest.mark.parametrize(
    "name", [n for n in module.COMMANDS if module.importlib.util.find_spec(f"symphony.cli.{n}") is not None]
)
def test_every_command_has_help(name: str) -> None:
    done = _run(name, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: ")
    assert done.stdout.count("\n") > 3


def test_version_tells_the_core() -> None:
    done = _run("--version")
    assert done.returncode == 0
    assert done.stdout.strip() in {
        f"symphony {__version__} (scheduling core: {core})" for core in ("compiled", "python")
    }


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m symphony --help | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
