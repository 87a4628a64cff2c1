"""Measure the accuracies of a run's models, and save its weights and masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmp.cache import cached_tensors
from mmp.config.schema import PruneConfig
from mmp.data.module import ImageData
from mmp.models.weights import require_finite
from mmp.pruning.masks import Masks, check_zeros, clear_pruned, save_masks
from mmp.runs.store import MASKS, WEIGHTS
from mmp.tensors import save_tensors, tensors_digest
from mmp.training.dense import accuracy_file
from mmp.training.evaluation import accuracy, device_of


def validation_accuracy(model: nn.Module, config: PruneConfig, data: ImageData) -> float:
    """Return a model's validation accuracy."""
    return accuracy({"": model}, data.val_dataloader(), config.data.classes, device_of(config))[0][""]


def save_model(model: nn.Module, masks: Masks, folder: Path) -> None:
    """Save a model with its masks.

    Raises:
        MmpError: if a weight is not finite, or a pruned weight is not zero.
    """
    state = model.state_dict()
    require_finite(model, "fine-tuning")
    check_zeros(state, masks)
    clear_pruned(state, masks)
    weights = {name: value.cpu() for name, value in state.items()}
    save_masks(masks, folder / MASKS)
    save_tensors(folder / WEIGHTS, weights)


def measure(models: Mapping[str, nn.Module], config: PruneConfig, data: ImageData) -> dict[str, Any]:
    """Measure models on the validation and the test split, in one pass over each.

    Models with equal weights, such as a re-solved model that is not fine-tuned, are measured once.

    Call this once, after every choice is made. The dense model is the same for all runs of a sweep, so the first run
    writes its accuracies to the cache.

    Args:
        models: The models by stage, among them ``dense`` and ``finetuned``.
        config: The run's configuration.
        data: The data set.

    Returns:
        The entries of ``result.json`` about accuracy. ``drop`` is in percentage points of test accuracy. ``classes``
        are the names of the classes in the order of the outputs, None if the data set does not state them.
    """
    found: dict[str, dict[str, float]] = {}

    def read(chosen: Mapping[str, nn.Module]) -> dict[str, dict[str, float]]:
        device, classes = device_of(config), config.data.classes
        weights = {name: tensors_digest(model.state_dict()) for name, model in chosen.items()}
        distinct = {weights[name]: model for name, model in chosen.items()}
        validation, _ = accuracy(distinct, data.val_dataloader(), classes, device)
        test, samples = accuracy(distinct, data.test_dataloader(), classes, device)
        return {
            name: {"validation": validation[key], "test": test[key], "samples": samples}
            for name, key in weights.items()
        }

    def read_all() -> dict[str, Tensor]:
        found.update(read(models))
        return {key: torch.tensor(value, dtype=torch.float64) for key, value in found["dense"].items()}

    cached, _ = cached_tensors(accuracy_file(config, models["dense"], data), read_all)
    if not found:
        others = {name: model for name, model in models.items() if name != "dense"}
        found = {"dense": {key: float(value) for key, value in cached.items()}, **read(others)}
    samples = {name: int(values.pop("samples")) for name, values in found.items()}
    return {
        "accuracy": found,
        "drop": 100 * (found["dense"]["test"] - found["finetuned"]["test"]),
        "samples": {**data.samples, "test": samples["finetuned"]},
        "classes": data.class_names and list(data.class_names),
    }
