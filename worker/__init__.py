"""Devices, model loading, batch execution, completion timings."""
