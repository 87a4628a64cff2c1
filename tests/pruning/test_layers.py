from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import timm
import torch
from timm.layers import CondConv2d, MultiQueryAttentionV2, ScaledStdConv2d, SwiGLU
from torch import nn

from mmp.errors import MmpError
from mmp.pruning.layers.layer import ROLES, Layer, count_weights
from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters


def on_meta(name: str, **kwargs: Any) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def by_name(model: nn.Module) -> dict[str, Layer]:
    return {layer.name: layer for layer in prunable_layers(model)}


def roles_of(model: nn.Module) -> dict[str, str]:
    return {layer.name: layer.role for layer in prunable_layers(model)}


def sizes(layers: tuple[Layer, ...]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for layer in layers:
        total[layer.role] += layer.size
    return dict(total)


# --- the four models of the paper ---


def test_vgg11_has_convs_and_three_classifier_layers() -> None:
    layers = prunable_layers(on_meta("vgg11"))
    assert Counter(layer.role for layer in layers) == {"stem": 1, "conv": 7, "classifier": 3}
    assert sizes(layers) == {
        "stem": 64 * 3 * 9,
        "conv": 9 * (128 * 64 + 256 * 128 + 256 * 256 + 512 * 256 + 3 * 512 * 512),
        "classifier": 4096 * 512 * 49 + 4096 * 4096 + 1000 * 4096,
    }
    assert [layer.name for layer in layers if layer.role == "classifier"] == [
        "pre_logits.fc1.weight",
        "pre_logits.fc2.weight",
        "head.fc.weight",
    ]


def test_resnet18_roles_sizes_and_stages() -> None:
    layers = prunable_layers(on_meta("resnet18"))
    assert Counter((layer.role, layer.stage) for layer in layers) == {
        ("stem", None): 1,
        ("conv", 0): 4,
        ("conv", 1): 4,
        ("conv", 2): 4,
        ("conv", 3): 4,
        ("downsample", 1): 1,
        ("downsample", 2): 1,
        ("downsample", 3): 1,
        ("classifier", None): 1,
    }
    assert sizes(layers) == {
        "stem": 9_408,
        "conv": 10_985_472,
        "downsample": 128 * 64 + 256 * 128 + 512 * 256,
        "classifier": 512_000,
    }
    first, last = layers[0], layers[-1]
    assert first == Layer("conv1.weight", "conv1", "stem", None, 0.0, (64, 3, 7, 7))
    assert last == Layer("fc.weight", "fc", "classifier", None, 1.0, (1000, 512))
    assert layers[1].depth == 1 / 20


def test_levit_384_roles_sizes_and_stages() -> None:
    model = on_meta("levit_384")
    layers = prunable_layers(model)
    assert Counter(layer.role for layer in layers) == {
        "stem": 4,
        "attn_qkv": 12 + 2 * 2,
        "attn_proj": 12 + 2,
        "mlp_fc1": 12 + 2,
        "mlp_fc2": 12 + 2,
        "classifier": 2,
    }
    assert count_weights(layers) == 39_010_064
    assert sizes(layers)["classifier"] == 2 * 1000 * 768
    assert {layer.stage for layer in layers} == {None, 0, 1, 2}
    found = by_name(model)
    beside = "stages.1.downsample."
    assert found[beside + "attn_downsample.q.ln.linear.weight"].role == "attn_qkv"
    assert found[beside + "attn_downsample.kv.linear.weight"].role == "attn_qkv"
    assert found[beside + "attn_downsample.proj.ln.linear.weight"].role == "attn_proj"
    assert found[beside + "mlp.ln1.linear.weight"].role == "mlp_fc1"
    assert found[beside + "mlp.ln2.linear.weight"].role == "mlp_fc2"
    assert found[beside + "mlp.ln2.linear.weight"].stage == 1
    assert not any("attention_biases" in name for name in found)


def test_levit_variant_with_convolutions_has_the_same_roles() -> None:
    linear = [layer.role for layer in prunable_layers(on_meta("levit_128s"))]
    assert [layer.role for layer in prunable_layers(on_meta("levit_conv_128s"))] == linear


def test_swin_tiny_roles_sizes_and_stages() -> None:
    model = on_meta("swin_tiny_patch4_window7_224")
    layers = prunable_layers(model)
    blocks = {0: 2, 1: 2, 2: 6, 3: 2}
    expected = Counter({("patch_embed", None): 1, ("classifier", None): 1})
    for stage, count in blocks.items():
        for role in ("attn_qkv", "attn_proj", "mlp_fc1", "mlp_fc2"):
            expected[role, stage] = count
    expected.update({("patch_merge", stage): 1 for stage in (1, 2, 3)})
    assert Counter((layer.role, layer.stage) for layer in layers) == expected
    width_squared = sum(count * (96 * 2**stage) ** 2 for stage, count in blocks.items())
    assert sizes(layers) == {
        "patch_embed": 96 * 3 * 16,
        "attn_qkv": 3 * width_squared,
        "attn_proj": width_squared,
        "mlp_fc1": 4 * width_squared,
        "mlp_fc2": 4 * width_squared,
        "patch_merge": 8 * 96**2 * (1 + 4 + 16),
        "classifier": 768_000,
    }


# --- plain modules ---


def test_plain_cnn_has_a_stem_and_a_classifier() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 16, 1),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.Linear(32, 10),
    )
    layers = prunable_layers(model)
    assert [layer.role for layer in layers] == ["stem", "depthwise", "conv", "classifier", "classifier"]
    assert [layer.depth for layer in layers] == [0, 0.25, 0.5, 0.75, 1]
    assert [layer.size for layer in layers] == [216, 72, 128, 2048, 320]
    assert {layer.stage for layer in layers} == {None}


def test_hidden_linears_of_a_plain_mlp_are_its_body() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    assert [layer.role for layer in prunable_layers(model)] == ["other", "other", "classifier"]


def test_a_model_of_one_layer() -> None:
    assert prunable_layers(nn.Linear(3, 2)) == (Layer("weight", "", "classifier", None, 0.0, (2, 3)),)


def test_multihead_attention_holds_its_projections_as_parameters() -> None:
    assert roles_of(nn.MultiheadAttention(8, 2)) == {
        "in_proj_weight": "attn_qkv",
        "out_proj.weight": "attn_proj",
    }
    assert roles_of(nn.MultiheadAttention(8, 2, kdim=4, vdim=4, add_bias_kv=True)) == {
        "q_proj_weight": "attn_qkv",
        "k_proj_weight": "attn_qkv",
        "v_proj_weight": "attn_qkv",
        "out_proj.weight": "attn_proj",
    }


def test_torch_transformer_layer() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert roles_of(nn.TransformerEncoder(layer, 1)) == {
        "layers.0.self_attn.in_proj_weight": "attn_qkv",
        "layers.0.self_attn.out_proj.weight": "attn_proj",
        "layers.0.linear1.weight": "mlp_fc1",
        "layers.0.linear2.weight": "mlp_fc2",
    }


def test_a_network_with_fc1_and_fc2_of_its_own_is_no_mlp() -> None:
    class LeNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
            self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    assert [layer.role for layer in prunable_layers(LeNet())] == ["stem", "conv", *["classifier"] * 3]


def test_an_mlp_without_names_is_recognised_by_its_widths() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Conv2d(8, 8, 7, padding=3, groups=8)
            self.block = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))

    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), Block(), nn.Linear(8, 2))
    assert [layer.role for layer in prunable_layers(model)] == [
        "patch_embed",
        "depthwise",
        "mlp_fc1",
        "mlp_fc2",
        "classifier",
    ]


def test_gated_mlps() -> None:
    class SwiGLU(nn.Module):  # LLaMA's order: the output projection w2 is in the middle
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.w2, self.w3 = nn.Linear(8, 20), nn.Linear(20, 8), nn.Linear(8, 20)

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w12, self.w3 = nn.Linear(8, 40), nn.Linear(20, 8)

    model = nn.ModuleDict({"embed": nn.Linear(3, 8), "mlp_a": SwiGLU(), "mlp_b": Packed(), "head": nn.Linear(8, 2)})
    found = roles_of(model)
    assert [found[f"mlp_a.{w}.weight"] for w in ("w1", "w2", "w3")] == ["mlp_fc1", "mlp_fc2", "mlp_fc1"]
    assert [found[f"mlp_b.{w}.weight"] for w in ("w12", "w3")] == ["mlp_fc1", "mlp_fc2"]
    assert found["embed.weight"] == "patch_embed"
    assert found["head.weight"] == "classifier"


def test_every_expert_in_a_mixture_of_mlps_is_an_mlp() -> None:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(8)
            self.mlp = nn.ModuleList(nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)) for _ in range(3))

    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), Mixture(), nn.Linear(8, 2))
    assert [layer.role for layer in prunable_layers(model)] == [
        "patch_embed",
        *["mlp_fc1", "mlp_fc2"] * 3,
        "classifier",
    ]


def test_channel_gate_is_other_but_attention_with_a_gate_is_attention() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
            self.gate = nn.Sigmoid()

    class GatedAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.proj = (nn.Linear(8, 8) for _ in range(4))
            self.gate = nn.Sigmoid()

    model = nn.Sequential(nn.Conv2d(3, 8, 3), Gate(), GatedAttention(), nn.Linear(8, 2))
    assert [layer.role for layer in prunable_layers(model)] == [
        "stem",
        *["other"] * 2,
        *["attn_qkv"] * 3,
        "attn_proj",
        "classifier",
    ]


def test_stages_without_metadata_need_differing_widths() -> None:
    class Net(nn.Module):
        def __init__(self, widths: tuple[int, int]) -> None:
            super().__init__()
            a, b = widths
            self.conv1 = nn.Conv2d(3, a, 3)
            self.layer1 = nn.Sequential(nn.Conv2d(a, a, 3), nn.Conv2d(a, a, 3))
            self.layer2 = nn.Sequential(nn.Conv2d(a, b, 3), nn.Conv2d(b, b, 3))
            self.fc = nn.Linear(b, 2)

    assert [layer.stage for layer in prunable_layers(Net((4, 8)))] == [None, 0, 0, 1, 1, None]
    assert {layer.stage for layer in prunable_layers(Net((4, 4)))} == {None}


def test_a_wrapper_has_the_layers_of_the_model_inside() -> None:
    class Wrapper(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

    bare = prunable_layers(on_meta("resnet18"))
    wrapped = prunable_layers(Wrapper(on_meta("resnet18")))
    assert [layer.name for layer in wrapped] == [f"model.{layer.name}" for layer in bare]
    assert [(layer.role, layer.stage, layer.depth) for layer in wrapped] == [
        (layer.role, layer.stage, layer.depth) for layer in bare
    ]


def test_an_encoder_called_embedder_is_no_stem() -> None:
    convs = [nn.Conv2d(3, 4, 3), *(nn.Conv2d(4, 4, 3) for _ in range(15))]
    model = nn.ModuleDict({"embedder": nn.Sequential(*convs), "head": nn.Linear(4, 2)})
    assert [layer.role for layer in prunable_layers(model)] == ["stem", *["conv"] * 15, "classifier"]


def test_upsampling_is_not_downsampling() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 2, 2), nn.ConvTranspose2d(4, 3, 2, 2))
    assert [layer.role for layer in prunable_layers(model)] == ["stem", "downsample", "conv"]


@pytest.mark.slow
def test_a_network_inside_a_patch_embedding_keeps_its_own_roles() -> None:
    found = by_name(on_meta("vit_base_r50_s16_224"))
    inside = Counter(layer.role for name, layer in found.items() if name.startswith("patch_embed.backbone."))
    assert inside == {"stem": 1, "conv": 48, "downsample": 3}
    assert found["patch_embed.proj.weight"].role == "patch_embed"
    assert {layer.stage for layer in found.values()} == {None}


# --- parameters that are no layers ---


def test_norms_embeddings_tokens_and_tables_are_not_layers() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Conv2d(3, 8, 2, 2)
            self.norm = nn.LayerNorm((8, 4, 4))  # a norm whose scale has three dimensions
            self.batch_norm = nn.BatchNorm2d(8)
            self.table = nn.Embedding(16, 8)
            self.pos_embed = nn.Parameter(torch.zeros(1, 16, 8))
            self.latent = nn.Parameter(torch.zeros(1, 4, 8))
            self.gamma = nn.Parameter(torch.ones(8, 1, 1))
            self.head = nn.Linear(8, 2)

    assert list(roles_of(Net())) == ["proj.weight", "head.weight"]


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "test_nfnet", "beit_base_patch16_224", "swinv2_tiny_window8_256"]
)
def test_only_weights_of_timm_models_are_layers(name: str) -> None:
    never = re.compile(r"bias|pos_embed|token|gain|gamma|logit_scale|table|norm")
    names = by_name(on_meta(name))
    assert names
    assert not [key for key in names if never.search(key)]


def test_frozen_weights_are_layers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)).requires_grad_(False)
    assert len(prunable_layers(model)) == 2


def test_shared_weights_are_one_layer_under_their_first_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    assert list(roles_of(model)) == ["0.weight", "2.weight"]
    block = nn.Conv2d(4, 4, 3)
    assert list(roles_of(nn.Sequential(nn.Conv2d(3, 4, 3), block, block))) == ["0.weight", "1.weight"]


def test_a_weight_that_an_embedding_also_uses_is_a_layer() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(50, 8), "body": nn.Linear(8, 8), "head": nn.Linear(8, 50)})
    model["head"].weight = model["table"].weight
    assert [*by_name(model)] == ["body.weight", "head.weight"]
    assert prunable_parameters(model, prunable_layers(model))["head.weight"] is model["table"].weight


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (nn.LSTM(4, 6), ["weight_ih_l0", "weight_hh_l0"]),
        (nn.LSTM(4, 6, proj_size=3), ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"]),
        (
            nn.GRU(4, 6, num_layers=2, bidirectional=True, bias=False),
            [f"weight_{kind}_l{number}{end}" for number in (0, 1) for end in ("", "_reverse") for kind in ("ih", "hh")],
        ),
        (nn.RNN(4, 6), ["weight_ih_l0", "weight_hh_l0"]),
        (nn.GRUCell(4, 6), ["weight_ih", "weight_hh"]),
    ],
)
def test_recurrent_weights_are_layers(module: nn.Module, names: list[str]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), module)
    assert [layer.name for layer in prunable_layers(model)] == ["0.weight", *(f"1.{name}" for name in names)]


def test_timm_subclasses_and_bare_projections_are_layers() -> None:
    model = nn.Sequential(
        ScaledStdConv2d(3, 8, 3), CondConv2d(8, 8, 3, num_experts=4), MultiQueryAttentionV2(8, 8), SwiGLU(8)
    )
    found = by_name(model)
    assert {name: layer.role for name, layer in found.items()} == {
        "0.weight": "stem",
        "1.weight": "conv",
        "2.query_proj": "attn_qkv",
        "2.key_proj": "attn_qkv",
        "2.value_proj": "attn_qkv",
        "2.out_proj": "attn_proj",
        "3.fc1_g.weight": "mlp_fc1",
        "3.fc1_x.weight": "mlp_fc1",
        "3.fc2.weight": "mlp_fc2",
    }
    assert found["1.weight"].shape == (4, 8 * 8 * 9)


# --- errors and parameters ---


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(MmpError, match="BatchNorm2d has no prunable layer"):
        prunable_layers(nn.BatchNorm2d(4))


def test_a_lazy_layer_is_refused() -> None:
    with pytest.raises(MmpError, match=r"'0\.weight' isn't known yet"):
        prunable_layers(nn.Sequential(nn.LazyLinear(2)))


def test_parameters_are_those_of_the_model_and_not_copies() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    found = prunable_parameters(model, prunable_layers(model))
    assert list(found) == ["0.weight", "2.weight"]
    assert found["0.weight"] is model[0].weight


def test_a_missing_or_changed_parameter_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    layers = prunable_layers(model)
    with pytest.raises(MmpError, match=r"no parameter '1\.weight'; did you mean '0\.weight'"):
        prunable_parameters(nn.Sequential(nn.Linear(4, 3)), layers)
    with pytest.raises(MmpError, match=r"'1\.weight' in shape \(5, 3\), not \(2, 3\)"):
        prunable_parameters(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5)), layers)


# --- every architecture of timm ---


def _paths(value: str | tuple[str, ...] | list[str] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


@pytest.mark.slow
@pytest.mark.parametrize("module", timm.list_modules())
def test_every_architecture_of_timm(module: str) -> None:
    names = timm.list_models(module=module)
    model = on_meta(next((name for name in names if name.startswith("test_")), names[0]))
    layers = prunable_layers(model)
    found = {layer.name: layer for layer in layers}
    total = count_weights(layers)
    modules = dict(model.named_modules())
    first_names = {id(parameter): name for name, parameter in model.named_parameters()}

    assert {layer.role for layer in layers} <= set(ROLES)
    keys = model.state_dict()
    assert [key for key in keys if key in found] == list(found)
    assert prunable_parameters(model, layers).keys() == found.keys()
    for path, child in modules.items():
        if isinstance(child, nn.Linear | nn.modules.conv._ConvNd):
            assert first_names[id(child.weight)] in found, f"{path} has no role"
        if isinstance(child, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm | nn.Embedding):
            assert not any(layer.module == path for layer in layers), f"{path} is no layer"

    cfg = model.default_cfg
    for key, roles in (("classifier", {"classifier"}), ("first_conv", {"stem", "patch_embed"})):
        for path in _paths(cfg.get(key)):
            inside = {layer.role for layer in layers if f"{layer.module}.".startswith(f"{path}.")}
            assert inside <= roles, f"timm states {path} as {key}"
    assert any(layer.role in {"stem", "patch_embed"} for layer in layers)

    gate = re.compile(r".*(SE|Ese|SqueezeExcit|SplitAttn|SelectiveKernelAttn).*")
    for layer in layers:  # the one documented reason for a large layer without a role: it gates channels
        if layer.role == "other" and layer.size > 0.02 * total:
            parts = layer.module.split(".")
            around = [type(modules[".".join(parts[:end])]).__name__ for end in range(1, len(parts) + 1)]
            assert any(gate.fullmatch(name) for name in around), f"{layer.name}: {layer.size / total:.1%}"

    stages = sorted({layer.stage for layer in layers if layer.stage is not None})
    assert stages == list(range(len(stages)))
