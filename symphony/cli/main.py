"""The ``symphony`` command: a group whose sub-commands are imported only when they are called.

A sub-command is a module ``symphony.cli.<name>`` with a ``command``. Its line in ``symphony --help``
stands below, so that showing it imports none of them. An error that a person can act on
(:class:`SymphonyError`) is one line on standard error and exit code 1; misuse of the command line is
click's exit code 2.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from typing import Any, Final

import click

from symphony._version import __version__
from symphony.status import SymphonyError
from symphony.supervisor import die_with_parent

COMMANDS: Final[dict[str, str]] = {
    "up": "Start a whole cluster on this machine and keep it running.",
    "demo": "Serve real models on a small cluster for a while and explain what happened.",
    "broker": "Run the broker: membership, cluster clock, control channel.",
    "scheduler": "Run one scheduler shard.",
    "worker": "Run one worker with its device and models.",
    "load": "Offer load to models and measure what comes back.",
    "profile": "Measure how long batches of a model take on a device.",
    "simulate": "Simulate an experiment under a virtual clock: policies, baselines, goodput.",
    "plan": "Place models on sub-clusters and count the GPUs that they need.",
    "status": "Show who is in the cluster.",
    "bench": "Run a benchmark: core, rate, latency, wire, gpu and more.",
    "telemetry": "Follow the cluster's telemetry as JSON lines.",
}
"""Sub-commands in the order of ``--help``, with one line each."""


class LazyGroup(click.Group):
    """Finds a sub-command by importing its module at the moment it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Those whose module is there."""
        return [name for name in COMMANDS if importlib.util.find_spec(_module(name)) is not None]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """None if there is no such command; click then says so."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(_module(cmd_name)).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list for ``--help``, without importing anything."""
        with formatter.section("Commands"):
            rows = [(name, COMMANDS[name]) for name in self.list_commands(ctx)]
            formatter.write_dl(rows or [("none", "This installation has no sub-commands.")])


def _module(name: str) -> str:
    return f"symphony.cli.{name}"


def _flavour() -> str:
    """Which scheduling core this installation runs: compiled or python."""
    if importlib.util.find_spec("scheduler.select") is None:
        return "python"
    return str(importlib.import_module("scheduler.select").flavour())


def _print_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"symphony {__version__} (scheduling core: {_flavour()})")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and which scheduling core is in use.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    envvar="SYMPHONY_LOG_LEVEL",
    show_default=True,
    show_envvar=True,
    help="How much is said on standard error.",
)
def cli(log_level: str) -> None:
    """Symphony serves neural networks on many GPUs under latency objectives.

    Try `symphony up` in one terminal and `symphony load resnet50=1000 --seconds 10` in another.
    """
    logging.basicConfig(
        stream=sys.stderr,
        level=log_level.upper(),
        format="%(asctime)s %(levelname).1s %(name)s: %(message)s",
        force=True,
    )


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit: 0 success, 1 an error that was explained, 2 misuse."""
    die_with_parent()
    try:
        code: Any = cli.main(args=args, prog_name="symphony", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SymphonyError as error:
        click.echo(f"symphony: {' '.join(str(error).split())}", err=True)
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        click.echo("symphony: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): no error, but nothing more to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(code if type(code) is int else 0)
