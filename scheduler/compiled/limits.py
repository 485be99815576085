"""The constants of the core, for the compiled modules beside this one."""

from scheduler.core.limits import *  # noqa: F403
