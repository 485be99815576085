"""For the compiled modules beside this one; they have these functions from loads.pxd."""

from symphony.wire.loads import load32 as load32
from symphony.wire.loads import load64 as load64
from symphony.wire.loads import load64s as load64s
