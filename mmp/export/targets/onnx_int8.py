"""Target ``onnx_int8``: weights and activations of eight bits, by onnxruntime's static quantization."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmp.export.targets import Exportable, unable
from mmp.export.targets.onnx_fp32 import INPUT, Onnx, float_file, quietly

# What has weights, and Relu, so that no range is spent on what it cuts off. Norms, softmax and products of activations
# (MatMulConstBOnly) stay in float32: in eight bits they gained neither accuracy nor time on validation images.
QUANTIZED_OPERATORS = ("Conv", "Gemm", "MatMul", "Relu")
# What linear layers put out is the logits, or read by one of those in float32: to round it, too, only adds error.
FLOAT_OUTPUTS = ("Gemm", "MatMul")


class OnnxInt8(Onnx):
    """ONNX in QDQ form: int8 weights per output channel, symmetric, so that zero stays zero; int8 activations.

    The ranges of activations are the smallest and largest values on the calibration images. Linear layers read int8 and
    put out float32.
    """

    name = "onnx_int8"
    exact = False

    def write(self, source: Exportable, path: Path) -> None:
        """Write the file."""
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        original = float_file(source, self)
        try:
            with quietly():
                quantize_static(
                    original,
                    path,
                    _Images(source),
                    quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=list(QUANTIZED_OPERATORS),
                    per_channel=True,
                    activation_type=QuantType.QInt8,
                    weight_type=QuantType.QInt8,
                    calibrate_method=CalibrationMethod.MinMax,
                    extra_options={
                        "MatMulConstBOnly": True,
                        "WeightSymmetric": True,
                        "OpTypesToExcludeOutputQuantization": list(FLOAT_OUTPUTS),
                    },
                )
        except Exception as error:  # whatever the quantizer raises
            raise unable(source, self, "onnxruntime cannot quantize it", error) from error


class _Images:
    """Calibration images in batches, as onnxruntime asks for them."""

    def __init__(self, source: Exportable) -> None:
        self._batches: Iterator[dict[str, object]] = iter([{INPUT: images.numpy()} for images in source.batches])

    def get_next(self) -> dict[str, object] | None:
        """Return the next batch, None after the last."""
        return next(self._batches, None)
