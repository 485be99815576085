"""Benchmarks, in groups: core, wire, latency."""
