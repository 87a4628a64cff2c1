from __future__ import annotations

import re
import weakref
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mmp.errors import MmpError
from mmp.pruning.calibration_statistics import STATISTICS, collect
from mmp.pruning.masks import make_masks
from mmp.pruning.signals import PAPER_SIGNALS, Fisher, Gradient, Magnitude, Product, normalise, score
from mmp.pruning.topk import keep_highest

Batches = list[tuple[Tensor, Tensor]]


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean() / 2


def weights(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.dim() > 1}


# --- one row of weights, by hand ---
#
# w = (2, -1), loss (w x - y)^2 / 2, so a sample's gradient is (w x - y) x:
#   x = (1, 0), y = 0: ( 2,  0)
#   x = (0, 1), y = 1: ( 0, -2)
#   x = (1, 1), y = 0: ( 1,  1)
# Mean over the three: (1, -1/3). The Hessian is the mean of x x^T = [[2, 1], [1, 2]] / 3.


@pytest.fixture
def row() -> nn.Linear:
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, -1.0]]))
    return model


X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
Y = torch.tensor([[0.0], [1.0], [0.0]])
WHOLE = [(X, Y)]
UNEVEN = [(X[:2], Y[:2]), (X[2:], Y[2:])]


def statistic(model: nn.Module, batches: Batches, kind: str, **options: float) -> list[float]:
    return collect(model, weights(model), batches, half_square, [kind], **options)[kind]["weight"][0].tolist()


@pytest.mark.parametrize("batches", [WHOLE, UNEVEN])
def test_gradient_is_the_mean_over_images_in_any_batches(row: nn.Linear, batches: Batches) -> None:
    assert statistic(row, batches, "gradient") == pytest.approx([1.0, -1 / 3])


def test_absolute_gradient_is_a_mean_over_batches_weighted_by_images(row: nn.Linear) -> None:
    assert statistic(row, WHOLE, "absolute_gradient") == pytest.approx([1.0, 1 / 3])
    # Batches have (1, -1) from two samples and (1, 1) from one; unweighted signs would cancel to (1, 0).
    assert statistic(row, UNEVEN, "absolute_gradient") == pytest.approx([1.0, 1.0])
    # (2, 0) from one sample and (1/2, -1/2) from two: (2 + 2/2, 0 + 2/2) / 3.
    other = [(X[:1], Y[:1]), (X[1:], Y[1:])]
    assert statistic(row, other, "absolute_gradient") == pytest.approx([1.0, 1 / 3])


@pytest.mark.parametrize("batches", [WHOLE, UNEVEN])
def test_hessian_gradient_of_a_quadratic(row: nn.Linear, batches: Batches) -> None:
    # [[2, 1], [1, 2]] / 3 times (1, -1/3)
    assert statistic(row, batches, "hessian_gradient") == pytest.approx([5 / 9, 1 / 9])


@pytest.mark.parametrize("batches", [WHOLE, UNEVEN])
def test_temperature_divides_the_outputs(row: nn.Linear, batches: Batches) -> None:
    # Outputs / 2 leave residuals 1, -3/2, 1/2: g = (1/4, -1/6), and the Hessian is a quarter.
    assert statistic(row, batches, "hessian_gradient", temperature=2.0) == pytest.approx([1 / 36, -1 / 144])


def test_signals_by_hand(row: nn.Linear) -> None:
    parameters = weights(row)
    statistics = collect(row, parameters, WHOLE, half_square, {"absolute_gradient"})
    assert score(Magnitude(), parameters, statistics)["weight"][0].tolist() == [2.0, 1.0]
    assert score(Gradient(), parameters, statistics)["weight"][0].tolist() == pytest.approx([1.0, 1 / 3])
    assert score(Product(), parameters, statistics)["weight"][0].tolist() == pytest.approx([2.0, 1 / 3])


# --- batches ---


def test_four_equal_batches_give_the_same_as_one(conv_net: nn.Module) -> None:
    torch.manual_seed(3)
    x, y = torch.randn(16, 2, 8, 8), torch.randint(3, (16,))
    one, four = [
        collect(
            conv_net, weights(conv_net), list(zip(x.split(n), y.split(n), strict=True)), F.cross_entropy, STATISTICS
        )
        for n in (16, 4)
    ]
    for kind in ("gradient", "hessian_gradient"):
        for name, value in one[kind].items():
            torch.testing.assert_close(four[kind][name], value, rtol=1e-3, atol=1e-6)
    for name, value in one["absolute_gradient"].items():
        assert torch.equal(value, one["gradient"][name].abs())
        assert (four["absolute_gradient"][name] >= value - 1e-6).all()  # signs cancel within a batch only


def test_absolute_gradient_does_not_grow_with_the_number_of_batches(row: nn.Linear) -> None:
    assert statistic(row, WHOLE * 5, "absolute_gradient") == statistic(row, WHOLE, "absolute_gradient")


# --- the Hessian of a network ---


def test_hessian_gradient_matches_the_full_hessian() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(7, 3).double(), torch.randint(2, (7,))
    parameters = weights(model)
    shapes = {name: p.shape for name, p in parameters.items()}
    flat = torch.cat([p.detach().flatten() for p in parameters.values()])

    def loss_of(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes.values()])
        replaced = {n: part.view(shapes[n]) for n, part in zip(shapes, parts, strict=True)}
        return F.cross_entropy(functional_call(model, replaced, (x,)) / 3.0, y)

    hessian = torch.autograd.functional.hessian(loss_of, flat)
    expected = hessian @ torch.autograd.functional.jacobian(loss_of, flat)
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    found = collect(model, parameters, batches, F.cross_entropy, {"hessian_gradient"}, temperature=3.0)
    assert list(found) == ["hessian_gradient"]
    product = torch.cat([value.flatten() for value in found["hessian_gradient"].values()])
    torch.testing.assert_close(product, expected)
    assert product.abs().min() > 0


class Attention(nn.Module):
    """Self-attention by torch's fused function, by its module, or step by step."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.inner = nn.MultiheadAttention(4, 1, bias=False, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "module":
            return self.head(self.inner(x, x, x, need_weights=False)[0].mean(1))
        q, k, v = F.linear(x, self.inner.in_proj_weight).chunk(3, dim=-1)
        if self.kind == "fused":
            mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        else:
            mixed = (q @ k.transpose(1, 2) / 2.0).softmax(-1) @ v
        return self.head(self.inner.out_proj(mixed).mean(1))


@pytest.mark.parametrize("kind", ["fused", "module"])
def test_hessian_gradient_goes_through_attention(kind: str) -> None:
    torch.manual_seed(1)
    batches = [(torch.randn(3, 5, 4), torch.tensor([0, 1, 0]))]

    def found(kind: str) -> Mapping[str, Tensor]:
        model = Attention(kind)
        return collect(model, weights(model), batches, F.cross_entropy, ["hessian_gradient"])["hessian_gradient"]

    expected = found("written out")
    for name, value in found(kind).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-7)
        assert (value != 0).any()


# --- memory ---


@pytest.mark.parametrize("kind", ["gradient", "absolute_gradient", "squared_gradient", "hessian_gradient"])
def test_gradients_of_a_batch_are_freed_before_the_next(
    row: nn.Linear, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[weakref.ref[Tensor]] = []
    left: list[int] = []
    grad = torch.autograd.grad

    def remember(*arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        found = grad(*arguments, **options)
        taken.extend(map(weakref.ref, found))
        return found

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        left.append(sum(one() is not None for one in taken))
        return half_square(outputs, targets)

    monkeypatch.setattr("torch.autograd.grad", remember)
    collect(row, weights(row), UNEVEN, loss, [kind])
    assert len(taken) >= 2
    assert not any(left)


# --- graphs that are kept ---


def test_hessian_gradient_is_the_same_with_any_number_of_graphs_kept(
    conv_net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    batches = list(zip(torch.randn(17, 2, 8, 8).split(4), torch.randint(3, (17,)).split(4), strict=True))
    passes: list[int] = []
    found = []
    for most in [0, *(2**k for k in range(10, 24))]:
        losses = []

        def loss(outputs: Tensor, targets: Tensor, losses: list[Tensor] = losses) -> Tensor:
            losses.append(F.cross_entropy(outputs, targets))
            return losses[-1]

        monkeypatch.setattr("mmp.pruning.calibration_statistics.MOST_KEPT", most)
        found.append(collect(conv_net, weights(conv_net), batches, loss, ["hessian_gradient"])["hessian_gradient"])
        passes.append(len(losses))
    monkeypatch.setenv("MMP_MEMORY", "8")  # in bytes: all is kept until now, and nothing from here on
    before = len(losses)
    found.append(collect(conv_net, weights(conv_net), batches, loss, ["hessian_gradient"])["hessian_gradient"])
    assert (before, len(losses)) == (5, 15)
    assert passes == sorted(passes, reverse=True)
    assert (passes[0], passes[-1]) == (10, 5)  # all batches twice; all once
    assert 5 < sorted(passes)[passes.count(5)] < 10  # some twice
    for one in found:
        for name, value in found[0].items():
            torch.testing.assert_close(one[name], value, rtol=1e-5, atol=1e-9)
            assert value.any()


def test_hessian_gradient_takes_large_batches_in_pieces(row: nn.Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        sizes.append((len(outputs), len(targets)))
        return half_square(outputs, targets)

    monkeypatch.setattr("mmp.pruning.calibration_statistics.MOST_TWICE", 2)
    found = collect(row, weights(row), WHOLE, loss, ["hessian_gradient"])
    assert found["hessian_gradient"]["weight"][0].tolist() == pytest.approx([5 / 9, 1 / 9])
    assert sizes == [(2, 2), (1, 1)]


def test_a_graph_without_room_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Witness:
        pass

    witnesses: list[weakref.ref[Witness]] = []

    class Identity(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.witness = Witness()
            witnesses.append(weakref.ref(ctx.witness))
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient.clone()

    model = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1))  # the graph of a sigmoid saves its output
    model[0].register_forward_hook(lambda *found: Identity.apply(found[2]))
    monkeypatch.setattr("mmp.pruning.calibration_statistics.MOST_KEPT", 0)
    left = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        left.append(sum(one() is not None for one in witnesses))
        return half_square(outputs, targets)

    collect(model, weights(model), UNEVEN, loss, ["hessian_gradient"])
    assert left == [1, 1, 1, 1]  # the graph of the loss only


# --- signals on one network ---


def test_signals_give_different_masks(conv_net: nn.Module, image_batches: Batches) -> None:
    parameters = weights(conv_net)
    needs = frozenset().union(*(signal.needs for signal in PAPER_SIGNALS))
    statistics = collect(conv_net, parameters, image_batches, F.cross_entropy, needs)
    masks = {
        s.name: make_masks(score(s, parameters, statistics), dict.fromkeys(parameters, 0.5)) for s in PAPER_SIGNALS
    }
    assert list(masks) == ["magnitude", "gradient", "product"]
    for one, other in combinations(masks.values(), 2):
        for name in parameters:
            assert not torch.equal(one[name], other[name])


# --- the model is unchanged ---


def test_the_model_is_unchanged_after_scoring(conv_net: nn.Module, image_batches: Batches) -> None:
    conv_net.train()
    conv_net[1].eval()
    conv_net[4].weight.requires_grad_(False)
    kept = torch.ones(3)
    conv_net[8].bias.grad = kept
    modes = [module.training for module in conv_net.modules()]
    state = {key: value.clone() for key, value in conv_net.state_dict().items()}

    found = collect(conv_net, weights(conv_net), image_batches, F.cross_entropy, STATISTICS)

    assert all((found[kind]["4.weight"] != 0).any() for kind in STATISTICS)  # frozen weights are scored, too
    assert [module.training for module in conv_net.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in conv_net.state_dict().items())
    assert [name for name, p in conv_net.named_parameters() if not p.requires_grad] == ["4.weight"]
    assert conv_net[8].bias.grad is kept
    assert kept.tolist() == [1.0, 1.0, 1.0]
    assert [name for name, p in conv_net.named_parameters() if p.grad is not None] == ["8.bias"]
    assert not any(value.requires_grad for values in found.values() for value in values.values())


def test_scoring_is_the_same_in_training_mode_and_eval_mode(conv_net: nn.Module, image_batches: Batches) -> None:
    first, second = [
        collect(conv_net.train(training), weights(conv_net), image_batches, F.cross_entropy, STATISTICS)
        for training in (True, False)
    ]
    for kind in STATISTICS:
        assert all(torch.equal(value, second[kind][name]) for name, value in first[kind].items())


def test_statistics_are_collected_under_no_grad(row: nn.Linear) -> None:
    with torch.no_grad():
        assert statistic(row, WHOLE, "gradient") == pytest.approx([1.0, -1 / 3])
        assert not torch.is_grad_enabled()


def test_the_model_is_unchanged_after_a_failure(conv_net: nn.Module) -> None:
    conv_net.train()
    conv_net[0].weight.requires_grad_(False)
    with pytest.raises(MmpError, match="calibration split is empty"):
        collect(conv_net, weights(conv_net), [], F.cross_entropy, ["gradient"])
    assert all(module.training for module in conv_net.modules())
    assert not conv_net[0].weight.requires_grad


# --- errors ---


@pytest.mark.parametrize("kind", STATISTICS)
def test_empty_calibration_split_is_an_error(row: nn.Linear, kind: str) -> None:
    with pytest.raises(MmpError, match="calibration split is empty"):
        statistic(row, [], kind)


@pytest.mark.parametrize("kind", STATISTICS)
def test_weight_outside_the_loss_is_an_error_that_names_it(row: nn.Linear, kind: str) -> None:
    model = nn.ModuleDict({"used": row, "unused": nn.Linear(2, 1)})
    model.forward = lambda inputs: model["used"](inputs)  # noqa: PLW0108 - a module would become a child
    with pytest.raises(MmpError, match=r"'unused\.weight' has no gradient"):
        collect(model, weights(model), WHOLE, half_square, [kind])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weight_that_is_not_finite_is_an_error_that_names_it(row: nn.Linear, value: float) -> None:
    with torch.no_grad():
        row.weight[0, 1] = value
    with pytest.raises(MmpError, match="weight 'weight' holds NaN or infinity"):
        score(Magnitude(), weights(row), {})
    with pytest.raises(MmpError, match="gradient of 'weight' is not finite"):
        statistic(row, WHOLE, "gradient")


def test_sample_that_is_not_finite_is_an_error(row: nn.Linear) -> None:
    with pytest.raises(MmpError, match="gradient of 'weight' is not finite"):
        statistic(row, [(X * float("nan"), Y)], "absolute_gradient")


def test_missing_statistic_is_an_error(row: nn.Linear) -> None:
    parameters = weights(row)
    with pytest.raises(MmpError, match=re.escape("signal 'product' needs ['absolute_gradient']")):
        score(Product(), parameters, collect(row, parameters, WHOLE, half_square, ["gradient"]))


def test_unknown_statistic_is_an_error(row: nn.Linear) -> None:
    with pytest.raises(MmpError, match=r"unknown statistics \['fisher'\]"):
        statistic(row, WHOLE, "fisher")


def test_hessian_gradient_of_a_linear_loss_is_zero(row: nn.Linear) -> None:
    found = collect(row, weights(row), WHOLE, lambda outputs, _: outputs.mean(), ["hessian_gradient"])
    assert found["hessian_gradient"]["weight"].tolist() == [[0.0, 0.0]]


# --- normalise ---


def test_normalise_by_hand() -> None:
    values = {"a": torch.tensor([3.0, 0.75]), "b": torch.tensor([0.25, 0.0]), "c": torch.zeros(2)}
    found = {name: normalise(value).tolist() for name, value in values.items()}
    assert found == {"a": [0.75, 0.1875], "b": [0.5, 0.0], "c": [0.0, 0.0]}


magnitudes = st.one_of(st.just(0.0), st.floats(2.0**-100, 2.0**20, width=32))


@given(st.lists(magnitudes, min_size=1, max_size=12), st.sampled_from([torch.float32, torch.float64]))
def test_normalise_keeps_order_ties_and_zeros(values: list[float], dtype: torch.dtype) -> None:
    scores = torch.tensor(values, dtype=dtype)
    scaled = normalise(scores)
    assert scaled.dtype is dtype
    assert torch.equal(scaled.sign(), scores.sign())
    assert torch.equal(scaled[:, None] < scaled, scores[:, None] < scores)
    for pruned in range(len(values) + 1):
        assert torch.equal(keep_highest(scaled, pruned), keep_highest(scores, pruned))
    assert 0.5 <= scaled.max() < 1.0 or not scores.any()


def test_scores_are_normalised_layer_by_layer(conv_net: nn.Module) -> None:
    parameters = weights(conv_net)
    plain, scaled = (score(Magnitude(), parameters, {}, normalised) for normalised in (False, True))
    assert plain["0.weight"].max() < 0.5
    assert {name: value.tolist() for name, value in scaled.items()} == {
        name: normalise(value).tolist() for name, value in plain.items()
    }


def test_normalising_scores_does_not_change_weights_and_statistics(row: nn.Linear) -> None:
    class Row(Gradient):
        def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
            return weight[0]

    parameters = weights(row)
    for signal in (*PAPER_SIGNALS, Row()):
        statistics = {"absolute_gradient": {"weight": torch.tensor([[8.0, 3.0]])}}
        found = score(signal, parameters, statistics, normalised=True)
        assert found["weight"].max() < 1.0
        assert statistics["absolute_gradient"]["weight"].tolist() == [[8.0, 3.0]]
        assert row.weight.tolist() == [[2.0, -1.0]]


def test_normalise_scales_tiny_scores_up() -> None:
    scaled = normalise(torch.tensor([1e-30, 5e-31, 0.0]))
    assert 0.5 <= scaled[0] < 1.0
    assert scaled[1] == scaled[0] / 2
    assert scaled[2] == 0.0


def test_squared_gradients_are_means_over_single_images(row: nn.Linear) -> None:
    found = statistic(row, WHOLE, "squared_gradient")
    inputs, targets = WHOLE[0]
    single = [statistic(row, [(inputs[i : i + 1], targets[i : i + 1])], "gradient") for i in range(len(inputs))]
    assert found == pytest.approx([sum(g[k] ** 2 for g in single) / len(single) for k in range(2)])
    assert found != pytest.approx([g**2 for g in statistic(row, WHOLE, "gradient")])


def test_fisher_is_the_squared_weight_times_the_mean_squared_gradient() -> None:
    weight, squared = torch.tensor([[2.0, -3.0]]), torch.tensor([[0.5, 0.25]])
    assert Fisher().score(weight, {"squared_gradient": squared}).tolist() == [[2.0, 2.25]]


def test_input_covariance_and_output_gradients_by_hand() -> None:
    layer = nn.Linear(2, 2)
    x = torch.tensor([[1.0, 2.0], [3.0, 2.0], [2.0, 5.0]])
    batches = [(x[:2], torch.zeros(2, 2)), (x[2:], torch.zeros(1, 2))]
    weight = {"weight": layer.weight}
    found = collect(layer, weight, batches, half_square, ["input_covariance", "squared_output_gradient"])
    expected = torch.cov(x.double().T, correction=0)
    torch.testing.assert_close(found["input_covariance"]["weight"][0], expected, rtol=1e-6, atol=1e-6)
    # half_square averages over both outputs, so an image's gradient is half of its output.
    gradients = (layer(x) / 2).detach().square().mean(0)
    torch.testing.assert_close(found["squared_output_gradient"]["weight"], gradients)


def test_input_covariance_of_a_convolution_is_over_its_patches() -> None:
    layer = nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2)
    x = torch.randn(5, 4, 7, 7)
    found = collect(layer, {"weight": layer.weight}, [(x, x)], half_square, ["input_covariance"])
    patches = F.unfold(x, 3, padding=1, stride=2).view(5, 2, 18, 16).permute(1, 0, 3, 2).reshape(2, 80, 18).double()
    for group in range(2):
        expected = torch.cov(patches[group].T, correction=0)
        torch.testing.assert_close(found["input_covariance"]["weight"][group], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 512, 512), (16, 2, 128, 128)])
def test_input_covariance_of_many_rows_has_no_rounding_errors_to_speak_of(shape: tuple[int, ...]) -> None:
    channels = shape[1]
    layer = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(3)) + 1
    found = collect(layer, {"weight": layer.weight}, [(x, x)], half_square, ["input_covariance"])
    patches = F.unfold(x.double(), 3, padding=1).view(shape[0], channels, 9, -1).permute(1, 2, 0, 3).flatten(2)
    expected = torch.stack([torch.cov(rows, correction=0) for rows in patches])
    torch.testing.assert_close(found["input_covariance"]["weight"], expected, rtol=1e-5, atol=1e-7)


def test_covariances_use_the_first_images_only(row: nn.Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, targets = torch.randn(9, 2), torch.randn(9, 1)
    whole = list(zip(inputs.split(4), targets.split(4), strict=True))
    monkeypatch.setattr("mmp.pruning.calibration_statistics.MOST_IMAGES", 6)
    for kind in ("input_covariance", "squared_output_gradient"):
        few = collect(row, weights(row), [(inputs[:4], targets[:4]), (inputs[4:6], targets[4:6])], half_square, [kind])
        assert torch.equal(collect(row, weights(row), whole, half_square, [kind])[kind]["weight"], few[kind]["weight"])


def test_a_weight_that_is_no_product_gets_the_identity_and_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.Flatten(), nn.Linear(3 * 25, 1))
    x = torch.randn(4, 2, 4, 4)
    with caplog.at_level("INFO"):
        found = collect(model, weights(model), [(x, torch.zeros(4, 1))], half_square, STATISTICS)
    assert torch.equal(found["input_covariance"]["0.weight"][0], torch.eye(12, dtype=torch.float64))
    assert found["squared_output_gradient"]["0.weight"].tolist() == [1.0, 1.0]
    assert "0.weight is scored as if its inputs were uncorrelated" in caplog.text
