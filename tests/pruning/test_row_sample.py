"""A sample of rows for least squares: which rows are drawn, and what follows from them."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from mmp.errors import MmpError
from mmp.pruning.layers.products import product_of
from mmp.pruning.masks import Masks, make_masks
from mmp.pruning.reconstruction.least_squares import solve_rows
from mmp.pruning.reconstruction.moments import Moments
from mmp.pruning.reconstruction.reconstruct import reconstruct
from mmp.pruning.reconstruction.row_sample import SampledMoments, _Sample

CONV = nn.Conv2d(3, 8, 3, padding=1, groups=1)
IMAGES = avg_pool2d(torch.randn(96, 3, 20, 20, generator=torch.Generator().manual_seed(1)), 5, 1)  # 16x16, smooth


def moments_of(rows_per_column: int, images: Tensor = IMAGES, calls: int = 1) -> SampledMoments:
    batches = images.split(32)
    with torch.no_grad():
        targets = [[product_of(CONV, CONV(batch))] * calls for batch in batches]
    inputs = [[(CONV, batch)] * calls for batch in batches]
    return SampledMoments.of(inputs, targets, [*map(len, batches)], rows_per_column)


def all_rows(images: Tensor = IMAGES) -> Moments:
    return moments_of(0, images).solving


def test_as_many_rows_are_drawn_as_wanted_and_a_quarter_as_many_are_not_solved_with() -> None:
    found = moments_of(100)
    assert found.solving.rows + found.unseen.rows == pytest.approx(100 * 27 * 1.25, abs=3)
    assert found.unseen.rows == pytest.approx(100 * 27 / 4, rel=0.2)
    twice = moments_of(100, calls=2)  # a layer that is called twice has twice the rows, of which as many are drawn
    assert twice.solving.rows + twice.unseen.rows == pytest.approx(100 * 27 * 1.25, abs=6)


@pytest.mark.parametrize("reverse", [False, True])
def test_calls_of_different_sizes_count_together(reverse: bool) -> None:
    calls = [IMAGES, IMAGES[..., :4, :4]][:: -1 if reverse else 1]
    with torch.no_grad():
        targets = [[product_of(CONV, CONV(call)) for call in calls]]
    found = SampledMoments.of([[(CONV, call) for call in calls]], targets, [len(IMAGES)], 20)
    assert found.solving.rows + found.unseen.rows == pytest.approx(20 * 27 * 1.25, abs=3)


@pytest.mark.parametrize(("rows", "wanted"), [(24576, 700), (1000, 799), (100, 75), (256, 102.4)])
def test_rows_come_once_and_from_all_places(rows: int, wanted: float) -> None:
    calls = 60
    sample = _Sample.of(calls * rows, 1, round(calls * wanted), by_image=False)
    drawn = [[*sample.draw(rows)] for _ in range(calls)]
    for solving, unseen in drawn:
        both = torch.cat([solving, unseen]).sort().values
        assert len(both.unique()) == len(both)
        assert 0 <= int(both[0]) <= int(both[-1]) < rows
        assert max(int(b - a) for a, b in pairwise(both)) <= 2 * rows / len(both) + 1
    assert rows < 2 * wanted or not torch.equal(drawn[0][0], drawn[1][0])  # calls differ where there is a choice
    for part in (0, 1):  # those to solve with, and those to measure on, come from every fifth of a call
        fifths = torch.histc(torch.cat([call[part] for call in drawn]).double(), 5, 0, rows)
        assert fifths.min() > 0.6 * fifths.mean()
    assert sum(len(unseen) for _, unseen in drawn) == pytest.approx(calls * wanted / 4, rel=0.3)
    again = _Sample.of(calls * rows, 1, round(calls * wanted), by_image=False)
    assert all(torch.equal(a, b) for a, b in zip([*again.draw(rows)], drawn[0], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("images", [257, 385, 449])
def test_a_small_last_batch_and_narrow_layers_are_sampled(images: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16), nn.Flatten(), nn.Linear(16 * 16, 4))
    masks = Masks({f"{i}.weight": torch.rand_like(model[i].weight) > 0.5 for i in (0, 1, 3)})
    inputs = avg_pool2d(torch.randn(images, 3, 12, 12), 5, 1)
    for batches in ([inputs], list(inputs.split(1))):
        reports = reconstruct(copy.deepcopy(model), masks, batches, rows_per_column=1)
        assert [report.status for report in reports] == ["solved"] * 3
        assert all(report.after is not None and math.isfinite(report.after) for report in reports)


def test_a_negative_number_of_rows_is_refused() -> None:
    with pytest.raises(MmpError, match="rows_per_column=-1: must be at least 0"):
        reconstruct(nn.Sequential(nn.Linear(4, 2)), Masks({}), [torch.randn(4, 4)], rows_per_column=-1)


@pytest.mark.parametrize("rows_per_column", [0, 10**6, 800])
def test_all_rows_are_taken_without_a_limit_or_without_enough_rows(rows_per_column: int) -> None:
    found = moments_of(rows_per_column)  # 24,576 rows; 800 for each of 27 columns leave too few others
    assert found.solving is found.unseen
    assert found.solving.rows == 96 * 256


def test_means_are_those_of_all_rows_and_covariances_are_close() -> None:
    found, whole = moments_of(100), all_rows()
    assert torch.allclose(found.solving.x, whole.x, atol=1e-6)
    assert torch.allclose(found.solving.y, whole.y, atol=1e-6)
    scale = float(whole.xx.diagonal(dim1=1, dim2=2).mean())
    assert float((found.solving.xx - whole.xx).abs().max()) < 0.15 * scale
    assert float((found.unseen.xx - whole.xx).abs().max()) < 0.3 * scale
    assert not torch.equal(found.solving.xx, found.unseen.xx)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(3, 6, 3, stride=2), nn.Conv2d(3, 6, 3, dilation=2, groups=3), nn.Conv2d(3, 6, 1), nn.Linear(16, 5)],
    ids=["stride", "dilation and groups", "pointwise", "linear"],
)
def test_the_means_of_every_kind_of_layer_are_those_of_all_rows(layer: nn.Module) -> None:
    def of(rows_per_column: int) -> Moments:
        with torch.no_grad():
            targets = [[product_of(layer, layer(IMAGES))]]
        return SampledMoments.of([[(layer, IMAGES)]], targets, [len(IMAGES)], rows_per_column).solving

    sampled, whole = of(5), of(0)
    assert sampled.rows < whole.rows / 2
    assert torch.allclose(sampled.x, whole.x, atol=1e-6)
    assert torch.allclose(sampled.y, whole.y, atol=1e-6)


def test_a_sample_solves_nearly_as_well_as_all_rows_and_reports_errors_of_other_rows() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    masks = Masks(
        {name: torch.rand_like(weight) > 0.6 for name, weight in dense.named_parameters() if weight.dim() > 1}
    )

    def solved(rows_per_column: int) -> tuple[nn.Module, float]:
        model = copy.deepcopy(dense)
        reports = reconstruct(model, masks, [IMAGES[:64]], rows_per_column=rows_per_column)
        assert reports[1].after is not None
        return model, reports[1].after

    def error(model: nn.Module) -> float:
        with torch.no_grad():
            target = dense(IMAGES[64:])
            return float((model(IMAGES[64:]) - target).square().mean() / target.var((0, 2, 3)).mean())

    (few, few_reported), (every, _) = solved(64), solved(0)
    assert error(few) < 1.1 * error(every)
    assert few_reported == pytest.approx(error(few), rel=0.2)
    again, _ = solved(64)
    assert all(torch.equal(a, b) for a, b in zip(few.parameters(), again.parameters(), strict=True))


def linear_moments(layer: nn.Linear, batches: Sequence[Tensor], images: Sequence[int]) -> SampledMoments:
    with torch.no_grad():
        targets = [[product_of(layer, layer(batch))] for batch in batches]
        return SampledMoments.of([[(layer, batch)] for batch in batches], targets, images, 64)


def test_the_rows_of_every_fifth_image_are_held_out_where_rows_are_few() -> None:
    numbers = torch.arange(23.0).view(23, 1, 1)  # of the images
    batches = (numbers.expand(23, 3, 64) + 0.01 * torch.randn(23, 3, 64)).split(7)
    found = linear_moments(nn.Linear(64, 8), batches, [*map(len, batches)])
    assert found.few
    assert (found.solving.rows, found.unseen.rows) == (57, 12)
    held = [4, 9, 14, 19]
    others = [number for number in range(23) if number not in held]
    assert found.unseen.x.mean() == pytest.approx(sum(held) / 4, abs=0.01)
    assert found.solving.x.mean() == pytest.approx(sum(others) / 19, abs=0.01)


def test_joined_moments_are_those_of_all_rows() -> None:
    pairs = [
        (torch.randn(2, count, 5, dtype=torch.float64) + count, torch.randn(2, count, 3, dtype=torch.float64))
        for count in (7, 4)
    ]
    one, other, whole = Moments.of(pairs[:1]), Moments.of(pairs[1:]), Moments.of(pairs)
    joined = one.joined(other)
    assert joined.rows == whole.rows == 11
    for name in ("x", "y", "xx", "yx", "yy"):
        torch.testing.assert_close(getattr(joined, name), getattr(whole, name))


@pytest.mark.parametrize(
    ("shape", "images"),
    [((19, 64), 19), ((640, 64), 640), ((3, 25, 64), 25), ((226, 64), 25)],
    ids=["few images", "ten rows a column", "tokens first", "rows that no image changes"],
)
def test_all_rows_are_taken_where_images_cannot_or_need_not_be_held_out(shape: tuple[int, ...], images: int) -> None:
    found = linear_moments(nn.Linear(64, 8), [torch.randn(shape)], [images])
    assert not found.few
    assert found.unseen is found.solving


def test_few_rows_are_not_fitted_at_the_cost_of_others() -> None:
    """A wide classifier behind features that are noisy in the pruned network: the case of a few hundred images."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 100))
    images, fresh = torch.randn(160, 64), torch.randn(2000, 64)
    scores = {name: dense.get_parameter(name).detach().abs() for name in ("0.weight", "2.weight")}
    masks = make_masks(scores, dict.fromkeys(scores, 0.6))
    errors = {}
    for rows_per_column in (0, 64):
        model = copy.deepcopy(dense)
        *_, report = reconstruct(model, masks, [images], rows_per_column=rows_per_column)
        with torch.no_grad():
            errors[rows_per_column] = float((model(fresh) - dense(fresh)).square().mean() / dense(fresh).var(0).mean())
        assert report.status == "solved"
    assert errors[64] < 0.9 * errors[0]
    assert report.after == pytest.approx(errors[64], rel=0.3)  # an honest figure, from images that were held out


@pytest.mark.parametrize(("outputs", "step"), [(63, 1), (64, 2), (1000, 31)])
def test_errors_are_measured_on_some_of_many_outputs_where_rows_are_few(outputs: int, step: int) -> None:
    torch.manual_seed(0)
    batch, layer, other = torch.randn(40, 64), nn.Linear(64, outputs), torch.randn(outputs, 64)
    found = linear_moments(layer, [batch], [40])
    assert found.few
    assert found.step == step
    torch.testing.assert_close(found.measured_of(other)[0], other[::step])
    held, weight = batch[4::5], layer.weight.detach()
    error = (held @ (other - weight)[::step].T).square().mean(0).sum()
    assert found.measured.squared_error(found.measured_of(other)) == pytest.approx(float(error), rel=1e-4)
    enough = linear_moments(layer, [torch.randn(640, 64)], [640])
    assert (enough.step, enough.measured) == (1, enough.unseen)


def test_all_outputs_are_solved_with_the_ridge_that_some_have_chosen() -> None:
    torch.manual_seed(0)
    dense, images = nn.Sequential(nn.Linear(64, 256)), torch.randn(100, 8) @ torch.randn(8, 64) + torch.randn(100, 64)
    masks = make_masks({"0.weight": dense[0].weight.detach().abs()}, {"0.weight": 0.5})
    model = copy.deepcopy(dense)
    (report,) = reconstruct(model, masks, [images], rows_per_column=64)
    assert report.status == "solved"
    found = linear_moments(dense[0], [images], [100])
    assert found.step == 8
    weight, joined = dense[0].weight.detach(), found.solving.joined(found.unseen)
    expected = [solve_rows(joined, masks["0.weight"], weight, 0.01 * factor, centred=True) for factor in (1, 10, 100)]
    distances = [float((model[0].weight.detach() - one).abs().max()) for one in expected if one is not None]
    assert min(distances) < 1e-4
    assert sorted(distances)[1] > 1e-3
