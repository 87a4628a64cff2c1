"""``mmp.prune`` and ``mmp.prune_all``: the whole method in one call, equal to its parts one by one."""

from __future__ import annotations

import copy
import doctest
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
from partly import partly_slow
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import mmp
import mmp.method
from mmp.pruning.criteria import Lamp, global_masks
from mmp.pruning.reconstruction.tuning_images import divided, singly, stacked
from mmp.pruning.topk import satisfies

CLASSES = 10
CHANCE = 1.02  # how far an error may grow: it is that of rows that no layer was solved with


def net() -> nn.Module:
    """Return a network of 29,536 prunable weights in three layers, one of them small."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, CLASSES),
    )


@pytest.fixture
def model() -> nn.Module:
    return net()


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Tensor, Tensor]]:
    """Two full batches and a smaller one."""
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 3, 8, 8, generator=generator), torch.randint(CLASSES, (n,), generator=generator))
        for n in (128, 128, 20)
    ]


@pytest.fixture(scope="module")
def batches(pairs: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [images for images, _ in pairs]


def equal(first: nn.Module, second: nn.Module) -> bool:
    """Return whether two models have the same bits."""
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_first_example(model: nn.Module, batches: list[Tensor], capsys: pytest.CaptureFixture[str]) -> None:
    result = mmp.prune(model, budget=0.9, images=batches)  # any trained nn.Module; images: unlabelled tensors
    result.model, result.masks, result.plan, print(result)  # noqa: T201
    assert "signal magnitude, strategy balanced, ranges generic, budget 90 %" in capsys.readouterr().out
    assert sum(result.masks.pruned.values()) == round(0.9 * result.masks.total)
    assert result.sparsity == result.masks.sparsity


@pytest.mark.slow
@pytest.mark.parametrize("docstring", ["prune", "prune_all"])
def test_the_examples_of_the_docstrings(docstring: str) -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(mmp, docstring), docstring)
    found = doctest.DocTestRunner().run(example)
    assert found.attempted >= 6
    assert found.failed == 0


def test_the_model_given_is_left_as_it_was(model: nn.Module, pairs: list[tuple[Tensor, Tensor]]) -> None:
    model[3].eval()
    model[4].weight.requires_grad_(False)
    before = copy.deepcopy(model)
    result = mmp.prune(model, 0.8, pairs, signal="product")
    assert equal(model, before)
    assert all(parameter.grad is None for parameter in model.parameters())
    for one in (model, result.model):
        assert [m.training for m in one.modules()] == [m.training for m in before.modules()]
        assert [p.requires_grad for p in one.parameters()] == [p.requires_grad for p in before.parameters()]
    assert not equal(result.model, before)


@pytest.mark.slow
def test_a_call_is_the_steps_of_the_library(model: nn.Module, pairs: list[tuple[Tensor, Tensor]]) -> None:
    result = mmp.prune(model, 0.85, pairs, signal="product", strategy="p70", ranges="observed")
    model.eval()
    layers = mmp.prunable_layers(model)
    weights = mmp.prunable_parameters(model, layers)
    loss = nn.CrossEntropyLoss()
    needs = {"gradient", "hessian_gradient", "absolute_gradient"}
    statistics = mmp.collect(model, weights, pairs, loss, needs, temperature=200.0)
    observed = []
    for name in ("mag", "snip", "grasp"):
        one = mmp.criterion(name)
        scores = mmp.score(one, weights, statistics)
        total = sum(layer.size for layer in layers)
        observed += [one.allocate(layers, scores, int(target * total)) for target in (0.7, 0.8, 0.9)]
    plan = mmp.make_plan(model, "observed", [mmp.load_strategy("p70")], 0.85, observed)
    masks = mmp.make_masks(mmp.score(mmp.Product(), weights, statistics), plan.sparsities["p70"])
    expected = net().eval()
    first = pairs[0][0], pairs[1][0], pairs[2][0]
    reports = mmp.reconstruct(expected, masks, first, ridge=0.01)
    assert result.plan.ranges == plan.ranges
    assert result.plan.sparsities == plan.sparsities
    assert result.masks == masks
    assert equal(result.model, expected)
    assert [(r.name, r.before, r.after) for r in result.reports] == [(r.name, r.before, r.after) for r in reports]


def test_without_images_the_masks_are_all_that_changes(model: nn.Module) -> None:
    result = mmp.prune(model, 0.9)
    assert result.reports == ()
    for name, value in result.model.state_dict().items():
        dense = model.state_dict()[name]
        kept = result.masks[name] if name in result.masks else torch.ones_like(dense, dtype=torch.bool)
        assert torch.equal(value, dense * kept)


def test_with_images_no_layer_is_farther_from_the_dense_one(model: nn.Module, batches: list[Tensor]) -> None:
    result = mmp.prune(model, 0.9, batches)
    mmp.check_zeros(result.model.state_dict(), result.masks)
    assert {report.name for report in result.reports} == set(result.masks)
    assert all(report.after <= report.before * CHANCE for report in result.reports)
    plain = mmp.prune(model, 0.9, batches, reconstruct="none")
    assert plain.masks == result.masks
    with torch.no_grad():
        dense, solved, masked = (one.eval()(batches[0]) for one in (model, result.model, plain.model))
    assert (solved - dense).square().mean() < 0.5 * (masked - dense).square().mean()


@pytest.mark.slow
def test_re_solving_reads_the_first_512_images(model: nn.Module) -> None:
    images = torch.randn(600, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    few, many = mmp.prune(model, 0.9, images[:512]), mmp.prune(model, 0.9, images)
    assert equal(few.model, many.model)
    assert not equal(few.model, mmp.prune(model, 0.9, images[:500]).model)


def forms(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, dict[str, Any]]:
    """Return all ways to give the same images and labels."""
    images, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    batches = [batch for batch, _ in pairs]
    return {
        "a tensor and a tensor": {"images": images, "labels": labels},
        "a tensor and a list of numbers": {"images": images, "labels": labels.tolist()},
        "batches and a tensor": {"images": batches, "labels": labels},
        "batches and batches": {"images": batches, "labels": [part for _, part in pairs]},
        "iterators": {"images": iter(batches), "labels": iter([part for _, part in pairs])},
        "an iterator of pairs": {"images": (pair for pair in pairs)},
        "lists": {"images": [[batch, part] for batch, part in pairs]},
        "more than pairs": {"images": [(batch, part, "name") for batch, part in pairs]},
        "an empty batch among them": {"images": [pairs[0], (images[:0], labels[:0]), *pairs[1:]]},
        "a data loader": {"images": DataLoader(TensorDataset(images, labels), 128)},
    }


FORMS = [*forms([(torch.zeros(1, 3, 8, 8), torch.zeros(1, dtype=torch.long))])]


@pytest.mark.parametrize("form", FORMS)
def test_images_and_labels_come_in_many_forms(model: nn.Module, pairs: list[tuple[Tensor, Tensor]], form: str) -> None:
    options = {"signal": "gradient", "ranges": "observed", "reconstruct": "none"}
    expected = mmp.prune(model, 0.8, pairs, **options)
    assert mmp.prune(model, 0.8, **forms(pairs)[form], **options).masks == expected.masks


@pytest.mark.slow
@pytest.mark.parametrize("form", ["a tensor and a tensor", "iterators"])
def test_re_solving_reads_all_forms(model: nn.Module, pairs: list[tuple[Tensor, Tensor]], form: str) -> None:
    assert equal(mmp.prune(model, 0.8, **forms(pairs)[form]).model, mmp.prune(model, 0.8, pairs).model)


@pytest.mark.slow
def test_unlabelled_images_of_a_data_loader_come_in_lists_of_one(model: nn.Module, batches: list[Tensor]) -> None:
    loader = DataLoader(TensorDataset(torch.cat(batches)), 128)
    assert equal(mmp.prune(model, 0.8, loader, signal="obs").model, mmp.prune(model, 0.8, batches, signal="obs").model)


@pytest.mark.slow
def test_labels_that_nothing_reads_are_not_looked_at(model: nn.Module, batches: list[Tensor]) -> None:
    named = [(batch, [f"image {i}" for i in range(len(batch))]) for batch in batches]
    assert equal(mmp.prune(model, 0.8, named).model, mmp.prune(model, 0.8, batches).model)


@pytest.mark.slow
def test_images_of_several_sizes(pairs: list[tuple[Tensor, Tensor]]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 512, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))
    larger = [(torch.nn.functional.pad(images, (1, 2, 1, 2)), labels) for images, labels in pairs]
    result = mmp.prune(model, 0.5, [*pairs, *larger], signal="product")
    assert all(report.status == "solved" for report in result.reports)


@pytest.mark.slow
def test_the_loss_decides_gradients(model: nn.Module, pairs: list[tuple[Tensor, Tensor]]) -> None:
    smooth = nn.CrossEntropyLoss(label_smoothing=0.3)
    plain, smoothed = (mmp.prune(model, 0.8, pairs, signal="gradient", loss=one) for one in (smooth.forward, smooth))
    assert plain.masks == smoothed.masks
    assert plain.masks != mmp.prune(model, 0.8, pairs, signal="gradient").masks


@pytest.mark.slow
def test_labels_may_be_anything_that_the_loss_takes(model: nn.Module, pairs: list[tuple[Tensor, Tensor]]) -> None:
    soft = [(images, nn.functional.one_hot(labels, CLASSES).float()) for images, labels in pairs]
    expected = mmp.prune(model, 0.8, pairs, signal="product")
    assert mmp.prune(model, 0.8, soft, signal="product").sparsity == expected.sparsity
    squares = mmp.prune(model, 0.8, soft, signal="product", loss=nn.functional.mse_loss)
    assert squares.masks != expected.masks


@pytest.mark.slow
@pytest.mark.parametrize("pattern", partly_slow([None, "2:4"], quick=(None,)))
def test_all_strategies_equal_the_single_ones(
    model: nn.Module, pairs: list[tuple[Tensor, Tensor]], pattern: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counting(*arguments: Any) -> Any:
        calls.append(arguments)
        return collect(*arguments)

    collect = mmp.collect
    options = {"signal": "product", "pattern": pattern or "none"}
    with monkeypatch.context() as patch:
        patch.setattr(mmp.method, "collect", counting)
        results = dict(mmp.prune_all(model, images=pairs, **options))
    assert len(calls) == 1
    assert [*results] == [strategy.name for strategy in mmp.load_strategies()]
    assert len(results) == 10
    for name, result in results.items():
        single = mmp.prune(model, images=pairs, strategy=name, reconstruct="none", **options)
        assert result.strategy == single.strategy == name
        assert result.masks == single.masks
    assert equal(results["p70"].model, mmp.prune(model, images=pairs, strategy="p70", **options).model)
    assert results["p50"].masks == results["balanced"].masks
    assert results["aggressive"].sparsity > results["conservative"].sparsity


class Counted(nn.Sequential):
    """A network that counts its copies."""

    copies = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Counted:
        type(self).copies += 1
        return type(self)(*(copy.deepcopy(child, memo) for child in self))


@pytest.mark.slow
def test_all_strategies_are_checked_at_once_and_solved_one_by_one(batches: list[Tensor]) -> None:
    model = Counted(*net())
    with pytest.raises(mmp.MmpError, match="out of reach"):
        mmp.prune_all(model, 0.97, batches)
    results = mmp.prune_all(model, 0.7, batches, strategies=["p30", mmp.Strategy("mine", 0.4), "p70"])
    assert Counted.copies == 0
    names = []
    for number, (name, result) in enumerate(results, start=1):
        assert Counted.copies == number
        assert result.sparsity == pytest.approx(0.7, abs=1e-4)
        names.append(name)
    assert names == ["p30", "mine", "p70"]


@pytest.mark.parametrize("strategy", ["p30", mmp.Strategy("p30", 0.3)])
def test_a_single_strategy_needs_no_list(model: nn.Module, strategy: mmp.Strategy | str) -> None:
    ((name, result),) = mmp.prune_all(model, 0.5, strategies=strategy)
    assert name == "p30"
    assert result.masks == mmp.prune(model, 0.5, strategy="p30").masks


OBJECTS: dict[str, Callable[[], tuple[dict[str, Any], dict[str, Any]]]] = {
    "signal": lambda: ({"signal": "obs"}, {"signal": mmp.Obs()}),
    "strategy": lambda: ({"strategy": "p70"}, {"strategy": mmp.Strategy("p70", 0.7)}),
    "ranges": lambda: ({"ranges": "generic"}, {"ranges": mmp.load_ranges("generic")}),
    "pattern": lambda: ({"pattern": "2:4"}, {"pattern": mmp.Pattern(2, 4)}),
    "budget": lambda: ({"budget": 0.8}, {"budget": mmp.Budget(sparsity=0.8)}),
    "criterion": lambda: ({"criterion": "lamp"}, {"criterion": mmp.criterion("lamp")}),
    "no criterion": lambda: ({}, {"criterion": "none"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", OBJECTS)
def test_objects_stand_for_words(model: nn.Module, batches: list[Tensor], what: str) -> None:
    words, objects = OBJECTS[what]()
    by_word, by_object = (mmp.prune(model, images=batches, **({"budget": 0.8} | one)) for one in (words, objects))
    assert by_word.masks == by_object.masks
    assert equal(by_word.model, by_object.model)


@pytest.mark.slow
def test_a_signal_of_ones_own(model: nn.Module, pairs: list[tuple[Tensor, Tensor]]) -> None:
    class Taylor:
        name = "mine"
        needs = frozenset({"gradient"})

        def score(self, weight: Tensor, statistics: Any) -> Tensor:
            return (weight * statistics["gradient"]) ** 2

    result = mmp.prune(model, 0.8, pairs, signal=Taylor())
    assert result.signal == "mine"
    assert result.masks != mmp.prune(model, 0.8, pairs).masks
    with pytest.raises(mmp.MmpError, match=r"signal=mine needs labels"):
        mmp.prune(model, 0.8, pairs[0][0], signal=Taylor())


def test_a_criterion_ranks_all_weights_together(model: nn.Module, batches: list[Tensor]) -> None:
    result = mmp.prune(model, 0.9, batches, criterion="lamp")
    weights = mmp.prunable_parameters(model, mmp.prunable_layers(model))
    expected = global_masks(mmp.score(Lamp(), weights, {}), round(0.9 * result.masks.total))
    assert result.masks == expected
    assert (result.strategy, result.signal) == ("lamp", None)
    assert result.reports
    assert "criterion lamp, budget 90 %" in str(result)
    assert mmp.prune(model, 0.99, criterion="mag").sparsity == pytest.approx(0.99, abs=1e-4)  # beyond any range


@pytest.mark.slow
def test_a_criterion_without_a_budget_prunes_as_much_as_the_strategy(
    model: nn.Module, pairs: list[tuple[Tensor, Tensor]]
) -> None:
    for ranges in ("generic", "observed"):
        strategy = mmp.prune(model, images=pairs, strategy="p70", ranges=ranges)
        criterion = mmp.prune(model, images=pairs, strategy="p70", ranges=ranges, criterion="grasp")
        assert sum(criterion.masks.pruned.values()) == sum(strategy.masks.pruned.values())
        assert criterion.masks != strategy.masks


@pytest.mark.parametrize("criterion", [None, "lamp"])
def test_a_budget_in_megabytes(model: nn.Module, criterion: str | None) -> None:
    result = mmp.prune(model, mmp.Budget(megabytes=0.04), criterion=criterion)
    size = result.plan.summary(result.strategy)["bytes"]
    assert 39_990 < size <= 40_000
    assert "budget 0.04 MB" in str(result)


@pytest.mark.parametrize("criterion", [None, "mag"])
def test_a_pattern_holds_where_its_layers_take_it(
    model: nn.Module, batches: list[Tensor], criterion: str | None
) -> None:
    result = mmp.prune(model, 0.7, batches, pattern="2:4", criterion=criterion)
    pattern = mmp.Pattern.parse("2:4")
    for name in ("4.weight", "7.weight"):
        assert satisfies(result.masks[name], pattern)
        assert f"{name[0]}.weight" in str(result)
    assert "2:4" in str(result).splitlines()[3]
    assert "2:4" not in str(result).splitlines()[2]  # the first layer has three inputs
    assert result.sparsity == pytest.approx(0.7, abs=1e-4)


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(192, 128)
        self.first, self.second = nn.Linear(128, 128), nn.Linear(128, 128)
        self.second.weight = self.first.weight
        self.head = nn.Linear(128, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images.flatten(1))
        return self.head(self.second(self.first(x).relu()).relu())


def test_shared_weights_are_pruned_once_and_stay_shared(batches: list[Tensor]) -> None:
    torch.manual_seed(0)
    model = Tied()
    result = mmp.prune(model, 0.6, batches)
    assert [*result.masks] == ["embed.weight", "first.weight", "head.weight"]
    assert result.model.second.weight is result.model.first.weight
    assert result.model.first.weight is not model.first.weight
    assert int((result.model.second.weight == 0).sum()) == result.masks.pruned["first.weight"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_mambaout"])
def test_models_of_timm(name: str) -> None:
    torch.manual_seed(0)
    size = {"img_size": 64} if name == "test_vit" else {}
    model = timm.create_model(name, num_classes=CLASSES, **size).eval()
    images, labels = torch.randn(16, 3, 64, 64), torch.randint(CLASSES, (16,))
    result = mmp.prune(model, 0.6, images, labels, signal="product", strategy="p70")
    assert result.sparsity == pytest.approx(0.6, abs=1e-4)
    assert sum(report.status == "solved" for report in result.reports) > len(result.reports) / 2
    with torch.no_grad():
        assert result.model(images).isfinite().all()
        assert not result.model.training


def test_a_model_that_keeps_tensors_from_its_last_evaluation() -> None:
    torch.manual_seed(0)
    small = {"img_size": 32, "embed_dim": [64, 96, 128], "key_dim": 16, "num_heads": [2, 3, 4], "depth": [1, 1, 1]}
    model = timm.create_model("levit_128s", num_classes=CLASSES, stem_type="s8", **small).eval()
    images = torch.randn(8, 3, 32, 32)
    before = model(images)  # with a history of gradients, which no copy can have
    result = mmp.prune(model, 0.5)
    assert torch.equal(model(images), before)
    with torch.no_grad():
        fresh = timm.create_model("levit_128s", num_classes=CLASSES, stem_type="s8", **small).eval()
        fresh.load_state_dict(result.model.state_dict())
        assert torch.equal(result.model(images), fresh(images))


class Odd(nn.Module):
    """A network with a layer that is never called, and an output of its own type."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()
        self.spare = nn.Linear(128, 128)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": self.body(images)}


def test_layers_that_cannot_be_solved_are_named(batches: list[Tensor]) -> None:
    result = mmp.prune(Odd(), 0.5, batches)
    assert str(result).splitlines()[-1] == "Not re-solved: spare.weight, as its module is never called."
    assert "3 of 4 layers" in str(result)


def test_a_table_says_what_was_done_to_each_layer(model: nn.Module, batches: list[Tensor]) -> None:
    result = mmp.prune(model, 0.8, batches)
    title, headings, *rows = str(result).splitlines()
    assert title == "Sequential: signal magnitude, strategy balanced, ranges generic, budget 80 %"
    assert headings.split("  ")[0] == "layer"
    for row, layer in zip(rows, result.plan.layers, strict=False):
        pruned, report = result.masks.pruned[layer.name], {r.name: r for r in result.reports}[layer.name]
        allowed = result.plan.ranges[layer.name]
        assert row.split() == [
            layer.name,
            layer.role,
            f"{100 * allowed.lo:.1f}",
            "-",
            f"{100 * allowed.hi:.1f}",
            f"{100 * pruned / layer.size:.1f}",
            f"{pruned:,}",
            f"{layer.size:,}",
            f"{100 * report.before:.1f}",
            f"{100 * report.after:.1f}",
        ]
    assert rows[3].startswith(f"Pruned: {sum(result.masks.pruned.values()):,} of 29,536 prunable weights (80.00 %")
    assert "Re-solved: 3 of 3 layers." in rows
    assert repr(result) == "PruneResult(Sequential, signal magnitude, strategy balanced, sparsity 0.8000)"
    assert "re-solved" not in str(mmp.prune(model, 0.8)).lower()


@pytest.mark.slow
def test_inside_no_grad_nothing_is_different(model: nn.Module, pairs: list[tuple[Tensor, Tensor]]) -> None:
    expected = mmp.prune(model, 0.8, pairs, signal="product")
    with torch.no_grad():
        assert equal(mmp.prune(model, 0.8, pairs, signal="product").model, expected.model)


def test_a_half_precision_model_is_pruned(model: nn.Module, batches: list[Tensor]) -> None:
    result = mmp.prune(model.bfloat16(), 0.8, [batch.bfloat16() for batch in batches])
    assert result.model[4].weight.dtype is torch.bfloat16
    assert result.sparsity == pytest.approx(0.8, abs=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("signal", ["magnitude", "product", "obs_fisher"])
def test_on_a_gpu_the_result_is_there_too(model: nn.Module, pairs: list[tuple[Tensor, Tensor]], signal: str) -> None:
    expected = mmp.prune(model, 0.8, pairs, signal=signal)
    result = mmp.prune(model.cuda(), 0.8, pairs, signal=signal)
    assert {parameter.device.type for parameter in result.model.parameters()} == {"cuda"}
    mmp.check_zeros(result.model.state_dict(), result.masks)
    assert result.masks.pruned == expected.masks.pruned
    same = sum(int((result.masks[name].cpu() == mask).sum()) for name, mask in expected.masks.items())
    assert same > 0.99 * expected.masks.total
    assert all(report.after <= report.before * CHANCE for report in result.reports)


@pytest.fixture(autouse=True)
def _no_global_state() -> Iterator[None]:
    """Neither call leaves anything behind in torch."""
    before = torch.is_grad_enabled(), torch.get_default_dtype()
    yield
    assert (torch.is_grad_enabled(), torch.get_default_dtype()) == before
    Counted.copies = 0


@pytest.mark.slow
def test_joint_re_solving_equals_its_parts(
    model: nn.Module, batches: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = mmp.method.read_reconstruct

    def quick(node: Any) -> Any:
        solving = read(node)
        solving.tuning.steps = 10
        return solving

    monkeypatch.setattr(mmp.method, "read_reconstruct", quick)
    result = mmp.prune(model, 0.9, batches, reconstruct="joint")
    assert result.joint is not None
    assert (result.joint.steps, result.joint.images, result.joint.held) == (10, 244, 32)
    assert result.joint.describe() in str(result)

    tuned, held = divided([*torch.cat(batches)])
    by_parts = copy.deepcopy(model)
    mmp.reconstruct(by_parts, result.masks, stacked(tuned, 512), dense=model)
    mmp.reconstruct_jointly(by_parts, result.masks, singly(tuned), model, mmp.Tuning(steps=10), singly(held))
    assert equal(result.model, by_parts)
