"""Target ``executorch``: float32 for ExecuTorch, lowered to XNNPACK, its engine for the CPUs of phones and boards."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmp.export.targets import Engine, Exportable, unable
from mmp.export.targets.onnx_fp32 import quietly

LARGEST = 32  # images at a time: memory for so many is set aside wherever the file is loaded


class ExecuTorch:
    """A program of ExecuTorch with BatchNorm folded into convolutions, of any batch size up to `LARGEST`.

    It stores weights without names, convolutions' as XNNPACK wants them, so they are recognised by their values.
    """

    name = "executorch"
    files: tuple[str, ...] = ("model.pte",)
    engine = "ExecuTorch with XNNPACK"
    packages: tuple[str, ...] = ("executorch",)
    extra = "export,executorch"
    exact = True

    def write(self, source: Exportable, path: Path) -> None:
        """Write the file."""
        # The largest batch is the example: where a compiler looks at its size, it may conclude that no batch is larger.
        images = torch.zeros(LARGEST, *source.images.shape[1:])
        try:
            with _silently():
                sizes = {0: torch.export.Dim("batch", min=1, max=LARGEST)}
                program = torch.export.export(source.settled(), (images,), dynamic_shapes=(sizes,))
        except Exception as error:  # whatever the exporter raises
            raise unable(source, self, "torch cannot export it", error, others=("sparse",)) from error
        try:
            with _silently():
                path.write_bytes(_lowered(program))
        except Exception as error:  # whatever the compiler raises
            raise unable(source, self, "ExecuTorch cannot compile it", error) from error

    def open(self, path: Path, source: Exportable) -> Engine:
        """Return the program, run by ExecuTorch's own runtime, once already: what fails tells the terminal of it."""

        def run(images: Tensor) -> Tensor:
            return torch.cat([method.execute([some.contiguous()])[0] for some in images.split(LARGEST)])

        try:
            with _silently():
                method = _runtime().load_program(path).load_method("forward")
                run(source.images)
        except Exception as error:  # whatever the runtime raises
            raise unable(source, self, f"{self.engine} cannot run it", error) from error
        return run

    def weights(self, path: Path, source: Exportable) -> dict[str, Tensor]:
        """Return the weights under each mask, each channel scaled as the BatchNorm that was folded into it scales."""
        stored = _constants(path.read_bytes())
        found = {}
        for name, mask in source.masks.items():
            weight = source.model.get_parameter(name).detach()
            held = [value for one in stored for value in _layouts(one, weight) if _is_scaled(value, weight, mask)]
            if not held:
                raise unable(source, self, f"weight {name!r} is not in the file, so its zeros cannot be counted")
            # A layer of which hardly anything was kept looks like others of its size; its own has the fewest values.
            found[name] = min(held, key=lambda value: int(value.count_nonzero()))
        return found

    def usage(self, source: Exportable) -> str:
        """Return the lines of Python that load the file."""
        return (
            "import torch\nfrom executorch.runtime import Runtime\n"
            f'method = Runtime.get().load_program("{self.files[0]}").load_method("forward")\n'
            f"parts = images.split({LARGEST})  # the file takes no more at a time\n"
            "logits = torch.cat([method.execute([part])[0] for part in parts])"
        )


def _lowered(program: torch.export.ExportedProgram) -> bytes:
    """Return the file of a program, whatever XNNPACK can compute left to it."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    # Its check of types asks for the length of a tensor, which makes the size of the batch a constant (LeViT's split).
    unchecked = EdgeCompileConfig(_check_ir_validity=False)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], compile_config=unchecked)
    return bytes(lowered.to_executorch().buffer)


@cache
def _runtime() -> Any:
    """Return the runtime, with as many threads as PyTorch has; once, because what it has loaded holds on to them."""
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    _unsafe_reset_threadpool(torch.get_num_threads())
    return Runtime.get()


def _constants(content: bytes) -> list[Tensor]:
    """Return every constant that a file stores as float32, flat: those of XNNPACK, and those of other operators."""
    with _silently():
        from executorch.exir._serialize._program import deserialize_pte_binary

        file = deserialize_pte_binary(content)
    stored = [one.storage for one in file.program.constant_buffer]
    if file.named_data is not None:
        stored += file.named_data.buffers
    return [torch.frombuffer(bytearray(one), dtype=torch.float32) for one in stored if one and len(one) % 4 == 0]


def _layouts(stored: Tensor, weight: Tensor) -> Iterator[Tensor]:
    """Yield a stored constant in the shape of a weight, read in every order that it may have been written in."""
    if stored.numel() != weight.numel():
        return
    yield stored.view(weight.shape)
    first, *rest = weight.shape
    if weight.dim() == 2:
        yield stored.view(*rest, first).T
    if weight.dim() == 4:
        channels, height, width = rest
        yield stored.view(first, height, width, channels).permute(0, 3, 1, 2)
        if channels == 1:  # depthwise
            yield stored.view(height, width, first).permute(2, 0, 1).unsqueeze(1)


def _is_scaled(found: Tensor, weight: Tensor, mask: Tensor) -> bool:
    """Return whether kept weights are those of a layer, each channel times a number; pruned ones are not looked at."""
    shape = len(weight), prod(weight.shape[1:])
    ours, theirs = ((value * mask).nan_to_num().reshape(shape) for value in (weight, found))
    scale = (ours * theirs).sum(1, keepdim=True) / ours.square().sum(1, keepdim=True).clamp(min=1e-30)
    return bool(((theirs - scale * ours).abs() <= 1e-5 * theirs.abs().amax(1, keepdim=True)).all())


@contextmanager
def _silently() -> Iterator[None]:
    """Keep the terminal and the root logger as they are, whatever ExecuTorch does to them from Python and from C++."""
    handlers, level = logging.root.handlers[:], logging.root.level
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        with quietly(), redirect_stderr(io.StringIO()):
            yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
