"""Growing columns, for the compiled modules beside this one."""

from scheduler.core.columns import widen

__all__ = ["widen"]
