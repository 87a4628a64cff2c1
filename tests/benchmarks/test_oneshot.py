"""The one-shot benchmark: its network, its command line, and its table."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.cifar_resnet import CifarResNet
from benchmarks.oneshot import Request, report
from mmp.errors import MmpError


@pytest.mark.parametrize(("depth", "weights"), [(20, 19), (56, 55)])
def test_the_network_has_the_layers_of_its_depth(depth: int, weights: int) -> None:
    network = CifarResNet(depth, projection=False, classifier="linear").eval()
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) == weights
    assert sum(parameter.numel() for parameter in network.parameters()) == {20: 269_722, 56: 853_018}[depth]
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_a_shortcut_without_weights_adds_channels_of_zeros_on_both_sides() -> None:
    block = CifarResNet(8, projection=False).layer2[0].eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 16, 8, 8)
    expected = torch.zeros(1, 32, 4, 4)
    expected[:, 8:24] = x[:, :, ::2, ::2]
    assert torch.equal(block(x), expected)


def test_a_request_names_what_is_wrong() -> None:
    given = ["network=resnet20", "checkpoint=a.pth", "root=data"]
    assert Request.of([*given, "seeds=1", "methods=LAMP+obs"]).methods == ["LAMP", "obs"]
    for wrong in (given[:2], [*given, "seeds=7"], [*given, "speed=1"], ["network=vgg", *given[1:]]):
        with pytest.raises(MmpError, match=r"network=resnet20\|"):
            Request.of(wrong)


def row(method: str, seed: int, validation: float, test: float, solved: str = "layer-wise") -> dict[str, Any]:
    accuracy = {"dense": 0.9, "pruned": test - 0.1, "reconstructed": test}
    return {
        "network": "resnet20",
        "method": method,
        "seed": seed,
        "solved": solved,
        "sparsity": 0.9,
        "accuracy": {stage: {"test": value, "validation": validation} for stage, value in accuracy.items()},
    }


def test_the_table_chooses_a_strategy_on_validation_pictures() -> None:
    rows = [row("strategy p30", seed, 0.7, 0.8) for seed in (0, 1)]
    rows += [row("strategy p70", 0, 0.9, 0.5), row("strategy p70", 1, 0.9, 0.6)]
    lines = report(rows).splitlines()
    assert lines[0] == "resnet20, dense 90.00 %"
    cells = {tuple(cell.strip() for cell in line.split("|")[1:3]): line.split("|")[7].strip() for line in lines[4:]}
    assert cells["strategies, best on validation", "layer-wise"] == "55.00 ± 7.07"
    assert cells["strategies, mean", "layer-wise"] == "67.50 ± 3.54"
    assert cells["strategies, best on validation", "masked"] == "45.00 ± 7.07"
