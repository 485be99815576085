"""Carry out what the autoscaler decides: one module per way, one interface (:mod:`.base`)."""
