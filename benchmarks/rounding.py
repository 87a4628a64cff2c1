"""Weights rounded to eight and four bits: each to the nearest value, or so that each layer's output changes least.

``python -m benchmarks.rounding RUN_FOLDER...`` prints, over these runs, the change of the logits on validation images:
with rounded weights alone, and in a file of ``target=onnx_int8`` that is written from them.
"""

from __future__ import annotations

import copy
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mmp.config.registration import register
from mmp.export.source import ExportedRun
from mmp.export.targets import Engine, Exportable, load_target
from mmp.markdown import table_of
from mmp.pruning.layers.forward import LayerWalk
from mmp.pruning.reconstruction.least_squares import solve_rows
from mmp.pruning.reconstruction.moments import Moments
from mmp.pruning.row_systems import factorise, with_ridge

IMAGES, RIDGE = 256, 0.01
RULES = ("nearest", "nearest, bias refitted", "least squares")


def rounded(source: Exportable, bits: int, rule: str) -> Exportable:
    """Return a model whose weights are rounded, symmetrically per output channel; pruned weights stay zero.

    Layers are rounded in forward order. Each layer reads the outputs of the rounded layers before it; its target is the
    output that it had in the original model.

    Args:
        source: The model.
        bits: Bits of a weight.
        rule: One of `RULES`.
    """
    model, levels = copy.deepcopy(source.model), 2 ** (bits - 1) - 1
    images = list(torch.cat(source.batches)[:IMAGES].split(64))
    walk, before = LayerWalk(model, source.masks, images), LayerWalk(source.model, source.masks, images)
    for name in walk.order:
        if walk.unfit(name):
            continue
        weight, norm, biases = model.get_parameter(name), walk.norm_behind(name), walk.biases(name)
        if rule == "nearest":
            weight.copy_(_nearest(weight, levels))
            continue
        pairs = zip(walk.inputs(name), before.products(name), strict=True)
        moments = Moments.of(pair for batch in pairs for pair in zip(*batch, strict=True))
        centred = norm is not None or all(bias is not None for bias in biases)
        if rule == "least squares":
            weight.copy_(_least_squares(moments, source.masks[name], weight, levels, centred))
        else:
            weight.copy_(_nearest(weight, levels))
        if centred:
            constant = moments.best_constant(weight).float()
            if norm is not None:
                norm.running_mean.sub_(constant)
            else:
                for bias in {id(bias): bias for bias in biases}.values():
                    bias.add_(constant)
    return replace(source, model=model)


def _nearest(weight: Tensor, levels: int) -> Tensor:
    scale = weight.flatten(1).abs().amax(1).clamp_min(1e-12).view(-1, *[1] * (weight.dim() - 1)) / levels
    return (weight / scale).round() * scale


def _least_squares(moments: Moments, mask: Tensor, weight: Tensor, levels: int, centred: bool) -> Tensor:
    """Round the solution of the layer's system column by column; each column compensates for the errors before it.

    With A = L L^T the error of a row is |L^T e|^2 (OPTQ, Frantar et al. 2023, arXiv 2210.17323, with the columns taken
    from last to first). The largest weight keeps its code, so that the exporter finds the same scale.
    """
    solved = solve_rows(moments, mask, weight, RIDGE, centred)
    solved = weight if solved is None else solved
    a, c = moments.system(centred)
    pull = RIDGE * a.diagonal(dim1=1, dim2=2).mean(1)
    found = torch.zeros_like(c)
    for factors in factorise(with_ridge(a, torch.where(pull > 0, pull, 1.0)), mask.reshape(c.shape)):
        wanted = solved.double().reshape(-1, c.shape[2])[factors.rows].gather(1, factors.columns) * factors.own
        scale, largest = wanted.abs().amax(1).clamp_min(1e-12) / levels, wanted.abs().argmax(1)
        errors = torch.zeros_like(wanted)
        for i in reversed(range(wanted.shape[1])):
            column = factors.lower[:, i:, i]
            code = (wanted[:, i] - (column[:, 1:] * errors[:, i + 1 :]).sum(1) / column[:, 0]) / scale
            code = code.round().clamp(-levels, levels)
            code = torch.where(largest == i, wanted[:, i].sign() * levels, code)
            errors[:, i] = code * scale * factors.own[:, i] - wanted[:, i]
        factors.scatter(wanted + errors, found)
    return found.reshape(weight.shape).to(weight.dtype)


def measured(engine: Engine, images: Tensor, labels: Tensor, expected: Tensor) -> tuple[float, float, float]:
    """Return error of the logits (percent of their variance), predictions changed (percent), and points lost."""
    logits = torch.cat([engine(part) for part in images.split(500)])
    error = (logits - expected) - (logits - expected).mean(1, keepdim=True)
    variance = (expected - expected.mean(1, keepdim=True)).square().sum()
    found, right = logits.argmax(1), expected.argmax(1)
    lost = (right == labels).double().mean() - (found == labels).double().mean()
    return (
        100 * float(error.square().sum() / variance),
        100 * float((found != right).double().mean()),
        100 * float(lost),
    )


def of_run(folder: Path) -> Iterator[tuple[tuple[str, str, str], tuple[float, float, float]]]:
    """Yield (bits, rule, what is quantized) and its measurements."""
    target = load_target("onnx_int8")
    with tempfile.TemporaryDirectory() as scratch:
        run = ExportedRun(folder, (), Path(scratch))
        batches = list(run.data.val_dataloader())
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        expected = torch.cat([run.source.model(part) for part in images.split(500)])
        for bits in (8, 4):
            for rule in RULES:
                place = Path(scratch) / f"{bits} {rule}"
                place.mkdir()
                source = replace(rounded(run.source, bits, rule), scratch=place)
                yield (str(bits), rule, "weights"), measured(source.model, images, labels, expected)
                if bits == 8:
                    target.write(source, place / "model.onnx")
                    engine = target.open(place / "model.onnx", source)
                    yield (str(bits), rule, "weights and activations"), measured(engine, images, labels, expected)


def table(folders: Sequence[Path]) -> str:
    """Return the table of means and standard deviations over runs."""
    found: dict[tuple[str, str, str], list[tuple[float, float, float]]] = {}
    for folder in folders:
        for key, values in of_run(folder):
            found.setdefault(key, []).append(values)
    rows = [[*key, *map(_spread, zip(*values, strict=True))] for key, values in found.items()]
    return table_of(["bits", "rounded", "what", "error of logits %", "predictions changed %", "points lost"], rows)


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


if __name__ == "__main__":
    register()
    torch.set_num_threads(1)
    with torch.no_grad():
        sys.stdout.write(table([Path(word) for word in sys.argv[1:]]) + "\n")
