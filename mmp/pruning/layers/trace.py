"""A forward pass on a few images that shows when each module of a network runs, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from mmp.pruning.layers.products import why_no_product

_SAMPLE = 2  # images of the pass; more would show nothing else
_UNCHANGED = 1e-2  # two outputs whose difference is below this share of the largest value differ by rounding only


@dataclass
class Calls:
    """When and how a module runs in a forward pass.

    Attributes:
        first: Position of its first start among all starts and ends; -1 if it never runs.
        last: Position of its last end.
        count: Number of its calls.
        changes_inputs: Whether it changes its inputs in place.
        changed: Whether its outputs are changed in place by later operations.
        shrinks: Whether its output has fewer bytes than its input.
    """

    first: int = -1
    last: int = -1
    count: int = 0
    changes_inputs: bool = False
    changed: bool = False
    shrinks: bool = False


@dataclass(frozen=True)
class Trace:
    """The record of a forward pass.

    Attributes:
        calls: When and how each module runs.
        unfit: For every weight whose module does not multiply its input by it, the reason, by the weight's name.
        norms: For every module whose output only a batch norm reads, that batch norm.
    """

    calls: Mapping[nn.Module, Calls]
    unfit: Mapping[str, str]
    norms: Mapping[nn.Module, _BatchNorm]


def trace(network: nn.Module, users: Mapping[str, Sequence[nn.Module]], images: Tensor) -> Trace:
    """Run a network and record when each module runs, and how.

    Args:
        network: The network, in eval mode.
        users: The modules that use each weight of interest, by its name.
        images: A batch, (B, C, H, W), of which the first images are enough.
    """
    images = images[:_SAMPLE]
    tracer = _Tracer(network, users)
    result = tracer.run(images)
    norms = tracer.norms()
    if not _absorb_constants(network, norms, images, result):  # an operation outside of modules reads an output, too
        norms = {
            module: norm for module, norm in norms.items() if _absorb_constants(network, {module: norm}, images, result)
        }
    return Trace(tracer.calls, tracer.unfit, norms)


class _Tracer:
    """Hooks on all modules of a network, which record one forward pass."""

    def __init__(self, network: nn.Module, users: Mapping[str, Sequence[nn.Module]]) -> None:
        self.calls = {module: Calls() for module in network.modules()}
        self.unfit: dict[str, str] = {}
        self._network = network
        self._weights_of: dict[nn.Module, list[str]] = {}
        for name, modules in users.items():
            for module in modules:
                self._weights_of.setdefault(module, []).append(name)
        self._clock = 0
        self._inputs: dict[nn.Module, list[tuple[Tensor, int]]] = {}  # of calls in progress, with their versions
        self._returned: list[tuple[Calls, Tensor, int]] = []  # outputs of all modules, with their versions
        # Outputs of the modules that use a weight, by address; kept alive, so that no other tensor gets the address.
        self._outputs: dict[int, tuple[Tensor, int, nn.Module]] = {}
        self._readers: dict[int, list[_BatchNorm | None]] = {}  # of these outputs; None for all other modules

    def run(self, images: Tensor) -> Any:
        """Return the network's output."""
        handles: list[Any] = []
        for module in self.calls:
            handles.append(module.register_forward_pre_hook(self.enter, with_kwargs=True))
            handles.append(module.register_forward_hook(self.leave))
        try:
            result = self._network(images.clone())
        finally:
            for handle in handles:
                handle.remove()
        for calls, tensor, version in self._returned:
            calls.changed |= tensor._version != version
        return result

    def enter(self, module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Record the start of a module's call."""
        calls = self.calls[module]
        calls.first = self._clock if calls.first < 0 else calls.first
        self._clock += 1
        tensors = _tensors_of((arguments, options))
        self._inputs[module] = [(tensor, tensor._version) for tensor in tensors]
        norm = module if isinstance(module, _BatchNorm) else None
        passes_on = isinstance(module, nn.Identity) or any(True for _ in module.children())
        for tensor in () if passes_on and norm is None else tensors:
            if output := self._outputs.get(tensor.data_ptr()):
                reader = norm if norm is not None and _same_channels(tensor, *output) else None
                self._readers.setdefault(tensor.data_ptr(), []).append(reader)

    def leave(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        """Record the end of a module's call."""
        calls = self.calls[module]
        calls.last, calls.count = self._clock, calls.count + 1
        self._clock += 1
        inputs = self._inputs.pop(module, [])
        calls.changes_inputs |= any(tensor._version != version for tensor, version in inputs)
        calls.shrinks |= bytes_of(output) < bytes_of([tensor for tensor, _ in inputs])
        self._returned.extend((calls, tensor, tensor._version) for tensor in _tensors_of(output))
        names = self._weights_of.get(module, [])
        if names and isinstance(output, Tensor):
            self._outputs[output.data_ptr()] = (output, output._version, module)
        if not self.unfit.keys() >= set(names) and (reason := why_no_product(module, arguments, output)):
            self.unfit |= dict.fromkeys(names, reason)

    def norms(self) -> dict[nn.Module, _BatchNorm]:
        """Return, for every module whose output one batch norm and no other module reads, that batch norm."""
        found = {}
        for address, (_, _, module) in self._outputs.items():
            readers = self._readers.get(address, [])
            norm = readers[0] if len(readers) == 1 else None
            if norm is not None and norm.running_mean is not None and self.calls[norm].count == 1:
                found[module] = norm
        return found


def _absorb_constants(network: nn.Module, norms: Mapping[nn.Module, _BatchNorm], images: Tensor, result: Any) -> bool:
    """Return whether the network's output stays the same when a constant is added to outputs and to running means.

    Args:
        network: The network.
        norms: The batch norm behind each of the modules whose outputs get a constant.
        images: Images, (B, C, H, W).
        result: The network's output for these images.
    """
    handles: list[Any] = []
    before = {norm: _mean_of(norm).clone() for norm in norms.values()}
    try:
        for module, norm in norms.items():
            constant = norm.running_var.sqrt() if norm.running_var is not None else torch.ones_like(before[norm])
            _mean_of(norm).add_(constant)
            shape = (-1, *[1] * (module.weight.dim() - 2)) if isinstance(module, nn.Conv1d | nn.Conv2d) else (-1,)
            added = constant.view(shape)
            handles.append(module.register_forward_hook(lambda _, __, output, added=added: output + added))
        shifted = network(images.clone())
    finally:
        for handle in handles:
            handle.remove()
        for norm, mean in before.items():
            _mean_of(norm).copy_(mean)
    pairs = zip(tree_leaves(result), tree_leaves(shifted), strict=True)
    tensors = [(a, b) for a, b in pairs if isinstance(a, Tensor) and a.is_floating_point()]
    return all((a - b).abs().max() <= _UNCHANGED * a.abs().max() for a, b in tensors if a.numel())


def _mean_of(norm: _BatchNorm) -> Tensor:
    assert norm.running_mean is not None
    return norm.running_mean


def _same_channels(read: Tensor, output: Tensor, version: int, module: nn.Module) -> bool:
    """Return whether a batch norm reads a module's output unchanged, perhaps reshaped, channel by channel."""
    channel = 1 if isinstance(module, nn.Conv1d | nn.Conv2d) else output.dim() - 1
    shape = read.dim() > 1 and (read.shape[1], read.stride(1)) == (output.shape[channel], output.stride(channel))
    return shape and read.numel() == output.numel() and read._version == version


def _tensors_of(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def bytes_of(value: Any) -> int:
    """Return the bytes of all tensors in nested containers."""
    return sum(tensor.nbytes for tensor in _tensors_of(value))
