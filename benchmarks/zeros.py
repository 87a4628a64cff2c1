"""The gain from unstructured zeros in engines that have support for them.

``python -m benchmarks.zeros`` times OpenVINO in INT8 with and without its decompression of sparse weights. It also
times ExecuTorch's XNNPACK, which has sparse kernels for 1x1 convolutions, with pruned and with dense weights.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.export import pruned, ratio_of
from mmp.config.schema import ModelConfig
from mmp.export.latency import compare_latency
from mmp.export.targets import Engine, Exportable, load_target, logit_difference
from mmp.markdown import table_of
from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters
from mmp.pruning.masks import MaskEnforcer, Masks, make_masks

CHANNELS, DEPTH, SIZE, SECONDS = 256, 8, 32, 10.0
RATE = 0.75  # OpenVINO may compress a layer with a larger share of zeros


def xnnpack_zeros() -> Iterator[list[str]]:
    """Time pruned 1x1 convolutions with ExecuTorch over the same convolutions with dense weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, CHANNELS, 3, stride=2, padding=1), nn.ReLU()]
    for _ in range(DEPTH):
        layers += [nn.Conv2d(CHANNELS, CHANNELS, 1), nn.ReLU()]
    dense = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 10)).eval()
    images = torch.randn(1, 3, 2 * SIZE, 2 * SIZE)
    target = load_target("executorch")
    with tempfile.TemporaryDirectory() as folder:

        def source(sparsity: float) -> Exportable:
            model = copy.deepcopy(dense)
            weights = prunable_parameters(model, prunable_layers(model))
            scores = {name: weight.detach().abs() for name, weight in weights.items()}
            masks = make_masks(scores, dict.fromkeys(weights, sparsity)) if sparsity else Masks({})
            MaskEnforcer(weights).set(masks)
            return Exportable(ModelConfig("1x1"), model, masks, (images,), Path(folder))

        engines = {}
        for sparsity in (0.0, 0.9, 0.95):
            path, one = Path(folder) / f"{sparsity}.pte", source(sparsity)
            target.write(one, path)
            engines[sparsity] = target.open(path, one)
            logit_difference(engines[sparsity], one, target)
        for sparsity in (0.9, 0.95):
            found = compare_latency(engines[sparsity], engines[0.0], images, SECONDS)
            ratio = ratio_of(found.ratio, found.quartiles)
            yield [target.engine, "1x1 convolutions, float32, over dense ones", f"{100 * sparsity:g}", "1", ratio]


def openvino_zeros() -> Iterator[list[str]]:
    """Time an INT8 ViT with OpenVINO's decompression of sparse weights, which needs a CPU with AMX."""
    size, target = 32, load_target("onnx_int8")
    config = ModelConfig("vit_base_patch16_224", num_classes=10, kwargs={"depth": 4, "img_size": size})
    for sparsity in (0.8, 0.9, 0.95):
        with tempfile.TemporaryDirectory() as folder:
            source = pruned(config, size, sparsity, Path(folder))
            path = source.scratch / target.files[0]
            target.write(source, path)
            engines = _openvino(path, CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE=RATE), _openvino(path)
            for batch in (1, 32):
                found = compare_latency(*engines, torch.randn(batch, config.in_chans, size, size), SECONDS)
                ratio = ratio_of(found.ratio, found.quartiles)
                yield [
                    "OpenVINO",
                    "sparse weights decompression, int8, over none",
                    f"{100 * sparsity:g}",
                    str(batch),
                    ratio,
                ]


def _openvino(path: Path, **options: Any) -> Engine:
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads(), **options})
    return lambda images: torch.from_numpy(compiled(images.numpy())[0].copy())


def zeros() -> str:
    """Return the table of ratios."""
    rows = [*openvino_zeros(), *xnnpack_zeros()]
    return table_of(["engine", "what", "sparsity %", "batch", "latency ratio"], rows)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(__doc__)
    sys.stdout.write(zeros() + "\n")
