"""Target ``onnx``: float32 ONNX by torch's exporter, for onnxruntime and other engines that read ONNX."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmp.errors import MmpError
from mmp.export.targets import Engine, Exportable, Target, export_error

if TYPE_CHECKING:
    import onnx


INPUT, OUTPUT = "images", "logits"
CLASSES = "classes"  # the key of the names of the classes in a file's metadata: a JSON list, in the order of the logits
TRANSPOSED = ".T"  # the suffix of linear weights, which ONNX stores with shape (in, out)
QUANTIZED = "_quantized"  # the suffix that onnxruntime gives to quantized weights


class Onnx:
    """ONNX with BatchNorm folded into convolutions, for any batch size, with weights under timm's names."""

    name = "onnx"
    files: tuple[str, ...] = ("model.onnx",)
    engine = "onnxruntime"
    packages: tuple[str, ...] = ("onnx", "onnxscript", "onnxruntime")
    extra = "export"
    exact = True

    def write(self, source: Exportable, path: Path) -> None:
        """Write the file."""
        shutil.copyfile(float_file(source, self), path)

    def open(self, path: Path, source: Exportable) -> Engine:
        """Return the file in an onnxruntime session, on the CPU, with as many threads as PyTorch."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # or it slows the next model
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises exceptions of private types
            raise export_error(source, self, f"{self.engine} cannot load it", error) from error
        return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    def weights(self, path: Path, source: Exportable) -> dict[str, Tensor]:
        """Return the weight under each mask, float32 or int8 as in the file."""
        import onnx

        initializers = onnx.load(path).graph.initializer
        return under_masks({one.name: onnx.numpy_helper.to_array(one) for one in initializers}, source, self)

    def usage(self, source: Exportable) -> str:
        """Return the lines of Python that load the file."""
        return (
            "import onnxruntime\n"
            f'session = onnxruntime.InferenceSession("{self.files[0]}", providers=["CPUExecutionProvider"])\n'
            f'(logits,) = session.run(["{OUTPUT}"], {{"{INPUT}": images.numpy()}})'
        )


def under_masks(stored: Mapping[str, np.ndarray], source: Exportable, target: Target) -> dict[str, Tensor]:
    """Return the weight under each mask, in the shape of the mask.

    Args:
        stored: Everything that the file stores, by name.
        source: The model.
        target: The target, for the error message.

    Raises:
        MmpError: if a weight is not in the file.
    """
    found = {}
    for name in source.masks:
        names = [name + end + kind for end in ("", TRANSPOSED) for kind in ("", QUANTIZED)]
        held = next((one for one in names if one in stored), None)
        if held is None:
            raise export_error(source, target, f"weight {name!r} is not in the file, so its zeros cannot be counted")
        value = stored[held]
        found[name] = torch.from_numpy(np.array(value.T if TRANSPOSED in held.removeprefix(name) else value))
    return found


def float_file(source: Exportable, target: Target) -> Path:
    """Return the float32 ONNX file of a model; it is written once and reused by other targets.

    Args:
        source: The model.
        target: The target that needs the file, for the error message.

    Raises:
        MmpError: if torch cannot export the model.
    """
    import onnx

    path = source.scratch / "float32.onnx"
    if path.is_file():
        return path
    images = torch.cat([source.images, source.images])[:2]  # the exporter takes a dimension of one as fixed
    try:
        with quietly():
            program = torch.onnx.export(
                source.ready_to_trace(),
                (images,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
        assert program is not None
        content = program.model_proto
        _tidy(content)
        _name_weights(content, source)
        _clear_signs(content, source)
        if source.classes is not None:
            onnx.helper.set_model_props(content, {CLASSES: json.dumps(list(source.classes))})
        onnx.save(content, path)
    except MmpError as error:
        raise export_error(source, target, str(error)) from error
    except Exception as error:  # the exporter raises exceptions of any kind
        raise export_error(
            source,
            target,
            "torch cannot export it",
            error.__cause__ or error,  # type: ignore[arg-type]
            others=("executorch", "sparse"),
        ) from error
    return path


def _name_weights(content: onnx.ModelProto, source: Exportable) -> None:
    """Give masked weights the names of their masks; if they are stored transposed, with the suffix `TRANSPOSED`.

    A weight that several layers share may be stored under the name of any of them.
    """
    import onnx

    stored = {one.name: one for one in content.graph.initializer}
    lost = {name: source.model.get_parameter(name).detach().numpy() for name in source.masks if name not in stored}
    renamed: dict[str, str] = {}
    shared = {id(source.model.get_parameter(name)): name for name in lost}
    for alias, parameter in source.model.named_parameters(remove_duplicate=False):
        if alias in stored and (own := shared.get(id(parameter))):
            renamed[alias] = own
            lost.pop(own, None)
    for one in stored.values():
        value = onnx.numpy_helper.to_array(one)
        for name, weight in lost.items():
            if value.shape == weight.shape[::-1] and np.array_equal(value, weight.T):
                renamed[one.name] = name + TRANSPOSED
                del lost[name]
                break
    if lost:
        raise MmpError(f"weight {next(iter(lost))!r} is not in the file, so its zeros cannot be counted")
    for one in content.graph.initializer:
        one.name = renamed.get(one.name, one.name)
    for node in content.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]


def _clear_signs(content: onnx.ModelProto, source: Exportable) -> None:
    """Replace -0.0 in masked weights by +0.0; a BatchNorm with a negative factor that is folded into them leaves it."""
    import onnx

    for one in content.graph.initializer:
        if one.name.removesuffix(TRANSPOSED) in source.masks:
            one.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(one) + 0.0, one.name))


def _tidy(content: onnx.ModelProto) -> None:
    """Remove the debugging information of the exporter: stack traces, which contain the paths of this machine."""
    graph = content.graph
    for part in (content, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")  # the shapes of intermediate results; engines infer them


@contextmanager
def quietly() -> Iterator[None]:
    """Hide warnings, logs and prints of an exporter. Exceptions pass through."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
