"""Measurements behind the documentation: ``python -m benchmarks.<name>``."""
