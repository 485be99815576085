"""Symphony: deadline-aware DNN serving for GPU clusters.

What every process and every client shares: wire messages, sockets, cluster clock, configuration,
latency profiles, the client, the command line. Applications need :class:`Client` or
:class:`AsyncClient` and the exceptions; both are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from symphony._version import __version__

if TYPE_CHECKING:
    from symphony.async_client import AsyncClient
    from symphony.client import Client
    from symphony.result import InferResult
    from symphony.status import (
        Dropped,
        Failed,
        InvalidRequest,
        Overloaded,
        RequestTimeout,
        Status,
        SymphonyError,
        Unavailable,
        UnknownModel,
    )

__all__ = [
    "AsyncClient",
    "Client",
    "Dropped",
    "Failed",
    "InferResult",
    "InvalidRequest",
    "Overloaded",
    "RequestTimeout",
    "Status",
    "SymphonyError",
    "Unavailable",
    "UnknownModel",
    "__version__",
]

_HOMES = {
    "AsyncClient": "symphony.async_client",
    "Client": "symphony.client",
    "InferResult": "symphony.result",
}


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Here and not above: the command line and the broker need neither numpy nor the client.
    from importlib import import_module

    value = getattr(import_module(_HOMES.get(name, "symphony.status")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
