"""A criterion by name has the arguments of its file, in Python as in a command."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import mmp
import mmp.method


def test_the_arguments_of_a_criterions_file_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    file = OmegaConf.create({"_target_": "mmp.pruning.criteria.Mag", "name": "mag", "min_density": 0.25})
    known = mmp.method.choose
    monkeypatch.setattr(mmp.method, "choose", lambda group, name: file if group == "criterion" else known(group, name))
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    with torch.no_grad():
        model[0].weight.mul_(0.001)  # magnitude over the whole model would empty this layer
    masks = mmp.prune(model, budget=0.5, criterion="mag").masks
    assert masks["0.weight"].float().mean() == 0.25
