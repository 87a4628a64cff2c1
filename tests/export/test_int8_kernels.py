from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from mmp.config.schema import ModelConfig
from mmp.export.targets import Exportable, load_target
from mmp.pruning.masks import Masks


class Residual(nn.Module):
    """Convolutions whose outputs go to a ReLU, to a sum, to a gate and to a hardswish."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.gate = nn.Conv2d(16, 16, 1)
        self.second = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        images = self.stem(images).relu()
        inner = nn.functional.hardswish(self.depthwise(self.first(images).relu()))
        inner = inner * self.gate(inner.mean((2, 3), keepdim=True)).sigmoid()
        return self.head((images + self.second(inner)).relu().mean((2, 3)))


@pytest.mark.slow
def test_onnxruntime_computes_every_convolution_in_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 8, 8)
    source = Exportable(ModelConfig(name="residual", num_classes=5), Residual().eval(), Masks({}), [images], tmp_path)
    path = tmp_path / "model.onnx"
    load_target("onnx_int8").write(source, path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert operators.count("QLinearConv") == 5
    assert "Conv" not in operators
