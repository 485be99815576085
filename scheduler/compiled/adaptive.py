"""The slow loop is the same for both flavours: it is not compiled."""

from scheduler.core.adaptive import Tuner as Tuner
