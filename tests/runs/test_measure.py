"""The measurement of a run's models."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from mmp.config.schema import PruneConfig
from mmp.data.module import ImageData
from mmp.runs import measure


class Counting(nn.Linear):
    """A layer that counts the calls of all its copies."""

    calls: list[int]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(x))
        return super().forward(x)


def test_models_with_equal_weights_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "accuracy_file", lambda *_: tmp_path / "dense.safetensors")
    monkeypatch.setattr(Counting, "calls", [], raising=False)
    images = torch.randn(8, 4)
    dense = Counting(4, 3)
    labels = dense(images).argmax(1)
    pruned = copy.deepcopy(dense)
    nn.init.zeros_(pruned.weight)
    models = {
        "dense": dense,
        "pruned": pruned,
        "reconstructed": copy.deepcopy(dense),
        "finetuned": copy.deepcopy(dense),
    }
    data: Any = SimpleNamespace(
        val_dataloader=lambda: [(images, labels)],
        test_dataloader=lambda: [(images, labels)],
        samples={},
        class_names=None,
    )
    config: Any = SimpleNamespace(trainer=SimpleNamespace(accelerator="cpu"), data=SimpleNamespace(classes=3))
    Counting.calls.clear()
    found = measure.measure(models, cast(PruneConfig, config), cast(ImageData, data))
    assert len(Counting.calls) == 2 * 2
    assert found["accuracy"]["finetuned"] == found["accuracy"]["dense"] == {"validation": 1.0, "test": 1.0}
    assert found["accuracy"]["pruned"]["test"] < 1.0
