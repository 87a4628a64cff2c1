"""Numbers of re-solving at the edges: one row, zeros with a sign, batches of another kind."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

import mmp
from mmp.errors import MmpError
from mmp.pruning.masks import Masks
from mmp.pruning.reconstruction.least_squares import by_conjugate_gradients, by_factors, solve_rows
from mmp.pruning.reconstruction.moments import Moments
from mmp.pruning.reconstruction.reconstruct import LayerReport, reconstruct, summary_of


def random_masks(model: nn.Module) -> Masks:
    generator = torch.Generator().manual_seed(3)
    return Masks(
        {name: torch.rand(p.shape, generator=generator) > 0.5 for name, p in model.named_parameters() if p.dim() > 1}
    )


IMAGE = torch.rand(1, 6, generator=torch.Generator().manual_seed(0))


def linears(bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8, bias=bias), nn.ReLU(), nn.Linear(8, 3, bias=bias))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("images", [IMAGE, IMAGE.repeat(70, 1), IMAGE.unsqueeze(0)])
def test_an_output_that_does_not_vary_has_no_error_as_a_share_of_its_variance(images: Tensor, bias: bool) -> None:
    model = linears(bias)
    expected = model(images).detach()
    reports = reconstruct(model, random_masks(model), [images])
    for report in reports:
        assert (report.status, report.before, report.after) == ("solved", None, None)
    assert torch.allclose(model(images), expected, atol=0.2 if not bias else 1e-5)
    summary = summary_of(reports)
    assert (summary["solved"], summary["left"], summary["error_before"], summary["error_after"]) == (2, 0, None, None)
    json.dumps([summary, [report.to_dict() for report in reports]], allow_nan=False)


def test_a_convolution_on_one_image_has_an_error() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    (report,) = reconstruct(model, random_masks(model), [torch.rand(1, 3, 9, 9)])
    assert 0 < report.after < report.before < math.inf  # type: ignore[operator]


def test_a_result_from_one_image_is_shown_without_errors() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 300), nn.Linear(300, 40))
    result = mmp.prune(model, 0.5, torch.rand(1, 3, 4, 4))
    assert "Re-solved: 2 of 2 layers." in str(result)
    assert "Mean output error" not in str(result)
    assert "nan" not in str(result)


def test_a_small_variance_beside_a_large_mean_is_no_rounding() -> None:
    x = torch.rand(200, 6, generator=torch.Generator().manual_seed(0))
    y = 1 + 1e-4 * x[:, :3]
    moments = Moments.of([(x[None], y[None])])
    assert moments.share(moments.squared_error(torch.zeros(3, 6), moments.best_constant(torch.zeros(3, 6)))) == (
        pytest.approx(1.0, rel=1e-3)
    )
    constant = Moments.of([(x[None], torch.ones(1, 200, 3) / 3)])
    assert constant.variance == 0.0
    assert constant.share(constant.squared_error(torch.zeros(3, 6))) is None


def test_the_mean_error_is_over_layers_that_have_one() -> None:
    reports = [LayerReport("a", 1, 0.5, 0.1, "solved", 0.0), LayerReport("b", 1, None, None, "solved", 0.0)]
    summary = summary_of(reports)
    assert (summary["solved"], summary["left"], summary["error_before"], summary["error_after"]) == (2, 0, 0.5, 0.1)


@pytest.mark.parametrize("solver", [by_factors, by_conjugate_gradients])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pruned_weights_have_no_sign(solver: object, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    x, dense = torch.randn(1, 400, 20, generator=generator), torch.randn(30, 20, generator=generator)
    mask = torch.rand(30, 20, generator=generator) > torch.linspace(0, 1, 30).unsqueeze(1)
    moments = Moments.of([(x, x @ dense.T)])
    solved = solve_rows(moments, mask, dense.to(dtype), 0.01, centred=True, solver=solver)  # type: ignore[arg-type]
    assert solved is not None
    assert not solved[~mask].any()
    assert not solved[~mask].signbit().any()


@pytest.mark.parametrize("pattern", ["none", "2:4", "4x1"])
def test_no_negative_zero_is_left_in_a_model(pattern: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.Flatten(), nn.Linear(1024, 20)
    )
    result = mmp.prune(model, 0.7, torch.randn(128, 3, 8, 8), pattern=pattern)
    weights = dict(result.model.named_parameters())
    for name, mask in result.masks.items():
        assert not weights[name][~mask].signbit().any()


@pytest.mark.parametrize("signal", ["obs", "obs_fisher"])
def test_attention_that_calls_a_function_in_place_of_its_module_is_scored(signal: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.Sequential(nn.Flatten(2), layer, nn.Flatten(), nn.Linear(48, 5))
    ranges = mmp.RangeTable(
        "any", mmp.RuleTable("any", (), mmp.Range(0.2, 0.8)), constraints=mmp.Constraints(small_below=0)
    )
    result = mmp.prune(model, 0.5, torch.randn(24, 3, 4, 4), torch.arange(24) % 5, signal=signal, ranges=ranges)
    status = {report.name: report.status for report in result.reports}
    assert status["1.self_attn.out_proj.weight"] == "its module is never called"
    assert result.masks.pruned["1.self_attn.out_proj.weight"] == 128
    assert status["1.linear1.weight"] == "solved"


@pytest.mark.parametrize("frozen", [False, True])
def test_a_layer_that_no_output_depends_on_is_named(frozen: bool) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 300))
    model.spare = nn.ModuleDict({"unused": nn.Linear(40, 300)})
    model.forward = lambda x: model[1](model[0](x))  # type: ignore[method-assign]
    model[1].requires_grad_(not frozen)
    images = torch.randn(8, 3, 4, 4)
    with pytest.raises(MmpError, match=r"'spare.unused.weight' has no gradient: .* remove its module from the model"):
        mmp.prune(model, 0.4, images, signal="obs")


@pytest.mark.parametrize("batch", [(), [], "cat.png", {"image": torch.rand(2, 6)}, 3, torch.tensor(1.0), ("a", 1)])
def test_a_batch_without_images_is_one_line(batch: object) -> None:
    model = linears()
    before = [value.clone() for value in model.parameters()]
    with pytest.raises(MmpError, match=r"batch 1 for reconstruction is a .* without images"):
        reconstruct(model, random_masks(model), [torch.rand(2, 6), batch])  # type: ignore[list-item]
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_an_empty_first_batch_is_passed_over() -> None:
    images = torch.rand(40, 6)
    models = [linears(), linears()]
    reconstruct(models[0], random_masks(models[0]), [(images[:0], torch.empty(0)), (images, torch.zeros(40))])
    reconstruct(models[1], random_masks(models[1]), [images])
    assert torch.equal(models[0][0].weight, models[1][0].weight)
