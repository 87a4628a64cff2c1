"""Whole channels as the structure of pruning: multiples, nested masks, scores of sets, and mistakes in one line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
from channel_networks import build, image_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import mmp
from mmp import Budget, Magnitude, MmpError, make_plan
from mmp.pruning.channels.masks import sets_per_step
from mmp.pruning.channels.structure import WholeChannels
from mmp.pruning.patterns import Channels, parse
from mmp.pruning.structure import masks_at


@cache
def structure(family: str, multiple: int = 16) -> WholeChannels:
    return WholeChannels.of(build(family), image_of(family), Channels(multiple))


def scores_of(found: WholeChannels) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {group.name: torch.rand(len(group), dtype=torch.float64) for group in found.groups}


@pytest.mark.slow
@settings(max_examples=40)
@given(data=st.data())
def test_layers_keep_multiples_and_masks_of_rising_fractions_contain_each_other(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(["gated MLP", "depthwise and gate", "grouped convolution", "resnet", "vit"]))
    multiple = data.draw(st.sampled_from([1, 8, 16]))
    found = structure(family, multiple)
    shares = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0]))
    sparsities = {group.name: data.draw(shares, group.name) for group in found.groups}
    scores, network, before = scores_of(found), build(family), None
    for fraction in (0.0, 0.25, 0.5, 0.9, 1.0):
        masks = masks_at(found, scores, sparsities, fraction)
        assert before is None or masks.contains(before)
        before = masks
        for group in found.groups:
            step = sets_per_step(group, multiple)
            for part, channels in group.channels.items():
                if part.side in ("in", "out"):
                    assert step * channels.shape[1] % multiple == 0
            reader = group.readers[0]
            read = masks[reader.name].transpose(0, 1).flatten(1).any(1)[group.channels[reader]].any(1)
            kept = int(read.sum())
            assert kept >= 1
            assert kept == len(group) or kept % step == 0
            assert len(group) - kept <= fraction * sparsities[group.name] * len(group) + 1e-9
    assert found.removed(sparsities) == [
        len(group) - int(before[r.name].transpose(0, 1).flatten(1).any(1)[group.channels[r]].any(1).sum())
        for group in found.groups
        for r in group.readers[:1]
    ]
    assert found.summary(sparsities)["sparsity"] == pytest.approx(before.sparsity)
    assert set(before) == {layer.name for layer in mmp.prunable_layers(network)}


def test_the_sets_with_the_lowest_scores_go_and_no_others() -> None:
    found = structure("vit", 16)
    scores = scores_of(found)
    heads = found.groups[0]
    scores[heads.name] = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    masks = masks_at(found, scores, {group.name: 0.4 if group is heads else 0.0 for group in found.groups})
    rows = masks["blocks.0.attn.qkv.weight"].view(3, 3, 16, 48)
    assert [bool(head.any()) for head in rows.transpose(0, 1)] == [True, False, True]
    assert masks["blocks.0.mlp.fc1.weight"].all()


def test_a_width_that_no_multiple_fits_stays_whole() -> None:
    found = structure("depthwise and gate", 16)
    by_name = {group.name: group for group in found.groups}
    reduced = by_name["7.reduce.weight"]  # 8 channels
    assert found.removed(dict.fromkeys(by_name, 1.0))[found.groups.index(reduced)] == 0
    assert found.removed(dict.fromkeys(by_name, 1.0))[found.groups.index(by_name["1.weight"])] == 32


def grid(family: str, damage: Callable[[dict[str, Tensor]], object]) -> object:
    found = structure(family)
    scores = scores_of(found)
    damage(scores)
    return found.grid(scores, {"all": {group.name: 0.5 for group in found.groups}})


class Sets:
    """A signal with scores of its own for sets."""

    name = "sets"
    needs = frozenset[str]()

    def __init__(self, of: Callable[[int], Tensor]) -> None:
        self.of = of

    def score(self, weight: Tensor, statistics: object) -> Tensor:
        return weight.detach().abs()

    def score_sets(self, group: mmp.ChannelGroup, weights: object, statistics: object) -> Tensor:
        return self.of(len(group))


@pytest.mark.slow
def test_a_signal_may_score_sets_itself() -> None:
    network, images = build("vit"), image_of("vit", 4)
    first = mmp.prune(network, 0.2, images, signal=Sets(torch.arange), pattern="channels", reconstruct="none")
    last = mmp.prune(
        network, 0.2, images, signal=Sets(lambda n: -torch.arange(n)), pattern="channels", reconstruct="none"
    )
    name = "blocks.0.mlp.fc1.weight"
    kept = int(first.masks[name].any(1).sum())
    assert first.masks[name].any(1).tolist() == [False] * (192 - kept) + [True] * kept
    assert last.masks[name].any(1).tolist() == [True] * kept + [False] * (192 - kept)
    with pytest.raises(MmpError, match=r"signal=sets: score_sets returned scores of the shape \(4,\) for the 3 sets"):
        mmp.prune(network, 0.2, images, signal=Sets(lambda _: torch.ones(4)), pattern="channels")
    with pytest.raises(MmpError, match="NaN or infinity"):
        mmp.prune(network, 0.2, images, signal=Sets(lambda n: torch.full((n,), torch.nan)), pattern="channels")


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["magnitude", "gradient", "product", "fisher", "obs", "obs_fisher"])
def test_every_signal_prunes_to_the_budget(signal: str) -> None:
    network, images, labels = build("vit"), image_of("vit", 8), torch.arange(8) % 5
    result = mmp.prune(network, 0.2, images, labels, signal=signal, pattern="channels")
    facts = result.plan.summary("balanced")
    assert 0.2 <= facts["sparsity_all"] < 0.35
    smaller = result.smaller()
    assert sum(p.numel() for p in smaller.parameters()) == facts["parameters_left"]


def no_groups() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: mmp.prune(m, 0.3, pattern="channels"), "pass images"),
        (lambda m, x: make_plan(m, pattern="channels"), "pass image"),
        (lambda m, x: make_plan(m, pattern="channels", image=x[0]), r"does not run on images of the shape"),
        (lambda m, x: make_plan(m, pattern="channels", image=x[:, :1]), r"shape \(1, 1, 32, 32\) .*real size"),
        (lambda m, x: make_plan(m, pattern="channels", image=torch.randn(1, 3, 40, 40)), r"real size, \(B, C, H, W\)"),
        (lambda m, x: make_plan(m, pattern="channels", image=x[:0]), "real size"),
        (lambda m, x: make_plan(m, pattern="channels", image=[1]), "real size"),
        (lambda m, x: make_plan(copy.deepcopy(m).to("meta"), pattern="channels", image=x), "meta device"),
        (lambda m, x: mmp.prune(copy.deepcopy(m).to("meta"), 0.3, x, pattern="channels"), "meta device"),
        (lambda m, x: make_plan(m, pattern="channels", image=x, observations=[{}]), "single weights"),
        (lambda m, x: mmp.prune(no_groups(), 0.3, x, pattern="channels"), "use pattern=none"),
        (lambda m, x: mmp.prune(m, 0.3, x, pattern="channels", ranges="generic"), "set ranges=channels"),
        (lambda m, x: mmp.prune(m, 0.3, x, ranges="channels"), "set pattern=channels"),
        (lambda m, x: mmp.prune(m, 0.3, x, pattern="channels", ranges="observed"), "ranges=observed"),
        (lambda m, x: mmp.prune(m, 0.3, x, pattern="channels", criterion="lamp"), "criterion=lamp"),
        (lambda m, x: mmp.prune(m, Budget(macs=0.5), x), "set pattern=channels"),
        (lambda m, x: mmp.prune(m, Budget(macs=0.5), x, criterion="lamp"), "set pattern=channels"),
        (lambda m, x: mmp.prune(m, Budget(0.3, macs=0.5), x, pattern="channels"), "only one"),
        (
            lambda m, x: make_plan(m, pattern="channels", structure=structure("resnet")),
            "another model: 'patch_emb",
        ),
        (lambda m, x: make_plan(m, pattern="channels:8", structure=structure("vit")), "pass the same pattern"),
        (lambda m, x: make_plan(m, structure=structure("vit")), "structure has pattern=channels"),
        (
            lambda m, x: grid("vit", lambda scores: scores.pop("blocks.0.mlp.fc1.weight")),
            "different names: blocks.0.mlp",
        ),
        (lambda m, x: grid("vit", lambda scores: scores.update(other=torch.ones(2))), "different names: other; each"),
        (
            lambda m, x: grid("vit", lambda scores: scores.update(dict.fromkeys(scores, torch.ones(3, 2)))),
            "shape \\(3, 2\\)",
        ),
        (lambda m, x: structure("vit").grid(scores_of(structure("vit")), {"a": {"b": 0.5}}), "sparsities and groups"),
        (lambda m, x: mmp.prune(m, 0.3, x, pattern="channels:1024"), "use a smaller multiple.*channels:48"),
    ],
)
def test_mistakes_are_one_line(call: Callable[[nn.Module, Tensor], object], message: str) -> None:
    with pytest.raises(MmpError, match=message) as caught:
        call(build("vit"), image_of("vit"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["channels:0", "channels:x", "channels:1.5", "channels:", "Channels", "channels:-1"])
def test_a_wrong_multiple_names_the_right_spelling(text: str) -> None:
    with pytest.raises(MmpError, match=f"pattern={text}: .*N of at least 1, such as channels:8"):
        parse(text)


def test_scores_of_sets_are_sums_of_the_scores_of_weights() -> None:
    network = build("gated MLP")
    found = structure("gated MLP", 1)
    weights = mmp.prunable_parameters(network, mmp.prunable_layers(network))
    scores = mmp.score(Magnitude(), weights, {}, normalised=True)
    (gated,) = (group for group in found.groups if group.name == "fc1.weight")
    rows = scores["fc1.weight"].double().sum(1)
    expected = rows[:32] + rows[32:] + scores["fc2.weight"].double().sum(0)
    torch.testing.assert_close(found.score(Magnitude(), weights, {})[gated.name], expected)


def test_a_structure_of_a_model_with_the_same_names_and_other_shapes() -> None:
    one, other = (nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, 2)) for n in (64, 96))
    found = WholeChannels.of(one, torch.randn(1, 4))
    make_plan(copy.deepcopy(one), pattern="channels", structure=found)
    message = r"'0.weight' has the shape \(64, 4\) there, but this model has the shape \(96, 4\); make the structure"
    with pytest.raises(MmpError, match=message):
        make_plan(other, pattern="channels", structure=found)
