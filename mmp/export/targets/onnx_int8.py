"""Target ``onnx_int8``: ONNX with 8-bit weights and activations, by onnxruntime's static quantization."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmp.export.targets import Exportable, export_error
from mmp.export.targets.onnx_fp32 import INPUT, Onnx, float_file, quietly

# Operators with weights, and Relu, so that no part of a range is spent on values that Relu cuts off. Norms, softmax and
# products of activations (excluded by MatMulConstBOnly) stay in float32: in int8 they gained neither accuracy nor time.
QUANTIZED_OPERATORS = ("Conv", "Gemm", "MatMul", "Relu")
# The outputs of linear layers are logits, or inputs of float32 operators: rounding them would only add error.
FLOAT_OUTPUTS = ("Gemm", "MatMul")


class OnnxInt8(Onnx):
    """ONNX in QDQ format: symmetric int8 weights per output channel, so that zero stays zero, and uint8 activations.

    The range of an activation is from its smallest to its largest value on the calibration images. Linear layers have
    uint8 inputs and float32 outputs. onnxruntime has integer kernels for unsigned activations on every processor; on
    x86 it computes convolutions with signed ones in float32.
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
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    calibrate_method=CalibrationMethod.MinMax,
                    extra_options={
                        "MatMulConstBOnly": True,
                        "WeightSymmetric": True,
                        "OpTypesToExcludeOutputQuantization": list(FLOAT_OUTPUTS),
                    },
                )
        except Exception as error:  # the quantizer raises exceptions of any kind
            raise export_error(source, self, "onnxruntime cannot quantize it", error) from error


class _Images:
    """The calibration images in batches, with the interface of onnxruntime's CalibrationDataReader."""

    def __init__(self, source: Exportable) -> None:
        self._batches: Iterator[dict[str, object]] = iter([{INPUT: images.numpy()} for images in source.batches])

    def get_next(self) -> dict[str, object] | None:
        """Return the next batch; None after the last one."""
        return next(self._batches, None)
