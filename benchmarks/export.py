"""Exported files: accuracy, bytes and latency of each target.

``python -m benchmarks.export trained`` prunes the demo's CNN, ViT and LeViT on digits, exports them to every target,
and prints their table; completed runs are skipped.
``python -m benchmarks.export paper resnet18 swin_tiny`` exports the paper's models with random weights, pruned to 90 %
by magnitude; without names it exports all four.
``python -m benchmarks.export points SWEEP_FOLDER`` prints the accuracy that each exported configuration lost, over its
seeds.
``python -m benchmarks.export load`` times loading a sparse file with thirty million weights.
``python -m benchmarks.export int8 RUN_FOLDER ...`` compares quantizers (:mod:`benchmarks.export_int8`).
"""

from __future__ import annotations

import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn
from torch.optim.swa_utils import update_bn

from benchmarks.export_int8 import int8
from mmp.config.choices import choose
from mmp.config.registration import register
from mmp.config.schema import ModelConfig
from mmp.errors import MmpError
from mmp.export.latency import Latency, compare_latency
from mmp.export.measure import compressed_size, fill_pruned, total_size, weight_counts
from mmp.export.sparse_file import load_sparse, save_sparse
from mmp.export.targets import TARGETS, Exportable, load_target, logit_difference
from mmp.markdown import table_of
from mmp.models.networks import build_model
from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters
from mmp.pruning.masks import MaskEnforcer, make_masks
from mmp.pruning.sizes import MEGABYTE

SWEEP = Path("results/sweeps/export")
TRAINED = (  # a small LeViT cannot be pruned to 90 %
    ("model=cnn", "data.image_size=16", "budget=0.9"),
    ("model=vit", "data.image_size=16", "budget=0.9"),
    ("model=levit", "data.image_size=32", "budget=0.85"),
)
PAPER = {"vgg11": 32, "resnet18": 32, "levit_384": 224, "swin_tiny": 224}  # image sizes
SPARSITY = 0.9
BATCHES = {32: (1, 32), 224: (1,)}  # 32 images of 224x224 take seconds on one core
SECONDS = 5.0
HEADINGS = ("model", "target", "MB", "of dense float32", "zstd", "sparsity in the file %")


def trained() -> str:
    """Prune, fine-tune and export the small models, and return their table."""
    for settings in TRAINED:
        words = [*settings, "strategy=p70", "sweep=export", "logger=none"]
        subprocess.run([sys.executable, "prune.py", "-m", *words], check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    words = ["select=all", f"target={','.join(TARGETS)}", "force=true"]
    subprocess.run([sys.executable, "-m", "mmp.export", str(SWEEP), *words], check=True)  # noqa: S603
    rows, order = [], list(TARGETS)
    found = [path for path in SWEEP.glob("*/export/*/export.json") if path.parent.name in order]
    for path in sorted(found, key=lambda path: (path.parents[2], order.index(path.parent.name))):
        content = json.loads(path.read_text(encoding="utf-8"))
        sizes, accuracy = content["bytes"], content["accuracy"]
        rows.append(
            [
                content["model"]["label"],
                content["target"],
                *_sizes(sizes["file"], sizes["compressed"], sizes["dense_fp32"]),
                f"{100 * content['weights']['sparsity']:.2f}",
                f"{100 * accuracy['pytorch']:.2f}",
                f"{100 * accuracy['file']:.2f}",
                f"{accuracy['difference']:+.2f}",
                *(ratio_of(one["ratio"], one["quartiles"]) for one in content["latency"]),
            ]
        )
    return table_of([*HEADINGS, "PyTorch %", "file %", "points", "latency, 1", "latency, 32"], rows)


def points(folder: Path) -> str:
    """Return the accuracy points that each configuration lost by export: mean and standard deviation over seeds."""
    found: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for path in sorted(folder.glob("*/export/*/export.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        result = json.loads((path.parents[2] / "result.json").read_text(encoding="utf-8"))
        key = content["model"]["label"], f"{result['signal']}/{result['strategy']}", content["target"]
        for one in (key, (key[0], "all", key[2])):
            found.setdefault(one, []).append((content["accuracy"]["pytorch"], content["accuracy"]["difference"]))
    rows = []
    for key, pairs in sorted(found.items(), key=lambda item: (item[0][1] == "all", item[0])):
        pytorch, lost = zip(*pairs, strict=True)
        spread = f"{statistics.stdev(lost):.2f}" if len(lost) > 1 else ""
        extremes = f"{min(lost):+.2f} to {max(lost):+.2f}"
        accuracy = f"{100 * statistics.mean(pytorch):.2f}"
        rows.append([*key, str(len(lost)), accuracy, f"{statistics.mean(lost):+.3f}", spread, extremes])
    return table_of(["model", "configuration", "target", "runs", "PyTorch %", "points", "spread", "from, to"], rows)


def paper(names: Sequence[str]) -> str:
    """Export the paper's models with random weights, and return their table."""
    rows = []
    for name in names:
        if name not in PAPER:
            raise MmpError(f"{name}: not one of the paper's models; choose from: {', '.join(PAPER)}")
        with tempfile.TemporaryDirectory() as folder:
            rows += list(_paper_rows(name, PAPER[name], Path(folder)))
    return table_of([*HEADINGS, "largest logit error %", "latency, 1", "latency, 32"], rows)


def pruned(config: ModelConfig, size: int, sparsity: float, folder: Path) -> Exportable:
    """Return a model with random weights, pruned by magnitude to the same sparsity in every layer.

    Its batch norms have the statistics of the images; with other statistics the output of a deep network would hardly
    depend on its input.
    """
    torch.manual_seed(0)
    model = build_model(config)
    for module in model.modules():  # weights of zero, as some models start with, would hide the layers before them
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    weights = prunable_parameters(model, prunable_layers(model))
    scores = {key: weight.detach().abs() for key, weight in weights.items()}
    masks = make_masks(scores, dict.fromkeys(weights, sparsity))
    MaskEnforcer(weights).set(masks)
    images = tuple(torch.randn(8, config.in_chans, size, size) for _ in range(2))
    update_bn(images, model)
    return Exportable(config, model.eval(), masks, images, folder)


def _paper_rows(name: str, size: int, folder: Path) -> Iterable[list[str]]:
    config: Any = OmegaConf.to_object(OmegaConf.merge(ModelConfig, OmegaConf.to_container(choose("model", name))))
    source = pruned(config, size, SPARSITY, folder)
    (folder / "dense").mkdir()
    model, masks = source.model, source.masks
    filled = copy.deepcopy(model)
    fill_pruned(filled, masks)
    dense = source.with_weights(filled, folder / "dense")
    dense_size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    for target in map(load_target, TARGETS):
        paths = [folder / one for one in target.files]
        path, dense_path = paths[0], dense.scratch / target.files[0]
        target.write(source, path)
        target.write(dense, dense_path)
        engine, reference = target.open(path, source), target.open(dense_path, dense)
        found = [
            compare_latency(engine, reference, torch.randn(batch, *source.images.shape[1:]), SECONDS)
            for batch in BATCHES[size]
        ]
        yield [
            name,
            target.name,
            *_sizes(total_size(paths), compressed_size(paths), dense_size),
            f"{100 * weight_counts(target.weights(path, source), masks, name).sparsity:.2f}",
            f"{100 * logit_difference(engine, source, target):.2g}",
            *_latencies(found),
        ]


def load() -> str:
    """Return a table of the time to load a sparse file with thirty million weights."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for sparsity in (0.0, 0.5, 0.8, 0.9, 0.95):
            state = {f"{i}.weight": torch.randn(1000, 1000, generator=generator) for i in range(30)}
            for value in state.values():
                value.masked_fill_(torch.rand(value.shape, generator=generator) < sparsity, 0)
            path = Path(folder) / "model.sparse.safetensors"
            save_sparse(path, state)
            seconds = []
            for _ in range(7):
                start = time.perf_counter()
                load_sparse(path)
                seconds.append(time.perf_counter() - start)
            share = path.stat().st_size / (4 * 30e6)
            rows.append(
                [f"{100 * sparsity:g}", f"{share:.3f}", f"{statistics.median(seconds):.2f}", f"{max(seconds):.2f}"]
            )
    return table_of(["sparsity %", "of dense float32", "seconds, median of 7", "slowest"], rows)


def _sizes(file: int, compressed: int, dense: int) -> list[str]:
    return [f"{file / MEGABYTE:.3f}", f"{file / dense:.3f}", f"{compressed / dense:.3f}"]


def _latencies(found: Sequence[Latency]) -> list[str]:
    return [*(ratio_of(one.ratio, one.quartiles) for one in found), *[""] * (2 - len(found))]


def ratio_of(ratio: float, quartiles: Sequence[float]) -> str:
    """Return a ratio and its quartiles as a cell."""
    return f"{ratio:.2f} ({quartiles[0]:.2f} to {quartiles[1]:.2f})"


def main(words: Sequence[str]) -> str:
    """Run the command on the command line and return its table."""
    command, *names = words or [""]
    if command == "trained":
        return trained()
    if command == "points" and len(names) == 1:
        return points(Path(names[0]))
    if command == "paper":
        return paper(names or list(PAPER))
    if command == "load":
        return load()
    if command == "int8":
        return int8(names)
    raise MmpError("python -m benchmarks.export trained, points SWEEP_FOLDER, paper, load or int8 RUN_FOLDER ...")


if __name__ == "__main__":
    register()
    torch.set_num_threads(1)
    sys.stdout.write(main(sys.argv[1:]) + "\n")
