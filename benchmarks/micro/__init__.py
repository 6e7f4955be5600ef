"""Operators under pytest-benchmark: `pytest benchmarks/ --benchmark-only`."""
