"""The compiled modules' loops are faster than whole columns in NumPy; see :mod:`scheduler.core.plain`."""

from scheduler.core.plain import append_calm as append_calm
from scheduler.core.plain import fetch as fetch
from scheduler.core.plain import fetch_signed as fetch_signed
from scheduler.core.plain import lowest as lowest
from scheduler.core.plain import whole as whole

PLAIN = False
