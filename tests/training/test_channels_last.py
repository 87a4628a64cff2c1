"""Networks have channels last in memory, unless they flatten feature maps by ``view``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from composing import composed

from mmp.config.schema import PruneConfig
from mmp.config.validate import validate
from mmp.models.networks import build_bare, fill_input
from mmp.training.channels_last import put_channels_last
from mmp.training.trial import try_training

NETWORK = """
from torch import nn

class Net(nn.Module):
    def __init__(self, flatten):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 6, 5), nn.BatchNorm2d(6), nn.ReLU())
        self.fc, self.flatten = nn.Linear(6 * 12 * 12, 10), flatten

    def forward(self, x):
        y = self.conv(x)
        if self.flatten == "view":
            y = y.view(-1, 6 * 12 * 12)
        else:
            y = y.flatten(1)
        return self.fc(y)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("flatten", "last"), [("view", False), ("flatten", True)])
def test_a_network_that_flattens_by_view_keeps_the_usual_order(
    flatten: str, last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"net_{flatten}.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ("model=own", f"model._target_=net_{flatten}.Net", f"+model.kwargs.flatten={flatten}", "data=digits")
    values = ("model.mean=[0.3]", "model.std=[0.4]", "data.mean=null", "data.std=null", f"paths.cache={tmp_path}")
    config = validate(composed(*own, *values), PruneConfig)
    fill_input(config)
    torch.manual_seed(0)
    expected = build_bare(config.model)
    torch.manual_seed(0)
    network = put_channels_last(build_bare(config.model), config)
    assert network.training
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in network.state_dict().items())
    weight = network.get_parameter("conv.0.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    assert try_training(config)
