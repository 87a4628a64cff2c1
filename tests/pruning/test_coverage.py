"""Every parameter is in a prunable layer, or is counted with the reason why it is in none."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import utils
from torch.nn.utils import parametrizations, parametrize, prune

import mmp
from mmp.errors import MmpError
from mmp.pruning.layers.coverage import Coverage, coverage
from mmp.pruning.layers.prunable import find_layers, prunable_layers
from mmp.pruning.plan_views import as_csv, as_markdown


def cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    )


def found_in(model: nn.Module) -> Coverage:
    return coverage(model, find_layers(model))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def doubled(module: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(module, "weight", Doubled())


HIDDEN: dict[str, tuple[Callable[[nn.Module], object], str, str]] = {
    "weight norm": (parametrizations.weight_norm, "weight norm", "parametrize.remove_parametrizations"),
    "weight norm of old": (utils.weight_norm, "weight norm", "utils.remove_weight_norm"),
    "spectral norm": (parametrizations.spectral_norm, "spectral norm", "parametrize.remove_parametrizations"),
    "spectral norm of old": (utils.spectral_norm, "spectral norm", "utils.remove_spectral_norm"),
    "orthogonal": (parametrizations.orthogonal, "orthogonality", "parametrize.remove_parametrizations"),
    "of the user's own": (
        doubled,
        "parametrization Doubled",
        "parametrize.remove_parametrizations",
    ),
    "two at once": (
        lambda module: parametrize.register_parametrization(
            parametrizations.spectral_norm(module), "weight", Doubled()
        ),
        "spectral norm and parametrization Doubled",
        "parametrize.remove_parametrizations",
    ),
    "torch's pruning": (
        lambda module: prune.l1_unstructured(module, "weight", 0.5),
        "torch's own pruning",
        "prune.rem",
    ),
    "torch's pruning twice": (
        lambda module: prune.random_unstructured(prune.l1_unstructured(module, "weight", 0.5), "weight", 0.5),
        "torch's own pruning",
        "prune.remove",
    ),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", HIDDEN)
def test_a_computed_weight_is_a_warning_with_its_name_share_and_remedy(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrap, reason, remedy = HIDDEN[kind]
    model = cnn()
    wrap(model[2])
    assert [layer.name for layer in prunable_layers(model)] == ["0.weight", "5.weight"]
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert reason in warning.message
    assert "'2.weight'" in warning.message
    assert remedy in warning.message
    (part,) = found_in(model).missed
    assert (part.reason.text, part.example) == (reason, "2.weight")
    assert part.parameters in (32 * 16 * 9, 32 * 16 * 9 + 32)  # weight norm has one gain per output


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", HIDDEN)
def test_a_network_of_computed_weights_only_is_refused_with_the_remedy(kind: str) -> None:
    wrap, reason, remedy = HIDDEN[kind]
    model = nn.Sequential(nn.Linear(8, 8))
    wrap(model[0])
    with pytest.raises(MmpError, match=f"no prunable layer.*{reason}.*'0.weight'.*{remedy}"):
        prunable_layers(model)


def test_a_removed_parametrization_leaves_a_layer() -> None:
    model = cnn()
    parametrize.remove_parametrizations(parametrizations.weight_norm(model[2]), "weight")
    assert "2.weight" in [layer.name for layer in prunable_layers(model)]


class Bare(nn.Module):
    """A network that multiplies by parameters of its own."""

    def __init__(self, shape: tuple[int, ...] = (40, 40), name: str = "mix") -> None:
        super().__init__()
        self.head = nn.Linear(40, 10)
        self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.linear(x, self.mix))


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (Bare(), "mix"),
        (Bare((1, 40, 40)), "mix"),
        (Bare((2, 4, 20, 20), "einsum_weight"), "einsum_weight"),
        (nn.Sequential(nn.ParameterList([torch.randn(30, 30)]), nn.Linear(4, 4)), "0.0"),
        (nn.Sequential(nn.Embedding(100, 8), nn.Linear(8, 4)), "0.weight"),
    ],
)
def test_matrices_outside_of_layers_are_a_warning(
    model: nn.Module, example: str, caplog: pytest.LogCaptureFixture
) -> None:
    prunable_layers(model)
    assert f"e.g. {example!r}" in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ((1, 400, 40), "pos_embed"),
        ((400, 40), "relative_position_bias_table"),
        ((1, 4, 400), "cls_token2"),
        ((12, 900), "attention_biases"),
        ((900, 1, 1), "gamma"),
        ((5000,), "scale"),
    ],
)
def test_tables_tokens_and_gains_are_dense_by_design(
    shape: tuple[int, ...], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = Bare(shape, name)
    prunable_layers(model)
    assert not caplog.records
    found = found_in(model)
    assert not found.missed
    assert found.share > 0.6
    assert f"{100 * found.share:.1f} %" in found.describe()


@pytest.mark.parametrize(
    "name",
    ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "samvit_base_patch16", "gemma4_vit_167m",
     "levit_128s", "nfnet_f0", "sequencer2d_s", "botnet26t_256", "resmlp_12_224"],
)  # fmt: skip
def test_models_of_timm_have_no_warning(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert not found_in(model).missed
    assert len(found_in(model).uncovered) <= 2


def test_all_parameters_are_counted_once() -> None:
    model = Bare()
    model.again = model.head
    model.also = model.mix
    found = found_in(model)
    assert found.parameters == 40 * 40 + 410
    assert sum(part.parameters for part in found.uncovered) + 400 == found.parameters


def test_quantized_weights_are_counted_and_quantized_modules_are_refused() -> None:
    model = Bare()
    model.packed = nn.Parameter(torch.zeros(4000, 1, dtype=torch.uint8), requires_grad=False)
    model.head.weight = nn.Parameter(torch.zeros(10, 40, dtype=torch.int8), requires_grad=False)
    model.other = nn.Linear(3, 3)
    assert [layer.name for layer in find_layers(model)] == ["other.weight"]
    assert found_in(model).missed[0].reason.text == "quantized weights"
    with pytest.warns(), pytest.raises(MmpError, match="'0' is a quantized module; prune the model before"):
        prunable_layers(torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear}))


def test_views_of_a_plan_say_what_is_dense(caplog: pytest.LogCaptureFixture) -> None:
    model = Bare()
    plan = mmp.make_plan(model)
    sentence = (
        "No prunable layer covers 80.1 % of the parameters: parameters that a module holds "
        "itself 79.6 %, e.g. 'mix' (hold a matrix in an nn.Linear); biases, norms and scales 0.5 %."
    )
    assert sentence in str(plan)
    assert sentence in as_markdown(plan)
    entry = plan.to_dict()["uncovered"]
    assert entry["share"] == 1610 / 2010
    assert [(part["example"], part["parameters"], part["by_design"]) for part in entry["reasons"]] == [
        ("mix", 1600, False),
        ("head.bias", 10, True),
    ]
    rows = list(csv.DictReader(io.StringIO(as_csv(plan))))
    assert [(row["layer"], row["role"], row["weights"]) for row in rows] == [
        ("head.weight", "classifier", "400"),
        ("parameters that a module holds itself, e.g. mix", "none", "1600"),
    ]
    assert caplog.text.count("No prunable layer covers") == 1


@pytest.mark.parametrize("criterion", [None, "lamp"])
def test_a_call_of_prune_warns_once_and_its_result_says_it(
    criterion: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    model = cnn()
    parametrizations.weight_norm(model[2])
    result = mmp.prune(model, 0.05, criterion=criterion)
    assert caplog.text.count("No prunable layer covers") == 1
    assert "weight norm 85.1 %" in str(result)


def test_little_that_is_uncovered_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = Bare((4, 4))
    prunable_layers(model)
    assert not caplog.records
    assert found_in(model).missed[0].parameters == 16
