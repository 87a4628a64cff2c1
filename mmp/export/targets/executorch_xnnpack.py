"""Target ``executorch``: float32 for ExecuTorch with XNNPACK, its backend for the CPUs of phones and boards."""

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

from mmp.export.targets import Engine, Exportable, export_error
from mmp.export.targets.onnx_fp32 import quietly

LARGEST = 32  # the largest batch; the file reserves memory for it on every device


class ExecuTorch:
    """An ExecuTorch program with BatchNorm folded into convolutions, for any batch size up to `LARGEST`.

    The file stores weights without names, so they are found by their values. Convolutions have XNNPACK's layout.
    """

    name = "executorch"
    files: tuple[str, ...] = ("model.pte",)
    engine = "ExecuTorch with XNNPACK"
    packages: tuple[str, ...] = ("executorch",)
    extra = "export,executorch"
    exact = True

    def write(self, source: Exportable, path: Path) -> None:
        """Write the file."""
        # The example is the largest batch, because a compiler may take the size of the example as an upper bound.
        images = torch.zeros(LARGEST, *source.images.shape[1:])
        try:
            with _silently():
                sizes = {0: torch.export.Dim("batch", min=1, max=LARGEST)}
                program = torch.export.export(source.ready_to_trace(), (images,), dynamic_shapes=(sizes,))
        except Exception as error:  # the exporter raises exceptions of any kind
            raise export_error(source, self, "torch cannot export it", error, others=("sparse",)) from error
        try:
            with _silently():
                path.write_bytes(_without_signs(_lowered(program), source))
        except Exception as error:  # the compiler raises exceptions of any kind
            raise export_error(source, self, "ExecuTorch cannot compile it", error) from error

    def open(self, path: Path, source: Exportable) -> Engine:
        """Return the program in ExecuTorch's runtime, after one run in which its messages are kept off the terminal."""

        def run(images: Tensor) -> Tensor:
            return torch.cat([method.execute([some.contiguous()])[0] for some in images.split(LARGEST)])

        try:
            with _silently():
                method = _runtime().load_program(path).load_method("forward")
                run(source.images)
        except Exception as error:  # the runtime raises exceptions of any kind
            raise export_error(source, self, f"{self.engine} cannot run it", error) from error
        return run

    def weights(self, path: Path, source: Exportable) -> dict[str, Tensor]:
        """Return the weight under each mask, each channel scaled by the BatchNorm that was folded into it."""
        stored = _constants(path.read_bytes())
        found = {}
        for name, mask in source.masks.items():
            weight = source.model.get_parameter(name).detach()
            held = [value for one in stored for value in _layouts(one, weight) if _is_scaled(value, weight, mask)]
            if not held:
                raise export_error(source, self, f"weight {name!r} is not in the file, so its zeros cannot be counted")
            # An almost empty layer matches others of its size, too; its own constant has the fewest values.
            found[name] = min(held, key=lambda value: int(value.count_nonzero()))
        return found

    def usage(self, source: Exportable) -> str:
        """Return the lines of Python that load the file."""
        return (
            "import torch\nfrom executorch.runtime import Runtime\n"
            f'method = Runtime.get().load_program("{self.files[0]}").load_method("forward")\n'
            f"parts = images.split({LARGEST})  # the largest batch of the file\n"
            "logits = torch.cat([method.execute([part])[0] for part in parts])"
        )


def _lowered(program: torch.export.ExportedProgram) -> bytes:
    """Return the bytes of a program in which XNNPACK computes every operator that it supports."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    # The validity check reads the length of a tensor, which makes the batch size a constant (split in LeViT).
    unchecked = EdgeCompileConfig(_check_ir_validity=False)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], compile_config=unchecked)
    return bytes(lowered.to_executorch().buffer)


@cache
def _runtime() -> Any:
    """Return the runtime with as many threads as PyTorch; cached, because loaded programs keep the threads in use."""
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    _unsafe_reset_threadpool(torch.get_num_threads())
    return Runtime.get()


def _constants(content: bytes) -> list[Tensor]:
    """Return all constants that a file stores, as flat float32 tensors: constants of XNNPACK and of other operators."""
    with _silently():
        from executorch.exir._serialize._program import deserialize_pte_binary

        file = deserialize_pte_binary(content)
    stored = [one.storage for one in file.program.constant_buffer]
    if file.named_data is not None:
        stored += file.named_data.buffers
    return [torch.frombuffer(bytearray(one), dtype=torch.float32) for one in stored if one and len(one) % 4 == 0]


def _layouts(stored: Tensor, weight: Tensor) -> Iterator[Tensor]:
    """Yield a stored constant in the shape of a weight, for every memory layout that it may have."""
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
    """Return whether a constant has the kept weights of a layer up to a factor per channel; ignore pruned weights."""
    shape = len(weight), prod(weight.shape[1:])
    ours, theirs = ((value * mask).nan_to_num().reshape(shape) for value in (weight, found))
    scale = (ours * theirs).sum(1, keepdim=True) / ours.square().sum(1, keepdim=True).clamp(min=1e-30)
    return bool(((theirs - scale * ours).abs() <= 1e-5 * theirs.abs().amax(1, keepdim=True)).all())


def _without_signs(content: bytes, source: Exportable) -> bytes:
    """Replace -0.0 in masked weights by +0.0; a BatchNorm with a negative factor that is folded into them leaves it."""
    for one in _constants(content):
        signed = bool((torch.signbit(one) & (one == 0)).any())
        if signed and any(_is_stored(one, source.model.get_parameter(n).detach(), m) for n, m in source.masks.items()):
            content = content.replace(one.numpy().tobytes(), (one + 0.0).numpy().tobytes(), 1)
    return content


def _is_stored(stored: Tensor, weight: Tensor, mask: Tensor) -> bool:
    return any(_is_scaled(value, weight, mask) for value in _layouts(stored, weight))


@contextmanager
def _silently() -> Iterator[None]:
    """Keep ExecuTorch, in Python and C++, from writing to the terminal and from changing the root logger."""
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
