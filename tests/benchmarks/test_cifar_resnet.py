"""The ResNets of CIFAR-10."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cifar_resnet import CifarResNet


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
