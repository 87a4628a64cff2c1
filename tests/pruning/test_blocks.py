"""Blocks of networks, at which a tuned network is compared with the dense one."""

from __future__ import annotations

import pytest
import timm
from torch import nn

from mmp.errors import MmpError
from mmp.pruning.reconstruction.blocks import find_blocks, require_blocks

TIMM = {
    "resnet18": [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)],
    "vit_tiny_patch16_224": [f"blocks.{block}" for block in range(12)],
    "mixer_s32_224": [f"blocks.{block}" for block in range(8)],  # whose two halves are of one class
    "swin_tiny_patch4_window7_224": [
        f"layers.{stage}.blocks.{block}" for stage, depth in enumerate((2, 2, 6, 2)) for block in range(depth)
    ],
    "inception_v3": [f"Mixed_{name}" for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")],
}


@pytest.mark.parametrize("name", TIMM)
def test_blocks_of_families(name: str) -> None:
    assert list(find_blocks(timm.create_model(name))) == TIMM[name]


def test_a_plain_network_has_its_layers_as_blocks() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    assert find_blocks(plain) == ("0", "2", "5")


def test_blocks_behind_a_wrapper_and_in_nested_containers() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.ModuleDict(
                {"stages": nn.Sequential(nn.Sequential(Block(), Block()), nn.ModuleList([Block()]))}
            )

    assert find_blocks(Wrapper()) == ("body.stages.0.0", "body.stages.0.1", "body.stages.1.0")


def test_stated_blocks_are_modules_of_the_model() -> None:
    model = timm.create_model("resnet18")
    assert require_blocks(model, ["layer1", "fc"]) == ("layer1", "fc")
    assert require_blocks(model, "layer1") == ("layer1",)
    with pytest.raises(MmpError, match=r"blocks: 'layer9' is no module of the model; .*layer"):
        require_blocks(model, ["layer9"])
    with pytest.raises(MmpError, match="blocks is empty"):
        require_blocks(model, [])
