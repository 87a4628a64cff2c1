"""Hand-made runs of a report."""

from __future__ import annotations

from mmp.report.results import Run


def run(name: str, sparsity: float, validation: float, test: float, seed: int = 0, **changes: str) -> Run:
    """Return a run of a strategy, or of a baseline if the name begins with ``!``."""
    baseline = name.startswith("!")
    known = {"signal": name[1:], "strategy": "baseline", "criterion": name[1:]} if baseline else {"strategy": name}
    return Run(
        f"{name}-{seed}", "completed", model="cnn", data="digits", sparsity=sparsity, validation=validation, test=test,
        seed=seed, dense_test=0.95, drop=100 * (0.95 - test), test_samples=400, **{"signal": "magnitude"} | known,
        **changes,
    )  # fmt: skip
