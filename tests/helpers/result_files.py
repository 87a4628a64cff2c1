"""Hand-made result files, for tests of the code that reads them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

SIGNALS = ("magnitude", "gradient", "product")
STRATEGIES = (
    "p30", "conservative", "classifier_heavy", "balanced", "p50", "feature_heavy", "proportional", "p70", "p90",
    "aggressive",
)  # fmt: skip
LAYERS = (("conv1.weight", 0.0, 0.1), ("layer1.0.conv1.weight", 0.3, 0.9), ("fc.weight", 0.5, 0.95))


def result(strategy: str, sparsity: float, validation: float, test: float, **changes: Any) -> dict[str, Any]:
    """Return the content of a completed run's ``result.json``, updated by ``changes``."""
    content = {
        "schema_version": 1,
        "status": "completed",
        "model": "cnn",
        "data": "digits",
        "signal": "magnitude",
        "strategy": strategy,
        "ranges": "generic",
        "seed": 0,
        "overrides": [f"strategy={strategy}"],
        "parameters": 1000,
        "sparsity": sparsity,
        "sparsity_all": 0.9 * sparsity,
        "bytes": {"dense": 4_000_000, "pruned": round(4_000_000 * (1 - sparsity)) + 125_000},
        "accuracy": {
            "dense": {"validation": 0.99, "test": 0.975},
            "pruned": {"validation": 0.5, "test": 0.4},
            "finetuned": {"validation": validation, "test": test},
        },
        "drop": 100 * (0.975 - test),
        "samples": {"train": 1000, "validation": 100, "calibration": 100, "test": 400},
        "masks_hash": strategy,
        "seconds": {"total": 3.0},
        "epochs": 4,
    }
    return {**content, **changes}


def write(folder: Path, *contents: dict[str, Any]) -> Path:
    """Write each content to its own run folder, as a result if it is completed and as a status otherwise."""
    for i, content in enumerate(contents):
        run = folder / f"run{i}"
        run.mkdir(parents=True)
        name = "result.json" if content["status"] == "completed" else "status.json"
        (run / name).write_text(json.dumps(content))
    return folder


def full_sweep(
    folder: Path,
    seeds: Iterable[int] = (0, 1, 2),
    signals: Sequence[str] = SIGNALS,
    strategies: Sequence[str] = STRATEGIES,
    more: Sequence[dict[str, Any]] = (),
) -> Path:
    """Write a sweep with layers and histories, whose accuracies fall with sparsity and vary with the seed."""
    contents = []
    for seed in seeds:
        for s, signal in enumerate(signals):
            for i, strategy in enumerate(strategies):
                noise = random.Random(f"{seed} {signal} {strategy}")
                sparsity = round(0.3 + 0.65 * i / len(strategies) + 0.01 * s, 4)
                loss = 0.08 * sparsity**4 + 0.003 * s
                validation, test = (0.97 - loss + noise.gauss(0, 0.002) + 0.002 * seed for _ in range(2))
                contents.append(
                    result(
                        strategy,
                        sparsity,
                        round(validation, 6),
                        round(test, 6),
                        signal=signal,
                        seed=seed,
                        overrides=[f"signal={signal}", f"strategy={strategy}", f"seed={seed}"],
                        masks_hash=f"{signal} {sparsity} {seed}",
                        layers=[
                            {
                                "name": name,
                                "role": "conv",
                                "lo": lo,
                                "hi": hi,
                                "pruned": int(200 * lo) + i,
                                "total": 200,
                            }
                            for name, lo, hi in LAYERS
                        ],
                        history=[
                            {
                                "epoch": e,
                                "val/accuracy": validation - 0.01 / (e + 1),
                                "val/loss": 0.1,
                                "train/loss": 0.2,
                            }
                            for e in range(4)
                        ],
                    )
                )
    return write(folder, *contents, *more)


def channel_result(strategy: str, removed: float, validation: float, test: float, **changes: Any) -> dict[str, Any]:
    """Return the content of ``result.json`` of a run with ``pattern=channels``: 1,000 parameters, 10,000 operations."""
    channels = {
        "pattern": "channels",
        "ranges": "channels",
        "sparsity_all": removed,
        "parameters_left": round(1000 * (1 - removed)),
        "multiply_adds": {"dense": 10_000, "pruned": round(10_000 * (1 - removed / 2))},
        "bytes": {"dense": 4_000_000, "pruned": round(4_000_000 * (1 - removed))},
        "masks_hash": f"channels {strategy}",
    }
    return {**result(strategy, removed / 2, validation, test), **channels, **changes}


def timed(run: Path, target: str, ratio: object, **more: object) -> None:
    """Write the part of an ``export.json`` of a run that has the latencies."""
    latency = [{"batch": 32, "ratio": 0.01, "quartiles": [0.01, 0.01]}, {"batch": 1, "ratio": ratio}]
    place = run / "export" / target / "export.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps({"latency": latency, **more}))
