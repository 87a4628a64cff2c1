"""Rows as the one-shot benchmark writes them."""

from __future__ import annotations

from typing import Any


def row(method: str, seed: int, test: float = 0.8, validation: float = 0.8, **changes: Any) -> dict[str, Any]:
    """Return a row of ResNet-20 at 90 %; masked networks are 0.1 worse.

    Args:
        method: Name of the method.
        seed: Seed of the calibration pictures.
        test: Test accuracy after re-solving.
        validation: Validation accuracy after re-solving.
        changes: Other values of the row.
    """
    found = {"dense": (0.9, 0.9), "pruned": (test - 0.1, validation - 0.1), "reconstructed": (test, validation)}
    return {
        "network": "resnet20",
        "seed": seed,
        "solved": "layer-wise",
        "sparsity": 0.9,
        "method": method,
        "images": 3000,
        "steps": None,
        "protocol": "12345678",
        "accuracy": {stage: {"test": values[0], "validation": values[1]} for stage, values in found.items()},
        "cached": {"scores": True, "search": None},
        "seconds": {"scores": 0.1, "ranges": 0.1, "reconstruct": 7.0},
        "device": "processor",
        "torch": "2.0",
        "threads": 1,
    } | changes
