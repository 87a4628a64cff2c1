"""The order in which Optimal Brain Surgeon removes sets of channels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmp import ChannelGroup, MmpError, channel_groups
from mmp.pruning.calibration_statistics import collect
from mmp.pruning.channels import order as module
from mmp.pruning.channels.group import Part
from mmp.pruning.channels.order import removal_order
from mmp.pruning.layers.products import columns_of

Statistics = dict[str, dict[str, Tensor]]


def group_of(channels: Tensor, *readers: str) -> ChannelGroup:
    return ChannelGroup({Part("writer", "out"): channels, **{Part(name, "in"): channels for name in readers}})


def one_each(sets: int) -> Tensor:
    return torch.arange(sets).unsqueeze(1)


def covariances(**inputs: Tensor) -> Statistics:
    return {"input_covariance": {name: torch.cov(x.T, correction=0)[None] for name, x in inputs.items()}}


def correlated(rows: int, columns: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(rows, columns, dtype=torch.float64) @ torch.randn(columns, columns, dtype=torch.float64)


def error(weight: Tensor, inputs: Tensor, columns: list[int], factors: Tensor) -> float:
    """Return the share of a weight's output variance that is lost if only some columns stay, from the data itself."""
    centred = (inputs - inputs.mean(0)) / len(inputs) ** 0.5
    ridge = 0.01 * centred.square().sum(0).mean()
    rows = torch.cat([centred, ridge.sqrt() * torch.eye(inputs.shape[1], dtype=inputs.dtype)])
    outputs = rows @ weight.double().flatten(1).T
    left = outputs
    if columns:
        left = outputs - rows[:, columns] @ torch.linalg.lstsq(rows[:, columns], outputs).solution
    return float((left.square() * factors).sum() / (outputs.square() * factors).sum())


def by_brute_force(
    channels: Tensor, weights: dict[str, Tensor], inputs: dict[str, Tensor], factors: dict[str, Tensor] | None = None
) -> list[int]:
    """Return the order in which sets go if every remaining set is tried, with a least-squares fit to the data."""
    left, order = list(range(len(channels))), []
    while left:
        costs = []
        for tried in left:
            cost = 0.0
            for name, weight in weights.items():
                kernel = weight[0, 0].numel()
                gone = {int(c) for k in [*order, tried] for c in channels[k]}
                columns = [j for j in range(inputs[name].shape[1]) if j // kernel not in gone]
                rows = torch.ones(len(weight), dtype=torch.float64) if factors is None else factors[name]
                cost += error(weight, inputs[name], columns, rows)
            costs.append(cost)
        order.append(left.pop(costs.index(min(costs))))
    return order


@pytest.mark.parametrize("readers", [1, 2])
@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_eight_sets_go_as_by_brute_force(readers: int, width: int, seed: int) -> None:
    channels = torch.randperm(8 * width, generator=torch.Generator().manual_seed(seed)).view(8, width)
    names = ["a", "b"][:readers]
    inputs = {name: correlated(200, 8 * width, seed + i) for i, name in enumerate(names)}
    weights = {name: 10**i * torch.randn(5, 8 * width) for i, name in enumerate(names)}
    order = removal_order(group_of(channels, *names), weights, covariances(**inputs))
    assert order.argsort().tolist() == by_brute_force(channels, weights, inputs)
    assert order.dtype == torch.float64
    assert sorted(order.tolist()) == [i / 8 for i in range(8)]


def test_the_readers_of_a_network_by_brute_force() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1), nn.Flatten(), nn.Linear(48, 4)
    )
    images, labels = torch.randn(40, 2, 6, 6), torch.randint(4, (40,))
    (first, second) = channel_groups(network, images[:1])
    weights = {name: p for name, p in network.named_parameters() if p.dim() > 1}
    needs = ["input_covariance", "squared_output_gradient"]
    statistics = collect(network, weights, [(images, labels)], nn.CrossEntropyLoss(), needs)
    for group, layer in ((first, 2), (second, 4)):  # 3 x 3 columns of one channel, and 16 columns of one channel
        (reader,) = group.readers
        inputs = {reader.name: columns_of(network[layer], network[:layer](images).detach())[0].double()}
        chosen = {reader.name: weights[reader.name].detach()}
        channels = group.channels[reader]
        gradient = statistics["squared_output_gradient"][reader.name].double()
        for fisher, factors in ((False, None), (True, {reader.name: gradient + 0.1 * gradient.mean()})):
            expected = by_brute_force(channels, chosen, inputs, factors)
            assert removal_order(group, weights, statistics, fisher).argsort().tolist() == expected


def test_columns_outside_the_group_make_up_for_its_own() -> None:
    inputs = correlated(200, 12)
    inputs[:, 8] = inputs[:, 2]  # a column that stays can replace set 2
    weight = torch.randn(5, 12)
    weight[:, 2] *= 10
    order = removal_order(group_of(one_each(8), "a"), {"a": weight}, covariances(a=inputs))
    assert order.argsort().tolist() == by_brute_force(one_each(8), {"a": weight}, {"a": inputs})


def test_of_two_equal_channels_one_goes_early_and_the_other_stays() -> None:
    inputs, weight = torch.randn(500, 100), torch.ones(3, 100)
    inputs[:, 1::2] = inputs[:, ::2]
    order = removal_order(group_of(one_each(100), "a"), {"a": weight}, covariances(a=inputs))
    first = order < 0.5
    assert (first[::2] ^ first[1::2]).all()


def test_more_sets_than_are_compared_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, weight = correlated(400, 40), torch.randn(6, 40)
    arguments = group_of(one_each(40), "a"), {"a": weight}, covariances(a=inputs)
    exact = removal_order(*arguments)
    monkeypatch.setattr(module, "_ROUND", 4)
    rounds = removal_order(*arguments)
    assert sorted(rounds.tolist()) == [i / 40 for i in range(40)]
    assert (rounds - exact).abs().max() <= 0.1
    monkeypatch.setattr(module, "_WIDEST", 15)
    blocks = removal_order(*arguments)
    assert sorted(blocks.tolist()) == [i / 40 for i in range(40)]
    assert blocks.tolist() != rounds.tolist()


def test_many_columns_are_divided_between_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = correlated(200, 8, 0), correlated(200, 8, 1)
    weight = torch.randn(5, 16)
    zero = torch.zeros(8, 8, dtype=torch.float64)
    a, b = torch.cov(one.T), torch.cov(other.T)
    covariance = torch.cat([torch.cat([a, zero], 1), torch.cat([zero, b], 1)])[None]
    arguments = group_of(one_each(16), "a"), {"a": weight}, {"input_covariance": {"a": covariance}}
    whole = removal_order(*arguments)
    monkeypatch.setattr(module, "_WIDEST", 8)
    assert removal_order(*arguments).equal(whole)


def test_channels_that_do_not_vary_or_have_no_weight_go_first() -> None:
    inputs, weight = correlated(100, 8), torch.randn(4, 8)
    inputs[:, 5] = 0
    inputs[:, 3] = 7
    weight[:, 1] = 0
    weight[:, 4] = 1e-20
    order = removal_order(group_of(one_each(8), "a"), {"a": weight}, covariances(a=inputs))
    assert set(order.argsort()[:2].tolist()) <= {1, 3, 4, 5}
    assert set(order.argsort()[:4].tolist()) >= {3, 5}


def test_a_reader_whose_inputs_do_not_vary_has_no_say() -> None:
    inputs = correlated(100, 8)
    weights = {"a": torch.randn(4, 8), "b": 100 * torch.randn(4, 8), "c": torch.zeros(4, 8)}
    statistics = covariances(a=inputs, b=torch.ones(100, 8, dtype=torch.float64), c=inputs)
    alone = removal_order(group_of(one_each(8), "a"), weights, statistics)
    assert removal_order(group_of(one_each(8), "a", "b", "c"), weights, statistics).equal(alone)
    nobody = removal_order(group_of(one_each(8), "b"), weights, statistics)
    assert nobody.tolist() == [i / 8 for i in range(8)]


def test_fewer_images_than_columns() -> None:
    inputs, weight = correlated(4, 8), torch.randn(4, 8)
    order = removal_order(group_of(one_each(8), "a"), {"a": weight}, covariances(a=inputs))
    assert order.argsort().tolist() == by_brute_force(one_each(8), {"a": weight}, {"a": inputs})


def test_outputs_with_large_gradients_count_more() -> None:
    group, weight = (
        group_of(one_each(8), "a"),
        torch.stack([torch.arange(3.0, 25.0, 3.0), torch.arange(8.0, 0.0, -1.0)]),
    )
    weight.sqrt_()
    statistics = {"input_covariance": {"a": torch.eye(8)[None].double()}}
    assert removal_order(group, {"a": weight}, statistics)[0] == 0
    statistics["squared_output_gradient"] = {"a": torch.tensor([0.0, 1.0])}
    assert removal_order(group, {"a": weight}, statistics, fisher=True)[7] == 0
    weight[1] = 1
    weight[0] = weight[0].flip(0)
    assert removal_order(group, {"a": weight}, statistics, fisher=True)[7] == 0  # an output without gradient matters


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_weights_on_a_gpu_have_the_same_order() -> None:
    inputs, weight = correlated(300, 100), torch.randn(5, 100)
    group, statistics = group_of(one_each(100), "a"), covariances(a=inputs)
    statistics["squared_output_gradient"] = {"a": torch.rand(5)}
    expected = removal_order(group, {"a": weight}, statistics, fisher=True)
    moved = {kind: {"a": values["a"].cuda()} for kind, values in statistics.items()}
    order = removal_order(group, {"a": weight.cuda()}, moved, fisher=True)
    assert order.device.type == "cpu"
    assert order.equal(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype: torch.dtype) -> None:
    inputs, weight = correlated(200, 8), torch.randn(5, 8).to(dtype)
    group, statistics = group_of(one_each(8), "a"), covariances(a=inputs)
    expected = removal_order(group, {"a": weight.double()}, statistics)
    assert removal_order(group, {"a": nn.Parameter(weight)}, statistics).equal(expected)


def test_the_result_is_the_same_each_time_and_changes_nothing() -> None:
    inputs, weight = correlated(300, 100), nn.Parameter(torch.randn(5, 100))
    group, statistics = group_of(one_each(100), "a"), covariances(a=inputs)
    before = weight.detach().clone(), statistics["input_covariance"]["a"].clone()
    first = removal_order(group, {"a": weight}, statistics)
    assert removal_order(group, {"a": weight}, statistics).equal(first)
    assert not first.requires_grad
    assert weight.equal(before[0])
    assert statistics["input_covariance"]["a"].equal(before[1])


def test_mistakes_are_one_line() -> None:
    group, statistics = group_of(one_each(8), "a"), covariances(a=correlated(100, 8))
    weights = {"a": torch.randn(4, 8)}
    with pytest.raises(MmpError, match=r"^weights: 'a' reads channels of 'writer' and is missing; add it$"):
        removal_order(group, {}, statistics)
    with pytest.raises(MmpError, match=r"^input_covariance: 'a' reads channels of 'writer' and is missing; add it$"):
        removal_order(group, weights, {})
    with pytest.raises(MmpError, match=r"^squared_output_gradient: 'a' reads channels of 'writer' and is missing"):
        removal_order(group, weights, statistics, fisher=True)
    with pytest.raises(MmpError, match=r"^input_covariance: 'a' has 7 columns, but .* shape \(1, 8, 8\)"):
        removal_order(group, {"a": torch.randn(4, 7)}, statistics)
    with pytest.raises(MmpError, match=r"^'a' or its statistics hold NaN or infinity"):
        removal_order(group, {"a": torch.full((4, 8), torch.nan)}, statistics)
    with pytest.raises(MmpError, match=r"^input_covariance: that of 'a' is not positive definite"):
        removal_order(group, weights, {"input_covariance": {"a": torch.ones(1, 8, 8) - 0.5 * torch.eye(8)}})
