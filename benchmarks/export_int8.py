"""INT8 quantization by onnxruntime (static, as in ``target=onnx_int8``) against torchao's pt2e.

``python -m benchmarks.export int8 RUN_FOLDER ...`` quantizes runs in both ways with the same calibration images. It
writes nothing into the run folders.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmp.export.measure import accuracy_of
from mmp.export.source import ExportedRun
from mmp.export.targets import Engine, Exportable, load_target
from mmp.markdown import table_of

SPLITS, FLOAT = ("validation", "test"), "float32"


def int8(folders: Sequence[str]) -> str:
    """Return a table of the accuracy points that each run loses with each quantizer; the last row is the mean."""
    names, rows = list[str](), []
    for folder in map(Path, folders):
        found = _accuracies(folder)
        names = list(found)
        points = [[one[split] - found[FLOAT][split] for one in found.values()] for split in range(len(SPLITS))]
        rows.append((folder.name, found[FLOAT], points))
    lines = [[name, *_cells(exact, points)] for name, exact, points in rows]
    if rows:
        exacts, points = ([row[i] for row in rows] for i in (1, 2))
        lines.append(["mean", *_cells(np.mean(exacts, axis=0).tolist(), np.mean(points, axis=0).tolist())])
    headings = [heading for split in SPLITS for heading in (f"{split}, {FLOAT} %", *names[1:])]
    return table_of(["run", *headings], lines)


def _cells(exact: Sequence[float], points: Sequence[Sequence[float]]) -> list[str]:
    pairs = zip(exact, points, strict=True)
    return [cell for one, (_, *lost) in pairs for cell in (f"{one:.2f}", *(f"{value:+.2f}" for value in lost))]


def _accuracies(folder: Path) -> dict[str, list[float]]:
    """Return the accuracy of a run in percent on each of `SPLITS`: in float32, then with each quantizer."""
    with tempfile.TemporaryDirectory() as scratch:
        run = ExportedRun(folder, (), Path(scratch))
        loaders = (run.data.val_dataloader(), run.data.test_dataloader())
        return {
            name: [100 * accuracy_of(engine, loader)[0] for loader in loaders]
            for name, engine in _engines(run.source, Path(scratch))
        }


def _engines(source: Exportable, scratch: Path) -> Iterator[tuple[str, Engine]]:
    yield FLOAT, torch.inference_mode()(source.model)
    target, path = load_target("onnx_int8"), scratch / "model.onnx"
    target.write(source, path)
    yield "onnxruntime", target.open(path, source)
    yield "pt2e, XNNPACK", _pt2e(source, _xnnpack())
    yield "pt2e, X86", _pt2e(source, _x86())


def _xnnpack() -> Any:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))


def _x86() -> Any:
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    return x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())


def _pt2e(source: Exportable, quantizer: Any) -> Engine:
    """Return a quantized model; it simulates integer arithmetic with rounded float32 values."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    sizes = ({0: torch.export.Dim("batch")},)
    prepared = prepare_pt2e(
        torch.export.export(source.ready_to_trace(), (source.images,), dynamic_shapes=sizes).module(), quantizer
    )
    with torch.inference_mode():
        for images in source.batches:
            prepared(images)
    return torch.inference_mode()(convert_pt2e(prepared))
