"""Each kind of layer is pruned alone, by the masks of the whole network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.oneshot_layers import ALL, divergence, layers_table, rows_of


def test_a_row_for_the_network_and_for_each_part_alone() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()
    batches = [(torch.randn(16, 3, 8, 8), torch.randint(5, (16,))) for _ in range(2)]
    whole, *parts = rows_of(network, 0.7, batches, "net")
    assert (whole["grouping"], whole["weights"]) == (ALL, 216 + 1440)
    assert whole["pruned"] == pytest.approx(0.7, abs=0.001)
    kinds = [row for row in parts if row["grouping"] == "layers"]
    assert [(row["part"], row["weights"]) for row in kinds] == [("0", 216), ("3", 1440)]
    assert sum(row["pruned"] * row["weights"] for row in kinds) == pytest.approx(whole["pruned"] * whole["weights"])
    assert all(0 < row["divergence"] < whole["divergence"] * 2 for row in kinds)
    assert len({row["divergence"] for row in kinds}) == 2
    assert layers_table([whole]).count("\n") == 2


def test_the_divergence_is_zero_only_for_equal_probabilities() -> None:
    logits = torch.randn(4, 5)
    assert divergence(logits + 3, logits) == pytest.approx(0, abs=1e-6)
    expected = (logits.double().softmax(1) * (logits.double().log_softmax(1) + torch.tensor(5.0).log())).sum(1).mean()
    assert divergence(torch.zeros(4, 5), logits) == pytest.approx(float(expected))
