"""Targets and latency, each alone: every architecture of the paper, and models that cannot be exported."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from resources import RESOURCES, lack, needs
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from mmp.config.schema import ModelConfig
from mmp.errors import MmpError
from mmp.export import targets
from mmp.export.latency import FEWEST, compare_latency
from mmp.export.measure import fill_pruned, weight_counts
from mmp.export.targets import TARGETS, Exportable, load_target, logit_difference
from mmp.models.networks import build_model
from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters
from mmp.pruning.masks import MaskEnforcer, Masks, make_masks

# The four architectures of the paper, without the repetitions that only cost time.
ARCHITECTURES: dict[str, tuple[ModelConfig, int]] = {
    "vgg11": (ModelConfig("vgg11_bn_small", num_classes=10), 32),
    "resnet18": (ModelConfig("resnet18", num_classes=43), 32),
    "levit": (
        ModelConfig(
            "levit_384",
            num_classes=10,
            kwargs={
                "embed_dim": [48, 64],
                "key_dim": 16,
                "num_heads": [2, 3],
                "depth": [1, 1],
            },
        ),
        224,
    ),
    "swin": (
        ModelConfig(
            "swin_tiny_patch4_window7_224",
            num_classes=10,
            kwargs={"depths": [2, 1], "num_heads": [2, 4], "embed_dim": 32, "img_size": 56},
        ),
        56,
    ),
}


def pruned(config: ModelConfig, size: int, scratch: Path) -> Exportable:
    """Return a random model with its smallest weights pruned, and BatchNorm statistics of its images.

    With other statistics, the output of a deep network would hardly depend on the images. BatchNorm's factors have both
    signs: folded into a convolution, a negative one turns 0.0 into -0.0.
    """
    torch.manual_seed(0)
    model = build_model(config)
    images = tuple(torch.randn(4, config.in_chans, size, size) for _ in range(2))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.weight.data[::2].neg_()
            nn.init.uniform_(module.bias, -0.5, 0.5)
    layers = prunable_layers(model)
    weights = prunable_parameters(model, layers)
    masks = make_masks({name: weight.detach().abs() for name, weight in weights.items()}, dict.fromkeys(weights, 0.9))
    MaskEnforcer(weights).set(masks)
    update_bn(images, model)
    return Exportable(config, model.eval(), masks, images, scratch)


def signs(weights: dict[str, Tensor], masks: Masks) -> int:
    """Return the number of pruned weights that are -0.0."""
    return sum(int(torch.signbit(weights[name][~mask]).sum()) for name, mask in masks.items())


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_goes_through_every_target(architecture: str, tmp_path: Path) -> None:
    source = pruned(*ARCHITECTURES[architecture], tmp_path)
    for name in TARGETS:
        if name in RESOURCES and lack(name):  # extras of their own
            continue
        target = load_target(name)
        path = tmp_path / target.files[0]
        target.write(source, path)
        engine = target.open(path, source)
        assert logit_difference(engine, source, target) < (0.5 if name == "onnx_int8" else 1e-4)
        assert engine(source.batches[0]).shape == (4, source.config.num_classes)
        weights = target.weights(path, source)
        assert {key: value.shape for key, value in weights.items()} == {k: m.shape for k, m in source.masks.items()}
        counts = weight_counts(weights, source.masks, name)
        assert counts.rounded_to_zero <= (0.02 * counts.kept if name == "onnx_int8" else 0)
        assert counts.types == (["int8"] if name == "onnx_int8" else ["float32"])
        assert signs(weights, source.masks) == 0, name


@pytest.mark.slow
def test_values_that_a_model_caches_are_constants_of_its_own_weights(tmp_path: Path) -> None:
    source = pruned(*ARCHITECTURES["levit"], tmp_path)
    dense = source.with_weights(copy.deepcopy(source.ready_to_trace()), tmp_path)
    biases = [value for name, value in dense.model.named_parameters() if name.endswith("attention_biases")]
    for value in biases:
        nn.init.normal_(value)
    assert biases
    outputs = []
    for one in (source, dense):
        program = torch.export.export(one.ready_to_trace(), (one.images,))
        assert "aten.index.Tensor" not in program.graph_module.code
        outputs.append(program.module()(one.images))
        torch.testing.assert_close(outputs[-1], one.model.train().eval()(one.images))
    assert not torch.allclose(*outputs)


@pytest.mark.parametrize("name", ["onnx", "executorch"])
def test_exporters_get_a_model_with_filled_caches(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, kept = pruned(*ARCHITECTURES["levit"], tmp_path), []

    def export(model: nn.Module, *_: Any, **__: Any) -> None:
        kept.extend(one.attention_bias_cache for one in model.modules() if hasattr(one, "attention_bias_cache"))
        raise RuntimeError

    monkeypatch.setattr(torch.export, "export", export)
    monkeypatch.setattr(torch.onnx, "export", export)
    with pytest.raises(MmpError, match="torch cannot export it"):
        resolve_name(TARGETS[name])().write(source, tmp_path / "file")
    assert kept
    assert all(kept)


@pytest.mark.slow
def test_onnxruntime_gets_its_threads_and_scales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx
    import onnxruntime

    source, opened, session = pruned(*ARCHITECTURES["resnet18"], tmp_path), [], onnxruntime.InferenceSession

    def opening(*arguments: Any, **options: Any) -> Any:
        opened.append(session(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    target, path = load_target("onnx_int8"), tmp_path / "model.onnx"
    target.write(source, path)
    monkeypatch.setattr(onnxruntime, "InferenceSession", opening)
    target.open(path, source)
    options = opened[0].get_session_options()
    assert options.intra_op_num_threads == 3
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    for name, mask in source.masks.items():
        (scale,) = (value for key, value in stored.items() if key in (f"{name}_scale", f"{name}.T_scale"))
        assert scale.shape == (len(mask),)  # one scale per output channel


@pytest.mark.slow
def test_the_card_of_every_model_has_five_lines_that_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = load_target("sparse")
    for architecture in ("swin", "vgg11", "resnet18"):
        source = pruned(*ARCHITECTURES[architecture], tmp_path)
        target.write(source, tmp_path / target.files[0])
        assert len(target.usage(source).splitlines()) <= 5
        monkeypatch.chdir(tmp_path)
        scope: dict[str, Any] = {"images": source.images}
        exec(target.usage(source), scope)  # as a reader would paste it
        torch.testing.assert_close(scope["logits"], source.model(source.images))


class Branches(nn.Module):
    """Branches on the values of its images, which no graph can express."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return self.fc(flat) if flat.sum() > 0 else self.fc(-flat)


class FixedBatch(nn.Module):
    """Accepts batches of two images only."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(images.reshape(2, 4))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "part"), [(Branches, "torch cannot export it"), (FixedBatch, "onnxruntime cannot run it")]
)
@pytest.mark.parametrize("name", ["onnx", "onnx_int8"])
def test_models_that_cannot_be_exported_are_errors(kind: type[nn.Module], part: str, name: str, tmp_path: Path) -> None:
    masks = Masks({"fc.weight": torch.ones(3, 4, dtype=torch.bool)})
    source = Exportable(ModelConfig("x", label="odd"), kind().eval(), masks, (torch.ones(2, 1, 2, 2),), tmp_path)
    target = load_target(name)

    def export() -> None:
        target.write(source, tmp_path / "file")
        logit_difference(target.open(tmp_path / "file", source), source, target)

    with pytest.raises(MmpError) as raised:
        export()
    for words in (f"odd as target={name}: {part}", "nothing was written", "target=sparse"):
        assert words in str(raised.value)
    assert ("target=openvino" in str(raised.value)) == (kind is FixedBatch)  # OpenVINO needs torch's exporter, too


@pytest.mark.slow
@needs("executorch")
@pytest.mark.parametrize("kind", [Branches, FixedBatch])
def test_models_that_executorch_does_not_support_are_errors(kind: type[nn.Module], tmp_path: Path) -> None:
    source = Exportable(ModelConfig("x", label="odd"), kind().eval(), Masks({}), (torch.ones(2, 1, 2, 2),), tmp_path)
    with pytest.raises(
        MmpError,
        match=r"odd as target=executorch: torch cannot export it .* nothing was written\. Try target=sparse, or newer",
    ):
        load_target("executorch").write(source, tmp_path / "model.pte")
    (tmp_path / "model.pte").write_bytes(b"no program")
    with pytest.raises(MmpError, match="odd as target=executorch: ExecuTorch with XNNPACK cannot run it"):
        load_target("executorch").open(tmp_path / "model.pte", source)


class Convolutions(nn.Module):
    """A wide convolution, a depthwise one, and a linear layer: XNNPACK stores each in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 6, (3, 2), bias=False), nn.BatchNorm2d(6)
        self.depthwise, self.fc = nn.Conv2d(6, 6, (3, 2), groups=6), nn.Linear(36, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.depthwise(self.norm(self.conv(images))).flatten(1))


@pytest.mark.slow
@needs("executorch")
def test_zeros_are_counted_in_the_bytes_of_an_executorch_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model, target = Convolutions().eval(), load_target("executorch")
    nn.init.uniform_(model.norm.weight, -1.5, -0.5)
    layers = ("conv", "depthwise", "fc")
    masks = Masks({f"{name}.weight": torch.rand(model.get_submodule(name).weight.shape) < 0.3 for name in layers})
    MaskEnforcer({name: model.get_parameter(name) for name in masks}).set(masks)
    source, path = Exportable(ModelConfig("x"), model, masks, (torch.randn(3, 2, 6, 5),), tmp_path), tmp_path / "m.pte"
    target.write(source, path)
    engine = target.open(path, source)
    assert logit_difference(engine, source, target) < 1e-5
    assert signs(target.weights(path, source), masks) == 0
    many = torch.randn(70, 2, 6, 5)  # more than the largest batch of the file
    torch.testing.assert_close(engine(many), model(many).detach(), rtol=1e-4, atol=1e-5)
    assert capfd.readouterr() == ("", "")

    content = path.read_bytes()
    scale = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
    expected = {
        "conv.weight": (model.conv.weight * scale.view(-1, 1, 1, 1)).detach(),
        "depthwise.weight": model.depthwise.weight.detach(),
        "fc.weight": model.fc.weight.detach(),
    }
    orders = {"conv.weight": (0, 2, 3, 1), "depthwise.weight": (2, 3, 0, 1), "fc.weight": (0, 1)}
    found = target.weights(path, source)
    assert weight_counts(found, masks, "x").rounded_to_zero == 0
    for name, right in expected.items():
        torch.testing.assert_close(found[name], right)
        held = found[name].permute(orders[name])
        start = content.index(held.numpy().tobytes())  # the order in the file
        place = int((~masks[name]).permute(orders[name]).flatten().nonzero()[-1])
        changed = bytearray(content)
        changed[start + 4 * place + 2] = 1
        path.write_bytes(changed)
        with pytest.raises(MmpError, match=f"1 pruned weights of '{name}' are not zero"):
            weight_counts(target.weights(path, source), masks, "x")
        changed[start : start + held.numel() * 4] = bytes(range(held.numel())) * 4
        path.write_bytes(changed)
        with pytest.raises(MmpError, match=f"weight '{name}' is not in the file"):
            target.weights(path, source)


def test_a_file_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    source = Exportable(ModelConfig("x", label="odd"), model, Masks({}), (torch.ones(5, 1, 2, 2),), tmp_path)
    target = load_target("sparse")

    def engine(change: Any) -> targets.Engine:
        return lambda images: change(model(images).detach())

    assert logit_difference(engine(lambda x: x), source, target) == 0
    assert logit_difference(engine(lambda x: 1.0001 * x), source, target) == pytest.approx(1e-4, rel=0.01)
    for change, part in (
        (lambda x: x + 0.1, "differ by 0.1"),
        (lambda x: 1.01 * x, "differ by"),
        (lambda x: x[:, :2], "shape (3, 2)"),
        (lambda x: x[:1], "shape (1, 3)"),
        (lambda x: x / 0, "infinity"),
        (lambda x: x.reshape(3, 3), "cannot run it (RuntimeError"),
    ):
        with pytest.raises(MmpError) as raised:
            logit_difference(engine(change), source, target)
        assert part in str(raised.value)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(MmpError, match=r"target=onnx_int8 needs onnxruntime: pip install 'mmp\[export\]'"):
        load_target("onnx_int8")
    assert load_target("sparse").name == "sparse"


def test_a_pruned_weight_that_is_not_zero_in_a_file_is_an_error() -> None:
    masks = Masks({"a": torch.tensor([True, False, False, True])})
    counts = weight_counts({"a": torch.tensor([1, 0, 0, 0], dtype=torch.int8)}, masks, "x")
    assert (counts.nonzero, counts.rounded_to_zero, counts.sparsity) == (1, 1, 0.75)
    for wrong in (1.0, float("nan")):
        with pytest.raises(MmpError, match="1 pruned weights of 'a' are not zero"):
            weight_counts({"a": torch.tensor([1.0, wrong, 0.0, 1.0])}, masks, "x")


@pytest.mark.parametrize("kept", [0, 1, 9])
def test_an_almost_empty_layer_is_filled_too(kept: int) -> None:
    model = nn.Sequential(nn.Linear(100, 50))
    mask = torch.arange(5000).view(50, 100) < kept
    with torch.no_grad():
        model[0].weight.copy_(0.25 * mask)
    fill_pruned(model, Masks({"0.weight": mask}))
    assert (model[0].weight != 0).all()
    assert float(model[0].weight.detach().norm()) == pytest.approx(0.25 * kept**0.5 if kept else 50**0.5, rel=0.05)


def test_a_filled_model_has_no_zeros_and_the_same_norms(conv_net: nn.Module) -> None:
    weights = prunable_parameters(conv_net, prunable_layers(conv_net))
    masks = Masks({name: torch.rand(weight.shape) < 0.5 for name, weight in weights.items()})
    MaskEnforcer(weights).set(masks)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    fill_pruned(conv_net, masks)
    for name, weight in weights.items():
        assert (weight != 0).all()
        filled, kept = (float(weight.detach()[which].std()) for which in (~masks[name], masks[name]))
        assert filled == pytest.approx(kept, rel=0.5)
        torch.testing.assert_close(weight.norm(), before[name].norm())
        shrunk = weight[masks[name]] / before[name][masks[name]]
        assert float(shrunk.max()) == pytest.approx(float(shrunk.min()), rel=1e-4)
        assert 0 < float(shrunk.max()) < 1


# --- latency ---


def test_latency_is_the_ratio_of_times_in_alternation() -> None:
    called = []

    def model(_: Tensor) -> None:
        called.append("model")

    def dense(_: Tensor) -> None:
        called.append("dense")

    seconds = [2, 4, 4, 1, 3, 6, 8, 4, 2, 1]  # in the order of the calls below
    times = iter([float(time) for one in seconds for time in (0, one)])  # before and after each call
    found = compare_latency(model, dense, torch.zeros(3, 1, 2, 2), budget=0.0, clock=lambda: next(times))
    assert called == ["model", "dense", *["model", "dense", "dense", "model"] * 2, "model", "dense"]
    assert (found.batch, found.pairs) == (3, FEWEST)
    assert (found.seconds, found.dense_seconds) == (2.0, 4.0)  # of 2, 1, 3, 4, 2 and 4, 4, 6, 8, 1
    assert found.ratio == 0.5  # of 2/4, 1/4, 3/6, 4/8, 2/1
    assert found.quartiles == (0.5, 0.5)
    assert json.loads(json.dumps(asdict(found)))["quartiles"] == [0.5, 0.5]
