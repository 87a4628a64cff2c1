"""Measurements behind the documentation: ``python -m benchmarks.<name>``."""

from pathlib import Path

RESULTS = Path(__file__).parent / "results"
