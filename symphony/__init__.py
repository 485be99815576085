"""Symphony: deadline-aware DNN serving for GPU clusters.

What every process and every client shares: wire messages, sockets, cluster clock, configuration,
latency profiles, the client, the command line. Applications need :class:`Client` or
:class:`AsyncClient` and the exceptions; both are imported on first use.
"""

from __future__ import annotations

from symphony._version import __version__

__all__ = ["__version__"]
