"""What a process may use of its memory limits what reconstruction stores."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmp.pruning.reconstruction.reconstruct import dense_targets


def test_targets_are_stored_in_a_quarter_of_the_memory_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), [torch.randn(10, 8)]
    names, needed = ["0.weight", "2.weight"], 10 * (16 + 4) * 4
    monkeypatch.setenv("MMP_MEMORY", str(4 * needed))
    assert dense_targets(network, names, images, most=needed)
    assert not dense_targets(network, names, images, most=needed - 1)
    monkeypatch.setenv("MMP_MEMORY", str(4 * needed - 1))
    assert not dense_targets(network, names, images, most=needed)
