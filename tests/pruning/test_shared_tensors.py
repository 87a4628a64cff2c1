"""Re-solving where tensors are shared or computed: no output becomes worse, and the report is what is measured."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from mmp.pruning.layers.eval_mode import evaluating
from mmp.pruning.layers.prunable import find_layers, prunable_parameters
from mmp.pruning.masks import Masks, make_masks
from mmp.pruning.reconstruction.reconstruct import reconstruct


class Parallel(nn.Module):
    """Modules side by side, each on the same images with an offset of its own."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [part(x * (1 + number) + number) for number, part in enumerate(self.parts)]


def linear(bias: bool = True) -> nn.Linear:
    return nn.Linear(10, 6, bias=bias)


def with_one_bias(count: int) -> nn.Module:
    model = Parallel(*(linear() for _ in range(count)))
    for part in model.parts:
        part.bias = model.parts[0].bias
    return model


def conv_and_linear() -> nn.Module:
    model = Parallel(nn.Sequential(nn.Unflatten(1, (10, 1)), nn.Conv1d(10, 6, 1), nn.Flatten()), linear())
    model.parts[1].bias = model.parts[0][1].bias
    return model


def bias_of_a_norm() -> nn.Module:
    model = Parallel(linear(), nn.Sequential(linear(bias=False), nn.LayerNorm(6)))
    with torch.no_grad():
        model.parts[1][1].bias.add_(1)
    model.parts[0].bias = model.parts[1][1].bias
    return model


def shared_weight_and_a_third_with_its_bias() -> nn.Module:
    model = Parallel(linear(), linear(), linear())
    model.parts[1].weight = model.parts[0].weight
    model.parts[2].bias = model.parts[1].bias
    return model


def bias_of_the_parent() -> nn.Module:
    class Parent(Parallel):
        def __init__(self) -> None:
            super().__init__(linear())
            self.offset = self.parts[0].bias

        def forward(self, x: Tensor) -> list[Tensor]:
            return [*super().forward(x), x[:, :6] + self.offset]

    return Parent()


def computed_bias() -> nn.Module:
    class Doubled(nn.Module):
        def forward(self, bias: Tensor) -> Tensor:
            return 2 * bias

    model = Parallel(linear(), linear())
    parametrize.register_parametrization(model.parts[0], "bias", Doubled())
    prune.identity(model.parts[1], "bias")
    return model


LEFT: dict[str, Callable[[], nn.Module]] = {
    "two linears": lambda: with_one_bias(2),
    "three linears": lambda: with_one_bias(3),
    "a convolution and a linear": conv_and_linear,
    "a linear and a norm": bias_of_a_norm,
    "a shared weight, and a third layer": shared_weight_and_a_third_with_its_bias,
    "a bias that the parent adds": bias_of_the_parent,
    "a computed bias": computed_bias,
}


def shared_weight_with_two_biases() -> nn.Module:
    model = Parallel(linear(), linear())
    model.parts[1].weight = model.parts[0].weight
    return model


def two_names_of_one_module() -> nn.Module:
    one = linear()
    return Parallel(one, nn.Sequential(one))


def shared_weight_and_bias() -> nn.Module:
    model = shared_weight_with_two_biases()
    model.parts[1].bias = model.parts[0].bias
    return model


SHIFTED: dict[str, Callable[[], nn.Module]] = {
    "one linear": lambda: Parallel(linear()),
    "a shared weight with two biases": shared_weight_with_two_biases,
    "a shared weight and bias": shared_weight_and_bias,
    "a module with two names": two_names_of_one_module,
}


def half(model: nn.Module) -> Masks:
    scores = {name: weight.detach().abs() for name, weight in prunable_parameters(model, find_layers(model)).items()}
    return make_masks(scores, dict.fromkeys(scores, 0.5))


def errors(found: nn.Module, dense: nn.Module, images: Tensor) -> list[float]:
    with torch.no_grad():
        return [float((a - b).square().mean()) for a, b in zip(found(images), dense(images), strict=True)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", [*LEFT, *SHIFTED])
def test_no_output_becomes_worse(kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    dense, images = {**LEFT, **SHIFTED}[kind](), torch.randn(300, 10) + 1
    masks = half(dense)
    with evaluating(dense):
        masked, solved = copy.deepcopy(dense), copy.deepcopy(dense)
    for name, mask in masks.items():
        masked.get_parameter(name).data[~mask] = 0
    reports = reconstruct(solved, masks, [images])
    before, after = errors(masked, dense, images), errors(solved, dense, images)
    shared_weight = len(masks) < len(before)  # one solution for several outputs
    if shared_weight:
        before, after = [sum(before)], [sum(after)]
    assert all(new <= old * (1 + 1e-5) for old, new in zip(before, after, strict=True))
    assert all(report.status == "solved" and report.after < report.before for report in reports)  # type: ignore[operator]
    biases = {name: value for name, value in solved.named_parameters() if "bias" in name}
    moved = any(not torch.equal(value, dense.get_parameter(name)) for name, value in biases.items())
    assert moved == (kind in SHIFTED)


def test_a_report_is_the_error_that_is_measured() -> None:
    torch.manual_seed(0)
    dense, images = with_one_bias(2), torch.randn(300, 10) + 1
    masks = half(dense)
    solved = copy.deepcopy(dense)
    reports = reconstruct(solved, masks, [images])
    with torch.no_grad():
        variances = [float(output.var(0, correction=0).mean()) for output in dense(images)]
    for report, error, variance in zip(reports, errors(solved, dense, images), variances, strict=True):
        assert report.after == pytest.approx(error / variance, rel=1e-3)
