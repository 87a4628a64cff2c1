"""Channels that nothing reads are removed from every file, and the file still computes what the run has measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from resources import RESOURCES, lack
from sweeping import arguments, environment
from torch import Tensor, nn

from mmp import channel_groups, channel_masks, load_shrunk, load_sparse, prunable_layers, prunable_parameters
from mmp.data.module import ImageData
from mmp.export.__main__ import main
from mmp.export.card import as_card, as_line
from mmp.export.result import ExportResult
from mmp.export.source import ExportedRun, load_config
from mmp.export.targets import TARGETS, load_target
from mmp.models.networks import build_bare
from mmp.models.weights import load_weights
from mmp.pruning.channels import shrink as shrinking
from mmp.pruning.channels.group import ChannelGroup
from mmp.pruning.masks import Masks, save_masks
from mmp.tensors import save_tensors

pytestmark = pytest.mark.slow

INSTALLED = [name for name in TARGETS if name not in RESOURCES or not lack(name)]
MaskMaker = Callable[[nn.Module, Tensor], Masks]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    options = ["model=cnn,vit", "strategy=p30", "dense.epochs=2", "finetune.epochs=1"]
    done = warm.run(arguments(results, *options)[1:], environment())
    assert done.returncode == 0, done.stderr
    return results / "sweeps/sweep"


@pytest.fixture
def run_with(runs: Path, tmp_path: Path) -> Callable[[str, MaskMaker], Path]:
    """Return a function that makes a run with other masks of one of the models."""

    def make(name: str, masks_of: MaskMaker) -> Path:
        (original,) = runs.glob(f"{name}-*")
        folder = Path(shutil.copytree(original, tmp_path / original.name))
        network, images, labels = masked(folder), *test_images(folder)
        chosen = masks_of(network, images[:1])
        masks = Masks({key: mask & (network.get_parameter(key) != 0) for key, mask in chosen.items()})
        with torch.no_grad():
            for key, mask in masks.items():
                network.get_parameter(key).mul_(mask)
            accuracy = float((network(images).argmax(1) == labels).double().mean())
        save_tensors(folder / "model.safetensors", network.state_dict())
        save_masks(masks, folder / "masks.safetensors")
        result = json.loads((folder / "result.json").read_text())
        del result["digests"]
        result["masks_hash"] = masks.digest()
        result["accuracy"]["finetuned"]["test"] = accuracy
        result["files"] = {file: (folder / file).stat().st_size for file in ("model.safetensors", "masks.safetensors")}
        (folder / "result.json").write_text(json.dumps(result))
        return folder

    return make


def masked(folder: Path) -> nn.Module:
    """Return the run's network in its original shapes."""
    network = build_bare(load_config(folder).model).eval()
    load_weights(network, folder / "model.safetensors")
    return network


def test_images(folder: Path) -> tuple[Tensor, Tensor]:
    config = load_config(folder)
    batches = list(ImageData(config.data, config.seed).test_dataloader())
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


test_images.__test__ = False  # type: ignore[attr-defined]


def scores_of(network: nn.Module) -> dict[str, Tensor]:
    weights = prunable_parameters(network, prunable_layers(network))
    return {name: weight.detach().abs() for name, weight in weights.items()}


def whole_channels(network: nn.Module, image: Tensor) -> Masks:
    groups = channel_groups(network, image)
    return channel_masks(groups, scores_of(network), {group.name: 0.5 for group in groups}, multiple=1)


def dead_channels(network: nn.Module, _: Tensor) -> Masks:
    """Return masks of single weights: half of them at random, and all that read the first units of the second MLP."""
    generator = torch.Generator().manual_seed(0)
    masks = {name: torch.rand(s.shape, generator=generator) < 0.5 for name, s in scores_of(network).items()}
    masks["blocks.1.mlp.fc2.weight"][:, :40] = False
    return Masks(masks)


def one_weight(network: nn.Module, _: Tensor) -> Masks:
    masks = {name: torch.ones(score.shape, dtype=torch.bool) for name, score in scores_of(network).items()}
    masks["blocks.0.mlp.fc2.weight"][0, 0] = False
    return Masks(masks)


def read(folder: Path, target: str) -> dict[str, Any]:
    return json.loads((folder / "export" / target / "export.json").read_text())


def export(folder: Path, *words: str) -> int:
    return main([str(folder), *words, *(() if any(w.startswith("seconds") for w in words) else ("seconds=0",))])


@pytest.mark.parametrize(("name", "masks_of"), [("cnn", whole_channels), ("vit", dead_channels)])
def test_every_file_lacks_the_channels_that_nothing_reads(
    run_with: Callable[[str, MaskMaker], Path], name: str, masks_of: MaskMaker, tmp_path: Path
) -> None:
    folder = run_with(name, masks_of)
    network, (images, _) = masked(folder), test_images(folder)
    run = ExportedRun(folder, (), tmp_path)
    masks = run.pruned.masks
    with torch.inference_mode():
        expected = network(images)
    assert export(folder, f"target={','.join(INSTALLED)}") == 0
    for target in map(load_target, INSTALLED):
        content, place = read(folder, target.name), folder / "export" / target.name
        whole = target.name == "sparse"
        exported = run.pruned if whole else run.source
        found = target.open(place / target.files[0], exported)(images)
        error = float((found - expected).abs().max() / expected.abs().max())
        assert error < (0.5 if target.name == "onnx_int8" else 1e-4), target.name
        assert bool(content["channels"]["removed"]) != whole
        assert content["channels"]["kept"] == {}
        sizes, counts = content["network"], content["weights"]
        assert sizes["dense_parameters"] == sum(p.numel() for p in network.parameters())
        assert sizes["parameters"] == sum(p.numel() for p in exported.model.parameters())
        assert (sizes["parameters"] < sizes["dense_parameters"]) != whole
        assert (sizes["multiply_adds"] < sizes["dense_multiply_adds"]) != whole
        assert content["bytes"]["file"] < content["bytes"]["dense_file"]
        assert counts["prunable"] == masks.total
        assert counts["sparsity_of_masks"] == masks.sparsity
        assert counts["kept"] == masks.total - sum(masks.pruned.values())
        assert counts["kept"] == counts["nonzero"] + counts["rounded_to_zero"] + counts["removed"]
        assert counts["sparsity"] == pytest.approx(1 - counts["nonzero"] / masks.total)
        if target.name != "onnx_int8":
            stored = {key: tensor.clone() for key, tensor in target.weights(place / target.files[0], exported).items()}
            assert counts["nonzero"] == sum(int(tensor.count_nonzero()) for tensor in stored.values())
            assert counts["rounded_to_zero"] == 0
        card = (place / "README.md").read_text()
        assert f"| parameters | {sizes['parameters']:,} | {sizes['dense_parameters']:,} |" in card
        for group, (removed, of) in content["channels"]["removed"].items():
            assert f"| `{group}` | {removed} | {of} |" in card
        assert ("a removed weight counts as pruned" in card) != whole
        assert ("The file has all channels of the dense model." in card) == whole
    removed = read(folder, "onnx")["channels"]["removed"]
    assert ("blocks.1.mlp.fc1.weight" in removed) == (name == "vit")
    build_bare(load_config(folder).model).load_state_dict(
        load_sparse(folder / "export/sparse/model.sparse.safetensors")
    )


def test_the_shrunk_file_has_the_bits_of_the_smaller_network(
    run_with: Callable[[str, MaskMaker], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_with("vit", dead_channels)
    assert export(folder, "target=shrunk") == 0
    source, (images, _) = ExportedRun(folder, (), tmp_path).source, test_images(folder)
    loaded = load_shrunk(folder / "export/shrunk/model.shrunk.safetensors")
    with torch.inference_mode():
        assert torch.equal(loaded(images), source.model(images))
    assert loaded.blocks[1].mlp.fc1.out_features < source.model.blocks[0].mlp.fc1.out_features
    card = (folder / "export/shrunk/README.md").read_text()
    monkeypatch.chdir(folder / "export/shrunk")
    scope: dict[str, Any] = {"images": images}
    exec(card.partition("```python\n")[2].partition("```")[0], scope)  # as a reader would paste it
    assert torch.equal(scope["logits"], loaded(images))


def test_the_dense_model_beside_a_smaller_one_has_all_channels(
    run_with: Callable[[str, MaskMaker], Path], tmp_path: Path
) -> None:
    run = ExportedRun(run_with("cnn", whole_channels), (), tmp_path)
    dense, origin = run.dense
    assert origin == "trained"
    sizes = [sum(p.numel() for p in one.model.parameters()) for one in (dense, run.pruned, run.source)]
    assert sizes[0] == sizes[1] > sizes[2]
    assert not dense.removal.removed


def test_groups_are_found_once_for_all_targets(
    run_with: Callable[[str, MaskMaker], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls = run_with("vit", dead_channels), []
    find = shrinking.channel_groups
    monkeypatch.setattr(shrinking, "channel_groups", lambda *a: calls.append(1) or find(*a))
    assert export(folder, "target=shrunk,onnx,sparse") == 0
    assert calls == [1]


def test_a_group_that_cannot_be_removed_is_named(
    run_with: Callable[[str, MaskMaker], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run_with("cnn", whole_channels)
    find = shrinking.channel_groups

    def with_a_wrong_one(network: nn.Module, image: Tensor) -> list[ChannelGroup]:
        wrong, *others = find(network, image)
        shifted = {p: torch.roll(c, 1, 0) if p.side == "out" else c for p, c in wrong.channels.items()}
        return [ChannelGroup(shifted), *others]  # removes other rows than those whose columns are unread

    monkeypatch.setattr(shrinking, "channel_groups", with_a_wrong_one)
    assert export(folder, "target=shrunk") == 0
    content = read(folder, "shrunk")
    ((name, reason),) = content["channels"]["kept"].items()
    assert "logits differ" in reason
    assert name not in content["channels"]["removed"]
    assert content["channels"]["removed"]
    assert f"| `{name}` | {reason} |" in (folder / "export/shrunk/README.md").read_text()
    assert f"{name}: its unread channels are not removed" in caplog.text


def test_a_network_whose_channels_cannot_be_found_is_exported_whole(
    run_with: Callable[[str, MaskMaker], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run_with("vit", dead_channels)

    def fail(*_: object) -> list[ChannelGroup]:
        raise RuntimeError("no experiment\nfits")

    monkeypatch.setattr(shrinking, "channel_groups", fail)
    assert export(folder, "target=shrunk") == 0
    (line,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and "channels" in r.getMessage()]
    assert line.endswith("exported with all channels, since unread ones cannot be found (no experiment)")
    content = read(folder, "shrunk")
    assert content["channels"] == {"removed": {}, "kept": {}}
    assert content["network"]["parameters"] == content["network"]["dense_parameters"]


def test_without_unread_channels_nothing_is_looked_for(
    run_with: Callable[[str, MaskMaker], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = run_with("vit", one_weight)
    monkeypatch.setattr(shrinking, "channel_groups", lambda *_: pytest.fail("experiments are not needed"))
    run = ExportedRun(folder, (), tmp_path)
    assert run.source.model is run.pruned.model
    assert run.source.masks is run.pruned.masks
    assert export(folder, "target=shrunk") == 0
    result = ExportResult.from_dict(read(folder, "shrunk"))
    assert "removed" not in as_card(result, "").replace("The file has all channels", "")
    assert "parameters" not in as_line(result)
