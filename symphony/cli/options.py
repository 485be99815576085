"""Options that several commands share: one thing has one name, one variable and one help text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from symphony.config import own_address

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_BROKER: Final = {
    "registry": ("The broker's registry.", 5550),
    "publish": ("The broker's address for publishers.", 5551),
    "subscribe": ("The broker's control channel.", 5552),
}


def config(help: str) -> Decorator:
    """``--config/-c FILE`` as ``path: Path | None``; ``help`` says what of the file counts."""
    return click.option(
        "--config",
        "-c",
        "path",
        type=click.Path(path_type=Path),
        envvar="SYMPHONY_CONFIG",
        show_envvar=True,
        help=help,
    )


def broker(which: str) -> Decorator:
    """``--registry``, ``--publish`` or ``--subscribe`` as ``str | None`` under that name."""
    text, port = _BROKER[which]
    return click.option(
        f"--{which}",
        metavar="ENDPOINT",
        envvar=f"SYMPHONY_{which.upper()}",
        show_envvar=True,
        help=f"{text}  [default: the file's, else tcp://127.0.0.1:{port}]",
    )


def _address(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    try:
        return None if value is None else own_address(value)
    except ValueError as error:
        raise click.BadParameter(f"{error}, not {value!r}") from None


def host(help: str = "IP address to bind.  [default: the file's cluster.host, else 127.0.0.1]") -> Decorator:
    """``--host ADDRESS`` as ``host: str | None``."""
    return click.option("--host", metavar="ADDRESS", callback=_address, help=help)


def insecure() -> Decorator:
    """``--insecure`` as ``insecure: bool``."""
    return click.option(
        "--insecure",
        is_flag=True,
        help="Allow an address that other machines can reach; nothing authenticates them.",
    )


def drain(seconds: float) -> Decorator:
    """``--drain SECONDS`` as ``drain_s: float``."""
    return click.option(
        "--drain",
        "drain_s",
        type=click.FloatRange(0, 3_600),
        default=seconds,
        show_default=True,
        metavar="SECONDS",
        help="Longest time to finish what is queued when told to stop, in seconds.",
    )
