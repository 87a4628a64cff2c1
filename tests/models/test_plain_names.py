"""Names and tensors of a plain network, from wrapped, pruned and reparametrised ones: torch itself gives the values."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from mmp.models.plain_names import plain

SHAPES = {"linear": nn.Linear(6, 4), "square": nn.Linear(5, 5), "conv": nn.Conv2d(3, 4, 3), "one": nn.Conv2d(3, 1, 2)}
KINDS = {
    "pruning": lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    "channels": lambda layer: prune.ln_structured(layer, "weight", 0.5, n=2, dim=0),
    "bias": lambda layer: prune.random_unstructured(layer, "bias", 1),
    "weight norm": weight_norm,
    "weight norm of another dimension": lambda layer: weight_norm(layer, dim=1),
    "weight norm of the whole": lambda layer: weight_norm(layer, dim=None),
    "weight norm by parametrization": parametrizations.weight_norm,
    "spectral norm": spectral_norm,
    "spectral norm by parametrization": parametrizations.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_reparametrised_layer_has_the_weight_that_it_computes_with(kind: str, shape: str) -> None:
    torch.manual_seed(0)
    layer = copy.deepcopy(SHAPES[shape])
    model = nn.Sequential(layer, nn.Identity())
    KINDS[kind](layer)
    images = torch.randn(2, 3, 4, 4) if isinstance(layer, nn.Conv2d) else torch.randn(2, layer.in_features)
    layer(images)  # a spectral norm estimates its vectors in training mode
    model.eval()
    layer(images)
    tensors, notes = plain(model.state_dict(), {"0.weight", "0.bias"})
    assert tensors.keys() == {"0.weight", "0.bias"}
    torch.testing.assert_close(tensors["0.weight"], layer.weight.detach())
    torch.testing.assert_close(tensors["0.bias"], layer.bias.detach())
    assert len(notes) == 1


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_of_torch_are_removed_at_any_place(wrapper: str) -> None:
    tensors, _ = plain({f"{wrapper}.layers.{wrapper}.0.weight": torch.ones(1)}, {"layers.0.weight"})
    assert list(tensors) == ["layers.0.weight"]


def test_counters_of_a_profiler_are_ignored_unless_they_belong_to_the_network() -> None:
    tensors = {"total_ops": torch.ones(1), "conv.total_params": torch.ones(1), "conv.weight": torch.ones(2)}
    kept, notes = plain(tensors, {"conv.weight"})
    assert list(kept) == ["conv.weight"]
    assert notes == ["ignored a profiler's 2 tensors such as total_ops"]
    assert plain(tensors, {"conv.weight", "total_ops", "conv.total_params"})[0].keys() == tensors.keys()


def test_a_networks_own_names_and_unknown_pairs_stay() -> None:
    own = {"attn.query_g": torch.ones(1), "attn.query_v": torch.ones(1)}
    assert plain(own, own)[0] == own
    unknown = {"a.parametrizations.weight.original": torch.ones(1), "a.parametrizations.weight.0.base": torch.ones(1)}
    assert plain(unknown, {"a.weight"}) == (unknown, [])
    mismatch = {"a.weight_orig": torch.ones(2), "a.weight_mask": torch.ones(3)}
    assert plain(mismatch, {"a.weight"}) == (mismatch, [])
    lone = {"a.weight_g": torch.ones(2)}
    assert plain(lone, {"a.weight"}) == (lone, [])


def test_pairs_of_any_type_and_shape_raise_no_error() -> None:
    values = [
        torch.ones(2, dtype=torch.int64),
        torch.ones(3, 2),
        torch.tensor(2.0),
        torch.ones(2, 3).half(),
        torch.ones(0),
    ]
    for left, right, other in itertools.product(values, repeat=3):
        for names in (("g", "v", "x"), ("orig", "mask", "x"), ("orig", "u", "v")):
            tensors = {f"a.weight_{name}": value for name, value in zip(names, (left, right, other), strict=True)}
            kept, _ = plain(tensors, {"a.weight"})
            assert kept
