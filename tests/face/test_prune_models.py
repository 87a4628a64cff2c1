"""``mmp.prune`` takes models of many makes: precisions, frozen weights, shared modules, wrappers, computed weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import utils
from torch.nn.utils import prune as torch_prune

import mmp

IMAGES = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(32) % 10
ANY = mmp.RangeTable("any", mmp.RuleTable("any", (), mmp.Range(0.2, 0.8)), constraints=mmp.Constraints(small_below=0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 48, 3), nn.Flatten(), nn.Linear(768, 10)
    ).eval()


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = net()
        self.other = self.one

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.other(2 * x)


def pruned_by_torch() -> nn.Module:
    model = net()
    torch_prune.l1_unstructured(model[3], "weight", 0.5)
    return model


def under_weight_norm() -> nn.Module:
    model = net()
    utils.weight_norm(model[3])
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "half precision": lambda: net().half(),
    "bfloat16": lambda: net().bfloat16(),
    "double precision": lambda: net().double(),
    "frozen": lambda: net().requires_grad_(False),
    "two names for one module": Twice,
    "an average": lambda: torch.optim.swa_utils.AveragedModel(net()),
    "a graph of torch.fx": lambda: torch.fx.symbolic_trace(net()),
    "torch's own pruning": pruned_by_torch,
    "weight norm": under_weight_norm,
    "in training mode": lambda: net().train(),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("signal", ["magnitude", "product", "obs_fisher"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_model_is_pruned_and_stays_as_it_is(kind: str, signal: str) -> None:
    model = MODELS[kind]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frozen = [parameter.requires_grad for parameter in model.parameters()]
    dtype = next(model.parameters()).dtype
    result = mmp.prune(model, 0.3, IMAGES.to(dtype), LABELS, signal=signal, ranges=ANY)
    weights = dict(result.model.named_parameters())
    assert sum(result.masks.pruned.values()) == round(0.3 * result.masks.total)
    for name, mask in result.masks.items():
        assert not weights[name][~mask].any()
        assert weights[name].dtype is dtype
        assert weights[name].isfinite().all()
    statuses = {report.status for report in result.reports}  # a few images may not be enough to solve a layer with
    assert "solved" in statuses
    assert statuses <= {"solved", "the solve would make its output worse"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == frozen
    assert [*result.model.state_dict()] == [*before]
