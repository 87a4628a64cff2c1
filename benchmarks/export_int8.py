"""Eight bits by onnxruntime's static quantization, as target=onnx_int8 has it, and by torchao's for torch.export (pt2e).

``python -m benchmarks.export int8 RUN_FOLDER ...`` quantizes runs both ways with the same calibration images. Nothing is
written into the runs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mmp.export_measure import accuracy_of
from mmp.export_subject import Subject
from mmp.markdown import table_of
from mmp.targets import Engine, Exportable, load_target


def int8(folders: Sequence[str]) -> str:
    """Return a table of the accuracy of each run in PyTorch, and in eight bits by each quantizer."""
    return table_of(
        ["run", "quantizer", "validation %", "points", "test %", "points"],
        [row for folder in folders for row in _rows(Path(folder))],
    )


def _rows(folder: Path) -> Iterator[list[str]]:
    with tempfile.TemporaryDirectory() as scratch:
        subject = Subject(folder, (), Path(scratch))
        loaders = (subject.data.val_dataloader(), subject.data.test_dataloader())
        exact: list[float] = []
        for name, engine in _engines(subject.source, Path(scratch)):
            found = [100 * accuracy_of(engine, loader)[0] for loader in loaders]
            exact = exact or found
            cells = [(f"{ours:.2f}", f"{ours - theirs:+.2f}") for ours, theirs in zip(found, exact, strict=True)]
            yield [folder.name, name, *cells[0], *cells[1]]


def _engines(source: Exportable, scratch: Path) -> Iterator[tuple[str, Engine]]:
    yield "none, float32", torch.inference_mode()(source.model)
    target, path = load_target("onnx_int8"), scratch / "model.onnx"
    target.write(source, path)
    yield "onnxruntime, static", target.open(path, source)
    yield "pt2e, XNNPACK's", _pt2e(source, _xnnpack())
    yield "pt2e, X86 Inductor's", _pt2e(source, _x86())


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
    """Return a quantized model; its arithmetic of integers is computed in float32, rounded where they would be."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    sizes = ({0: torch.export.Dim("batch")},)
    prepared = prepare_pt2e(
        torch.export.export(source.model, (source.images,), dynamic_shapes=sizes).module(), quantizer
    )
    with torch.inference_mode():
        for images in source.batches:
            prepared(images)
    return torch.inference_mode()(convert_pt2e(prepared))
