"""Linear layers and convolutions as matrix products: their inputs and outputs as rows."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, unfold

_PIECE = 2**21  # numbers in the unfolded inputs of one piece: 8 MiB


def why_no_product(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> str | None:
    """Return the reason why a module's output is not its weight times its input, None if it is.

    Args:
        module: The owner of a weight.
        arguments: The arguments of a call.
        output: The output of that call.
    """
    is_conv, kind = isinstance(module, nn.Conv1d | nn.Conv2d), type(module).__name__
    if not (is_linear(module) or is_conv):
        return f"it is neither a linear nor a convolution of one or two dimensions ({kind})"
    if not arguments or not isinstance(arguments[0], Tensor) or not isinstance(output, Tensor):
        return f"it does not take and return a tensor ({kind})"
    weight, columns = module.weight, arguments[0].shape[-1]
    assert isinstance(weight, Tensor)
    fits = arguments[0].dim() == weight.dim() if is_conv else tuple(weight.shape) == (output.shape[-1], columns)
    if not fits:
        return f"its weight does not fit its input: no batch of images, or not (outputs, inputs) ({kind})"
    inputs, found = columns_of(module, arguments[0]), product_of(module, output)
    groups = len(inputs)
    expected = inputs @ weight.float().reshape(groups, weight.shape[0] // groups, -1).transpose(1, 2)
    if not (expected.isfinite().all() and found.isfinite().all()):
        return f"its output is not finite ({kind})"
    share = max(1e-3, 8 * torch.finfo(output.dtype).eps)
    tolerance = share * expected.detach().abs().max().item()
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=share, atol=tolerance):
        return f"its output is not its weight times its input ({kind})"
    return None


def is_linear(module: nn.Module) -> bool:
    """Return whether a module has the attributes of a linear layer; its class does not matter."""
    return all(hasattr(module, attribute) for attribute in ("in_features", "weight", "bias"))


def columns_of(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return a layer's input as the rows that its weight is multiplied by, float32 (groups, rows, columns).

    Args:
        module: A linear layer, or a convolution of one or two dimensions.
        inputs: (..., features), or (B, C, positions...) for a convolution.
    """
    inputs = inputs.float()
    if not isinstance(module, nn.Conv1d | nn.Conv2d):
        return inputs.reshape(1, -1, inputs.shape[-1])
    kernel, stride, dilation = _sizes(module)
    inputs = _padded(module, inputs)
    inputs = inputs.unsqueeze(2) if inputs.dim() == 3 else inputs
    if kernel == (1, 1):
        return _by_group(inputs[..., :: stride[0], :: stride[1]].flatten(2), module.groups)
    patches = unfold(inputs, kernel, dilation, 0, stride)
    return _by_group(patches, module.groups)


def column_pieces(module: nn.Module, inputs: Tensor, least: int = 1) -> Iterator[Tensor]:
    """Yield the rows of a layer's input, float32 (groups, some rows, columns), a few images at a time.

    The unfolded inputs of a convolution are many times as large as its inputs; allocating memory for all of them at
    once would take longer than the work on them.

    Args:
        module: A linear layer, or a convolution of one or two dimensions.
        inputs: Its input, (B, ..., features), or (B, C, positions...) for a convolution.
        least: Number of rows that a piece has at least, but for the last one.
    """
    one = columns_of(module, inputs[:1])
    count = max(1, _PIECE // max(1, one.numel()), math.ceil(least / max(1, one.shape[1])))
    return (columns_of(module, some) for some in inputs.split(count))


def pieces_of(module: nn.Module, inputs: Tensor, products: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the rows of a layer's input with their products, a few images at a time.

    Args:
        module: A linear layer, or a convolution of one or two dimensions.
        inputs: Its input, (B, ..., features), or (B, C, positions...) for a convolution.
        products: The products of all rows, (groups, rows, outputs per group).

    Yields:
        Rows, float32 (groups, some rows, columns), and their products, (groups, some rows, outputs per group).
    """
    first = 0
    for part in column_pieces(module, inputs):
        last = first + part.shape[1]
        yield part, products[:, first:last]
        first = last


def pieces_at(module: nn.Module, inputs: Tensor, products: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield some rows of a layer's input with their products, a few at a time; the other rows are not unfolded.

    Args:
        module: A linear layer, or a convolution of one or two dimensions.
        inputs: Its input, (B, ..., features), or (B, C, positions...) for a convolution.
        products: The products of all rows, (groups, rows, outputs per group).
        rows: Numbers of the wanted rows, (n,).

    Yields:
        Rows, float32 (groups, some rows, columns), and their products, (groups, some rows, outputs per group).
    """
    weight, each = module.weight, products.shape[1] // len(inputs)
    assert isinstance(weight, Tensor)
    patches = _patches(module, inputs)
    for some in rows.split(max(1, _PIECE // (len(products) * weight[0].numel()))):
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            image, place = some.div(each, rounding_mode="floor"), some % each
            line, column = place.div(patches.shape[3], rounding_mode="floor"), place % patches.shape[3]
            found = patches[image, :, line, column].reshape(len(some), module.groups, -1).transpose(0, 1)
        else:
            found = patches[some].unsqueeze(0)
        yield found, products[:, some]


def _patches(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return a view of a layer's input, from which rows can be taken.

    Returns:
        float32 (B, C, lines, columns, kernel height, kernel width) of a convolution, and (rows, features) of a linear
        layer.
    """
    inputs = inputs.float()
    if not isinstance(module, nn.Conv1d | nn.Conv2d):
        return inputs.reshape(-1, inputs.shape[-1])
    kernel, stride, dilation = _sizes(module)
    inputs = _padded(module, inputs)
    inputs = inputs.unsqueeze(2) if inputs.dim() == 3 else inputs
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True)]
    wide = inputs.unfold(2, reach[0], stride[0]).unfold(3, reach[1], stride[1])
    return wide[..., :: dilation[0], :: dilation[1]]


def _sizes(module: nn.Conv1d | nn.Conv2d) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Return the kernel size, stride and dilation of a convolution in two dimensions."""
    sizes = (module.kernel_size, module.stride, module.dilation)
    kernel, stride, dilation = ((size[0], size[1]) if len(size) == 2 else (1, size[0]) for size in sizes)
    return kernel, stride, dilation


def product_of(module: nn.Module, output: Tensor) -> Tensor:
    """Return the product of a layer's weight and its input: the output without the bias, as rows.

    Args:
        module: A linear layer, or a convolution of one or two dimensions.
        output: (..., outputs), or (B, outputs, positions...) of a convolution.

    Returns:
        A float32 copy, (groups, rows, outputs per group).
    """
    rows = rows_of(module, output)
    bias = module.bias
    return rows - bias.float().view(len(rows), 1, -1) if isinstance(bias, Tensor) else rows.clone()


def rows_of(module: nn.Module, output: Tensor) -> Tensor:
    """Return a layer's output, or its gradient, as float32 rows (groups, rows, outputs per group).

    Args:
        module: A linear layer, or a convolution of one or two dimensions.
        output: (..., outputs), or (B, outputs, positions...) of a convolution.
    """
    output = output.float()
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return _by_group(output.flatten(2), module.groups)
    return output.reshape(1, -1, output.shape[-1])


def _by_group(values: Tensor, groups: int) -> Tensor:
    """Reshape (B, groups * width, positions) to (groups, B * positions, width)."""
    batch, channels, positions = values.shape
    split = values.reshape(batch, groups, channels // groups, positions)
    return split.permute(1, 0, 3, 2).reshape(groups, batch * positions, channels // groups)


def _padded(module: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> Tensor:
    """Return a convolution's input with its padding."""
    timm_layers = sys.modules.get("timm.layers")  # is imported if the module is one of timm's
    if timm_layers is not None and isinstance(module, timm_layers.Conv2dSame):
        return timm_layers.pad_same(inputs, list(module.kernel_size), list(module.stride), list(module.dilation))
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
