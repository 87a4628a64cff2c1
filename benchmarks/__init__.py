"""Measurements behind the documentation: ``python -m benchmarks.<name>``."""

from pathlib import Path

from mmp.openmp import bound_spin

bound_spin()  # before a module of this package imports torch

RESULTS = Path(__file__).parent / "results"
