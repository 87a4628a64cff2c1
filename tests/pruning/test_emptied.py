"""Masks that empty a layer are a warning that names the layer and the setting."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import mmp
from mmp.pruning.criteria import Erk, Lamp, Mag
from mmp.pruning.emptied import emptied_layers, warn_of_emptied

ALL = mmp.RangeTable(
    "all", mmp.RuleTable("all", (), mmp.Range(0.3, 1.0)), constraints=mmp.Constraints(small_below=0, ceiling=1.0)
)


def weak_first() -> nn.Module:
    """Return a network whose first layer has much smaller weights than the others."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 10))
    with torch.no_grad():
        model[0].weight.mul_(1e-4)
    return model


@pytest.mark.parametrize("criterion", ["mag", mmp.criterion("mag")])
def test_an_emptied_layer_is_named_with_min_density(criterion: object, caplog: pytest.LogCaptureFixture) -> None:
    result = mmp.prune(weak_first(), 0.8, criterion=criterion)  # type: ignore[arg-type]
    assert not result.masks["0.weight"].any()
    (record,) = [record for record in caplog.records if "prunes all weights" in record.message]
    assert record.message.startswith("criterion=mag prunes all weights of 1 of 3 layers ('0.weight')")
    assert "criterion.min_density=0.01" in record.message


def test_min_density_prevents_it(caplog: pytest.LogCaptureFixture) -> None:
    result = mmp.prune(weak_first(), 0.8, criterion=Mag(min_density=0.01))
    assert not emptied_layers(result.masks)
    assert "prunes all weights" not in caplog.text


def test_a_strategy_that_empties_layers_is_a_warning_with_the_ceiling(caplog: pytest.LogCaptureFixture) -> None:
    for name, result in mmp.prune_all(weak_first(), strategies=["aggressive", "balanced"], ranges=ALL):
        assert len(emptied_layers(result.masks)) == (3 if name == "aggressive" else 0)
    found = re.findall(
        r"(strategy=\w+) prunes all weights of (\d) of 3 layers .*ranges.constraints.ceiling", caplog.text
    )
    assert found == [("strategy=aggressive", "3")]


@pytest.mark.parametrize(
    ("baseline", "ranking", "start", "end"),
    [
        (Mag(), None, "criterion=mag", "min_density=0.01 to keep a share of every layer"),
        (Erk(), None, "criterion=erk", "lower the budget"),
        (None, Lamp(), "allocation=lamp", "use allocation=strategy"),
        (None, None, "strategy=p90", "set ranges.constraints.ceiling below 1"),
    ],
)
def test_the_remedy_is_one_that_the_method_has(
    baseline: Mag | None, ranking: Lamp | None, start: str, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    masks = mmp.Masks({f"{i}.weight": torch.zeros(3, 3, dtype=torch.bool) for i in range(10)})
    warn_of_emptied(masks, "p90", baseline, ranking)
    assert caplog.messages[0].startswith(start)
    assert caplog.messages[0].endswith(end)
    assert "10 of 10 layers ('0.weight', '1.weight', " in caplog.text
    assert "'7.weight' and 2 more)" in caplog.text


def test_a_single_weight_that_is_kept_is_enough(caplog: pytest.LogCaptureFixture) -> None:
    mask = torch.zeros(3, 3, dtype=torch.bool)
    mask[1, 2] = True
    warn_of_emptied({"a": mask}, "p90")
    assert not caplog.records
