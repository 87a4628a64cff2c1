"""Target ``openvino``: float32 in OpenVINO's format, a file for the graph and a file for the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmp.export.targets import Engine, Exportable, export_error
from mmp.export.targets.onnx_fp32 import float_file, under_masks

# Without this, OpenVINO computes in bfloat16 on some processors.
OPTIONS = {"INFERENCE_PRECISION_HINT": "f32"}


class OpenVino:
    """OpenVINO IR, converted from the ONNX file, with the same graph and the same names."""

    name = "openvino"
    files: tuple[str, ...] = ("model.xml", "model.bin")
    engine = "OpenVINO"
    packages: tuple[str, ...] = ("onnx", "onnxscript", "openvino")
    extra = "export,openvino"
    exact = True

    def write(self, source: Exportable, path: Path) -> None:
        """Write the graph and, beside it, the weights."""
        import openvino

        original = float_file(source, self)
        try:
            openvino.save_model(openvino.Core().read_model(original), path, compress_to_fp16=False)
        except Exception as error:  # the reader raises exceptions of any kind
            raise export_error(source, self, f"{self.engine} cannot read it", error) from error

    def open(self, path: Path, source: Exportable) -> Engine:
        """Return the compiled model, on the CPU, with as many threads as PyTorch."""
        import openvino

        options: dict[str, Any] = {**OPTIONS, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        try:
            compiled = openvino.Core().compile_model(path, "CPU", options)
        except Exception as error:  # a plugin raises exceptions of any kind
            raise export_error(source, self, f"{self.engine} cannot load it", error) from error
        return lambda images: torch.from_numpy(compiled(images.numpy())[0].copy())

    def weights(self, path: Path, source: Exportable) -> dict[str, Tensor]:
        """Return the weight under each mask."""
        import openvino

        operators = openvino.Core().read_model(path).get_ops()
        constants = {one.get_friendly_name(): one.data for one in operators if one.get_type_name() == "Constant"}
        return under_masks(constants, source, self)

    def usage(self, source: Exportable) -> str:
        """Return the lines of Python that load the files."""
        return (
            "import openvino\n"
            f'model = openvino.compile_model("{self.files[0]}", "CPU", {OPTIONS})\n'
            "logits = model(images.numpy())[0]"
        )
