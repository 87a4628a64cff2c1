from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import mmp.pruning.topk
from mmp.errors import MmpError
from mmp.pruning.masks import (
    MaskEnforcer,
    Masks,
    check_zeros,
    clear_pruned,
    load_masks,
    make_grid,
    make_masks,
    save_masks,
)
from mmp.pruning.patterns import Pattern
from mmp.pruning.topk import keep_highest, keep_highest_each


def bits(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


# --- keep_highest ---


def test_the_lowest_scores_are_pruned() -> None:
    scores = torch.tensor([[0.3, 0.1], [0.2, 0.4]])
    assert keep_highest(scores, 2).tolist() == [[True, False], [False, True]]


def test_equal_scores_are_pruned_by_flat_index() -> None:
    assert keep_highest(torch.full((2, 3), 7.0), 4).tolist() == [[False] * 3, [False, True, True]]
    assert keep_highest(torch.tensor([5.0, 1.0, 5.0, 5.0]), 2).tolist() == [False, False, True, True]


def test_flat_index_follows_the_shape_and_not_the_memory() -> None:
    scores = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]]).t()  # [[1, 1, 0], [1, 1, 1]]
    assert keep_highest(scores, 3).tolist() == [[False, False, False], [True, True, True]]


both_ways = pytest.mark.parametrize("few", [0, 2**12], ids=["by leading bits", "by sorting"])


@both_ways
@given(
    st.lists(
        st.sampled_from([-3.0, -1.0, -1e-45, -0.0, 0.0, 1e-45, 0.5, 1.0, 1.0000001, 2.0, 3e38]), min_size=1, max_size=12
    ),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_a_mask_equals_a_sort_by_score_and_index(few: int, values: list[float], dtype: torch.dtype) -> None:
    scores = torch.tensor(values, dtype=dtype).clamp(-6e4, 6e4 if dtype is torch.float16 else None)
    ordered = scores.tolist()
    order = sorted(range(len(values)), key=lambda i: (ordered[i], i))
    counts = range(len(values) + 1)
    with mock.patch.object(mmp.pruning.topk, "_FEW", few):
        together = keep_highest_each(scores, counts)
        alone = [keep_highest(scores, count) for count in counts]
    for pruned in counts:
        gone = set(order[:pruned])
        assert together[pruned].tolist() == alone[pruned].tolist() == [i not in gone for i in range(len(values))]


@pytest.mark.parametrize(
    "scores",
    [
        torch.randn(300, 200, generator=torch.Generator().manual_seed(0)).abs(),
        torch.randn(300, 200, generator=torch.Generator().manual_seed(1)).t(),
        torch.randn(60_000, generator=torch.Generator().manual_seed(2)).mul(8).round(),
        torch.zeros(60_000),
        torch.linspace(1.0, 1.01, 60_000),  # all leading bits equal
        torch.randint(-9, 9, (60_000,), generator=torch.Generator().manual_seed(3)).mul(1e-45),  # subnormal
    ],
    ids=["magnitudes", "both signs, transposed", "ties", "equal", "close", "tiny"],
)
@pytest.mark.parametrize("block", [7_001, 2**17])
def test_masks_of_many_scores_equal_a_stable_sort(scores: Tensor, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmp.pruning.topk, "_BLOCK", block)
    counts = [0, 1, 18_001, 30_000, 30_000, 59_999, 60_000, 7]
    order = scores.flatten().argsort(stable=True)
    for count, mask in zip(counts, keep_highest_each(scores, counts), strict=True):
        assert mask.shape == scores.shape
        assert torch.equal(mask.flatten()[order], torch.arange(60_000) >= count)


def test_without_counts_there_are_no_masks() -> None:
    assert keep_highest_each(torch.ones(3), []) == []


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=30))
def test_finite_scores_are_pruned_to_the_exact_number(values: list[float]) -> None:
    scores = torch.tensor(values)
    for pruned in (0, len(values) // 2, len(values)):
        keep = keep_highest(scores, pruned)
        assert int((~keep).sum()) == pruned
        if 0 < pruned < len(values):
            assert scores[~keep].max() <= scores[keep].min()


@both_ways
@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("other", [-1.0, 1.0, 3.4028234e38, -3.4028234e38])
def test_a_score_that_is_not_finite_is_refused(few: int, value: float, other: float) -> None:
    with mock.patch.object(mmp.pruning.topk, "_FEW", few):
        for pruned in (0, 1):
            assert int(keep_highest(torch.tensor([other, other]), pruned).sum()) == 2 - pruned
            with pytest.raises(MmpError, match="NaN or infinity"):
                keep_highest(torch.tensor([other, value]), pruned)


@pytest.mark.parametrize("pruned", [-1, 3])
def test_number_out_of_bounds_is_refused(pruned: int) -> None:
    with pytest.raises(MmpError, match=f"cannot prune {pruned} of 2"):
        keep_highest(torch.ones(2), pruned)


# --- make_masks ---


def test_each_layer_is_pruned_by_its_own_sparsity() -> None:
    scores = {"a": torch.tensor([4.0, 3.0, 2.0, 1.0]), "b": torch.tensor([[0.1], [0.2], [0.3]])}
    masks = make_masks(scores, {"b": 0.5, "a": 0.75})
    assert masks["a"].tolist() == [True, False, False, False]
    assert masks["b"].tolist() == [[False], [True], [True]]
    assert list(masks) == ["a", "b"]


@pytest.mark.parametrize("pattern", ["none", "2:4", "4x1"])
def test_a_grid_has_the_masks_of_each_strategy(pattern: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {"a": torch.randn(256, 256, generator=generator).abs(), "b": torch.randn(8, 12, generator=generator)}
    strategies = {"low": {"a": 0.2, "b": 0.7}, "high": {"a": 0.9, "b": 0.3}, "same": {"a": 0.9, "b": 0.8}}
    for fraction in (0.5, 1.0):
        grid = make_grid(scores, strategies, Pattern.parse(pattern), fraction)
        assert list(grid) == list(strategies)
        for name, sparsities in strategies.items():
            assert grid[name] == make_masks(scores, sparsities, Pattern.parse(pattern), fraction)
    assert make_grid(scores, {}) == {}
    with pytest.raises(MmpError, match="different layers: b"):
        make_grid(scores, {"low": strategies["low"], "odd": {"a": 0.5}})


def test_make_masks_names_the_layer_with_an_error() -> None:
    with pytest.raises(MmpError, match="different layers: b, c"):
        make_masks({"a": torch.ones(2), "b": torch.ones(2)}, {"a": 0.5, "c": 0.5})
    with pytest.raises(MmpError, match=r"layer 'a': sparsity 1\.5"):
        make_masks({"a": torch.ones(2)}, {"a": 1.5})
    with pytest.raises(MmpError, match="layer 'a': scores hold NaN"):
        make_masks({"a": torch.tensor([1.0, float("nan")])}, {"a": 0.5})


# --- Masks ---


def test_counts_and_sparsity() -> None:
    masks = Masks({"a": bits(1, 0, 0), "b": bits(1, 1, 1, 1, 1)})
    assert masks.pruned == {"a": 2, "b": 0}
    assert masks.total == 8
    assert masks.sparsity == 0.25
    assert repr(masks) == "Masks(2 layers, sparsity 0.2500)"
    assert Masks({}).sparsity == 0.0


@pytest.mark.parametrize("name", ["", 3, None])
def test_mask_needs_the_name_of_a_weight(name: Any) -> None:
    with pytest.raises(MmpError, match="needs the name of a weight"):
        Masks({name: bits(1)})


@pytest.mark.parametrize(
    ("mask", "kind"),
    [(torch.ones(2), "torch.float32"), (torch.ones(2).byte(), "torch.uint8"), ([True], "list")],
)
def test_mask_must_be_a_bool_tensor(mask: Any, kind: str) -> None:
    with pytest.raises(MmpError, match=f"mask 'a' is {kind}"):
        Masks({"a": mask})


def test_masks_do_not_change_with_the_mapping_they_were_made_from() -> None:
    source = {"a": bits(1, 0)}
    masks = Masks(source)
    source["b"] = bits(1)
    assert list(masks) == ["a"]


def test_contains_means_that_no_pruned_weight_is_kept_again() -> None:
    sparse, dense = Masks({"a": bits(0, 0, 1)}), Masks({"a": bits(0, 1, 1)})
    assert sparse.contains(dense)
    assert sparse.contains(sparse)
    assert not dense.contains(sparse)
    assert not sparse.contains(Masks({"a": bits(1, 1, 0)}))
    assert not sparse.contains(Masks({"b": bits(1, 1, 1)}))


def test_masks_compare_by_content() -> None:
    assert Masks({"a": bits(1, 0)}) == Masks({"a": bits(1, 0)})
    assert Masks({"a": bits(1, 0)}) != Masks({"a": bits(0, 1)})


contents = st.dictionaries(st.sampled_from(["a", "b"]), st.lists(st.booleans(), max_size=9).map(tuple), max_size=2)


@given(contents, contents)
def test_digests_are_equal_if_and_only_if_the_masks_are(first: dict, second: dict) -> None:
    one, other = (Masks({name: bits(*mask) for name, mask in c.items()}) for c in (first, second))
    assert (one.digest() == other.digest()) == (first == second)


def test_digest_changes_with_bit_name_and_shape_but_not_with_order() -> None:
    a, b = torch.ones(2, 4, dtype=torch.bool), bits(1, 0)
    flipped = a.clone()
    flipped[1, 3] = False
    variants = [
        {"a": a, "b": b},
        {"a": flipped, "b": b},
        {"a": a.view(4, 2), "b": b},
        {"a": a, "c": b},
        {"b": a, "a": b},
        {"a": a},
    ]
    assert len({Masks(variant).digest() for variant in variants}) == len(variants)
    assert Masks({"b": b, "a": a}).digest() == Masks(variants[0]).digest()
    assert Masks({"a": a.t().contiguous().t(), "b": b}).digest() == Masks(variants[0]).digest()


# --- files ---


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Masks, Path]:
    masks = Masks({"a.weight": torch.eye(3, dtype=torch.bool), "b.weight": bits(0, 1)})
    save_masks(masks, tmp_path / "masks.safetensors")
    return masks, tmp_path / "masks.safetensors"


def test_saved_masks_are_loaded_unchanged(saved: tuple[Masks, Path]) -> None:
    masks, path = saved
    loaded = load_masks(path)
    assert loaded.digest() == masks.digest()
    assert loaded["a.weight"].tolist() == torch.eye(3).bool().tolist()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_missing_or_truncated_masks_are_refused(saved: tuple[Masks, Path]) -> None:
    _, path = saved
    whole = path.read_bytes()
    for length in (0, 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(MmpError, match=str(path)):
            load_masks(path)
    path.unlink()
    with pytest.raises(MmpError, match=f"{path}: no such file"):
        load_masks(path)


def test_any_flipped_byte_is_refused_or_harmless(saved: tuple[Masks, Path]) -> None:
    masks, path = saved
    whole = path.read_bytes()
    refused = 0
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            assert load_masks(path).digest() == masks.digest(), f"byte {position}"
        except MmpError as error:
            assert str(path) in str(error)  # noqa: PT017
            refused += 1
    assert refused >= masks.total
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(MmpError, match="do not match their checksum"):
        load_masks(path)


# --- MaskEnforcer ---

Make = Callable[..., torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True, foreach=False),
}
all_optimizers = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


@pytest.fixture
def half(net: nn.Sequential) -> Masks:
    """Masks that prune the smaller half of both weights."""
    weights = {name: p.detach().abs() for name, p in net.named_parameters() if name.endswith("weight")}
    return make_masks(weights, dict.fromkeys(weights, 0.5))


def backward(net: nn.Module, seed: int) -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
    net(x).square().sum().backward()


def pruned_weights(net: nn.Module, masks: Masks) -> Tensor:
    parameters = dict(net.named_parameters())
    return torch.cat([parameters[name].detach()[~mask] for name, mask in masks.items()])


def assert_plus_zero(values: Tensor) -> None:
    assert values.numel() == 15
    assert (values == 0).all()
    assert not values.signbit().any()


@all_optimizers
def test_pruned_weights_are_zero_right_after_every_step(net: nn.Sequential, half: Masks, make: Make) -> None:
    optimizer = make(net.parameters())
    for seed in range(2):  # momentum that would move pruned weights away from zero
        backward(net, seed)
        optimizer.step()
    enforcer = MaskEnforcer(dict(net.named_parameters()))
    enforcer.attach(optimizer)
    enforcer.set(half)
    assert_plus_zero(pruned_weights(net, half))
    kept = net[0].weight.detach()[half["0.weight"]].clone()
    for step in range(4):
        optimizer.zero_grad()
        for part in range(2):  # gradient accumulation
            backward(net, 10 * step + part)
        optimizer.step()
        assert_plus_zero(pruned_weights(net, half))
        enforcer.check()
    assert (net[0].weight.detach()[half["0.weight"]] != kept).all()


@all_optimizers
def test_after_detach_a_step_changes_pruned_weights(net: nn.Sequential, half: Masks, make: Make) -> None:
    optimizer = make(net.parameters())
    enforcer = MaskEnforcer(dict(net.named_parameters()))
    enforcer.set(half)
    enforcer.attach(optimizer)
    enforcer.detach()
    backward(net, 0)
    optimizer.step()
    assert (pruned_weights(net, half) != 0).any()
    with pytest.raises(MmpError, match="are not zero"):
        enforcer.check()


def test_negative_weights_become_positive_zeros() -> None:
    weight = nn.Parameter(torch.tensor([-1.0, -2.0]))
    MaskEnforcer({"w": weight}).set(Masks({"w": bits(0, 1)}))
    assert weight.tolist() == [0.0, -2.0]
    assert weight.signbit().tolist() == [False, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_value_of_a_pruned_weight_is_set_to_positive_zero(dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.zeros(5, dtype=dtype))
    enforcer = MaskEnforcer({"w": weight})
    enforcer.set(Masks({"w": bits(0, 0, 0, 1, 1)}))
    with torch.no_grad():
        weight.copy_(torch.tensor([float("nan"), -float("inf"), -3.0, -float("inf"), -0.0]))
    enforcer.zero_weights()
    assert weight.tolist() == [0.0, 0.0, 0.0, -float("inf"), 0.0]
    assert weight.signbit().tolist() == [False, False, False, True, True]


def test_channels_last_weights_are_zeroed_where_the_mask_is_false() -> None:
    weight = nn.Parameter(torch.ones(2, 3, 2, 2).to(memory_format=torch.channels_last))
    mask = torch.arange(24).view(2, 3, 2, 2) % 5 > 0
    MaskEnforcer({"w": weight}).set(Masks({"w": mask}))
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(weight.detach(), mask.float())


@all_optimizers
def test_optimizer_state_of_pruned_weights_is_zeroed_when_masks_are_set(
    net: nn.Sequential, half: Masks, make: Make
) -> None:
    optimizer = make(net.parameters())
    for seed in range(3):
        backward(net, seed)
        optimizer.step()
    weight, keep = net[0].weight, half["0.weight"]
    before = copy.deepcopy(optimizer.state[weight])
    bias_before = copy.deepcopy(optimizer.state[net[0].bias])
    moments = [key for key, value in before.items() if value.shape == weight.shape]
    assert moments
    assert all((before[key][~keep] != 0).all() for key in moments)

    MaskEnforcer(dict(net.named_parameters())).set(half, [optimizer])

    for key, value in optimizer.state[weight].items():
        if key in moments:
            assert (value[~keep] == 0).all()
            assert torch.equal(value[keep], before[key][keep])
        else:
            assert torch.equal(value, before[key])
    assert all(torch.equal(optimizer.state[net[0].bias][key], value) for key, value in bias_before.items())


def test_state_stays_zero_while_gradients_are_zeroed(net: nn.Sequential, half: Masks) -> None:
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    backward(net, 0)
    optimizer.step()
    enforcer = MaskEnforcer(dict(net.named_parameters()))
    enforcer.set(half, [optimizer])
    enforcer.attach(optimizer)
    for seed in range(3):
        optimizer.zero_grad()
        backward(net, seed)
        enforcer.zero_gradients()
        optimizer.step()
        for index in (0, 2):
            momentum = optimizer.state[net[index].weight]["momentum_buffer"]
            assert (momentum[~half[f"{index}.weight"]] == 0).all()
            assert (momentum[half[f"{index}.weight"]] != 0).all()


def test_gradients_are_zeroed_at_pruned_weights_only(net: nn.Sequential, half: Masks) -> None:
    enforcer = MaskEnforcer(dict(net.named_parameters()))
    enforcer.set(half)
    enforcer.zero_gradients()  # without gradients there is nothing to do
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    enforcer.zero_gradients()
    for name, parameter in net.named_parameters():
        expected = half[name].float() if name in half else torch.ones_like(parameter)
        assert torch.equal(parameter.grad, expected)


def test_denser_masks_replace_the_old_ones(net: nn.Sequential, half: Masks) -> None:
    enforcer = MaskEnforcer(dict(net.named_parameters()))
    enforcer.set(half)
    one = Masks({"0.weight": half["0.weight"] & False})
    enforcer.set(one)
    assert enforcer.masks is one
    assert (net[0].weight == 0).all()
    with torch.no_grad():
        net[2].weight.fill_(1.0)
    enforcer.zero_weights()
    assert (net[2].weight == 1).all()


def test_a_wrong_name_or_shape_is_refused_and_nothing_changes(net: nn.Sequential) -> None:
    enforcer = MaskEnforcer(dict(net.named_parameters()))
    before = net[0].weight.detach().clone()
    good = torch.zeros(5, 4, dtype=torch.bool)
    with pytest.raises(MmpError, match=r"mask '0\.wait' names no weight"):
        enforcer.set(Masks({"0.weight": good, "0.wait": good}))
    with pytest.raises(MmpError, match=r"mask '2\.weight' has shape \(5, 4\), its weight has \(2, 5\)"):
        enforcer.set(Masks({"0.weight": good, "2.weight": good}))
    assert torch.equal(net[0].weight, before)
    assert enforcer.masks is None


def test_check_counts_the_pruned_weights_that_are_not_zero(net: nn.Sequential, half: Masks) -> None:
    enforcer = MaskEnforcer(dict(net.named_parameters()))
    enforcer.check()  # without masks there is nothing to check
    enforcer.set(half)
    enforcer.check()
    rows, columns = (~half["2.weight"]).nonzero(as_tuple=True)
    with torch.no_grad():
        net[2].weight[rows[0], columns[0]] = 1e-30
        net[2].weight[rows[1], columns[1]] = float("nan")
    with pytest.raises(MmpError, match=r"2 pruned weights of '2\.weight' are not zero"):
        enforcer.check()
    with pytest.raises(MmpError, match=r"2 pruned weights of '2\.weight' are not zero"):
        check_zeros(net.state_dict(), half)


def test_check_names_a_mask_without_a_weight(half: Masks) -> None:
    with pytest.raises(MmpError, match=r"0\.weight"):
        check_zeros({}, half)


def test_the_model_keeps_its_keys_and_parameters(net: nn.Sequential, half: Masks) -> None:
    keys = list(net.state_dict())
    optimizer = OPTIMIZERS["adamw"](net.parameters())
    enforcer = MaskEnforcer(dict(net.named_parameters()))
    enforcer.attach(optimizer)
    enforcer.set(half, [optimizer])
    backward(net, 0)
    optimizer.step()
    twin = copy.deepcopy(net)
    assert list(net.state_dict()) == list(twin.state_dict()) == keys
    assert all(torch.equal(twin.state_dict()[key], value) for key, value in net.state_dict().items())
    assert type(twin[0].weight) is nn.Parameter
    with torch.no_grad():
        twin[0].weight.fill_(1.0)
    enforcer.check()
    check_zeros(net.state_dict(), half)


# --- zeros without a sign ---


def pruned_bits(weights: Mapping[str, Tensor], masks: Masks) -> int:
    """Return the number of pruned weights that are not +0.0."""
    return sum(int(((weights[n] != 0) | torch.signbit(weights[n]))[~mask].sum()) for n, mask in masks.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_pruned_weights_have_no_sign(dtype: torch.dtype) -> None:
    masks = Masks({"weight": torch.arange(12).view(3, 4) % 3 == 0})
    weights = {"weight": -torch.rand(3, 4, dtype=dtype) * masks["weight"]}  # -0.0 where the mask prunes
    check_zeros(weights, masks)
    assert pruned_bits(weights, masks) == 8
    kept = weights["weight"][masks["weight"]].clone()
    clear_pruned(weights, masks)
    assert pruned_bits(weights, masks) == 0
    assert torch.equal(weights["weight"][masks["weight"]], kept)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Rprop])
@pytest.mark.parametrize("start", [-1.0, -0.0, -1e-45])
def test_enforced_weights_have_no_sign(optimizer: type[torch.optim.Optimizer], start: float) -> None:
    layer = nn.Linear(4, 3, bias=False)
    nn.init.constant_(layer.weight, start)
    masks = Masks({"weight": torch.arange(12).view(3, 4) % 3 == 0})
    enforcer, steps = MaskEnforcer(dict(layer.named_parameters())), optimizer(layer.parameters(), lr=0.1)
    enforcer.set(masks, [steps])
    enforcer.attach(steps)
    assert pruned_bits(layer.state_dict(), masks) == 0
    for _ in range(3):
        layer(torch.ones(2, 4)).sum().backward()  # lowers every weight
        steps.step()
        assert pruned_bits(layer.state_dict(), masks) == 0


def test_masks_that_fit_no_weight_clear_nothing() -> None:
    weights = {"a": torch.ones(2)}
    with pytest.raises(MmpError, match="names no weight"):
        clear_pruned(weights, Masks({"a": torch.zeros(2, dtype=torch.bool), "b": torch.zeros(2, dtype=torch.bool)}))
    assert weights["a"].all()
