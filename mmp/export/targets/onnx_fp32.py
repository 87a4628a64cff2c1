"""Target ``onnx``: float32, by torch's exporter, for onnxruntime and whatever else reads ONNX."""

from __future__ import annotations

import contextlib
import io
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
from mmp.export.targets import Engine, Exportable, Target, unable

if TYPE_CHECKING:
    import onnx


INPUT, OUTPUT = "images", "logits"
TRANSPOSED = ".T"  # ends the name of a linear layer's weight, which ONNX stores (in, out)
QUANTIZED = "_quantized"  # what onnxruntime appends to the name of a weight


class Onnx:
    """ONNX with BatchNorm folded into convolutions, any batch size, weights under timm's names."""

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
        """Return onnxruntime's session of the file, on the CPU, with as many threads as PyTorch has."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # or one model slows the next
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of many kinds, none of them public
            raise unable(source, self, f"{self.engine} cannot load it", error) from error
        return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    def weights(self, path: Path, source: Exportable) -> dict[str, Tensor]:
        """Return the weights under each mask, float32 or int8 as they lie in the file."""
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
    """Return the weight under each mask, in the mask's shape, of everything that a file stores by name.

    Raises:
        MmpError: naming the first weight that is not there.
    """
    found = {}
    for name in source.masks:
        names = [name + end + kind for end in ("", TRANSPOSED) for kind in ("", QUANTIZED)]
        held = next((one for one in names if one in stored), None)
        if held is None:
            raise unable(source, target, f"weight {name!r} is not in the file, so its zeros cannot be counted")
        value = stored[held]
        found[name] = torch.from_numpy(np.array(value.T if TRANSPOSED in held.removeprefix(name) else value))
    return found


def float_file(source: Exportable, target: Target) -> Path:
    """Return the float32 file of a source, made once.

    Args:
        source: The model.
        target: For whom, if it fails.

    Raises:
        MmpError: if torch cannot export this model.
    """
    import onnx

    path = source.scratch / "float32.onnx"
    if path.is_file():
        return path
    images = torch.cat([source.images, source.images])[:2]  # two, because a dimension of one counts as fixed
    try:
        with quietly():
            program = torch.onnx.export(
                source.settled(),
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
        onnx.save(content, path)
    except MmpError as error:
        raise unable(source, target, str(error)) from error
    except Exception as error:  # whatever the exporter raises
        raise unable(
            source,
            target,
            "torch cannot export it",
            error.__cause__ or error,  # type: ignore[arg-type]
            others=("executorch", "sparse"),
        ) from error
    return path


def _name_weights(content: onnx.ModelProto, source: Exportable) -> None:
    """Give masked weights that were stored transposed their timm names back, with an ending that says so."""
    import onnx

    stored = {one.name: one for one in content.graph.initializer}
    lost = {name: source.model.get_parameter(name).detach().numpy() for name in source.masks if name not in stored}
    renamed: dict[str, str] = {}
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


def _tidy(content: onnx.ModelProto) -> None:
    """Remove what the exporter notes for debugging: stack traces with the paths of this machine."""
    graph = content.graph
    for part in (content, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")  # shapes of intermediate results, which engines infer


@contextmanager
def quietly() -> Iterator[None]:
    """Keep the exporter's progress and remarks away from the terminal; what fails is raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
