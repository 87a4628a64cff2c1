"""Experiments on a network whose layers are frozen: change the output of one, and see which inputs of others change.

Every product of an input with a weight (a linear layer or a convolution) returns a fixed random tensor. A change to one
of them therefore reaches only the layers that read it directly: through activations, norms, pools, gates, sums and
attention, but not through another layer.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from mmp.pruning.channels.group import Part
from mmp.pruning.channels.moved import Moved, differs
from mmp.pruning.channels.shortcuts import Shortcuts, repeated

_PRODUCTS = {F.linear, torch.conv1d, torch.conv2d, torch.conv3d, F.conv1d, F.conv2d, F.conv3d}
_SPREAD = 2.0  # frozen outputs are between -2 and 2: both sides of an activation, but no gate is fully shut
_STEP = 6.0  # size of a change


@dataclass(frozen=True)
class Product:
    """A weight that is multiplied by one input.

    Attributes:
        weight: Its name in ``named_parameters``.
        bias: Name of the bias that is added to the product; None without one.
        outputs: Number of output channels.
        inputs: Number of input channels, of all groups together.
        groups: Groups of a convolution.
        channel: Dimension of the channels in input and output: 1, or -1 for a linear layer.
    """

    weight: str
    bias: str | None
    outputs: int
    inputs: int
    groups: int
    channel: int


class Probe:
    """A copy of a network with frozen products.

    Args:
        network: Any network.
        image: One image, (1, C, H, W).
        batch: Number of tests in one forward pass.

    Attributes:
        products: The weights that one product uses, by name, in forward order.
        unusual: The weights that are used more than once, or whose input has another form in a batch.
        tensors: All parameters and buffers by name.
    """

    def __init__(self, network: nn.Module, image: Tensor, batch: int = 16) -> None:
        self.network = _randomised(network)
        self.image, self._batch = image.detach().float().cpu(), batch
        self.products: dict[str, Product] = {}
        self.unusual: set[str] = set()
        self.tensors = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        self._names = {_address(tensor): name for name, tensor in self.tensors.items() if tensor.numel()}
        self._frozen: dict[str, Tensor] = {}
        self._inputs: dict[Part, Tensor] = {}  # of products and batch norms, when nothing is changed
        with torch.no_grad():
            self._run(_Recording(self), 1)
            for name, output in self._frozen.items():
                frozen = torch.empty_like(output).uniform_(-_SPREAD, _SPREAD)
                positions = frozen.movedim(self.products[name].channel, -1)
                positions[(0,) * (positions.dim() - 1)] = 1.0  # no activation and no gate hides a channel here
                self._frozen[name] = frozen
            self._shortcuts = Shortcuts(self.network, self.image)
            self._output = self._shortcuts.record(
                lambda images: first_tensor(self._run(_Replaying(self, images if images > 1 else 0), images))
            )

    def width(self, part: Part) -> int:
        """Return the number of channels of a part that reads."""
        channel = self.products[part.name].channel if part.side == "in" else 1
        return self._inputs[part].shape[channel]

    def readers(self, weight: str) -> tuple[frozenset[Part], bool]:
        """Return the parts that read a product directly, and whether the network's output does."""
        moved = self.change(weight, [torch.arange(self.products[weight].outputs)])
        return frozenset(moved.changed()), bool(moved.output.any())

    def change(self, weight: str, channels: Sequence[Tensor], readers: Set[Part] = frozenset()) -> Moved:
        """Change output channels of a product.

        Args:
            weight: Name of its weight.
            channels: For each of T tests, the channels to change.
            readers: The parts of interest. If given, each pass ends once all of them are seen.
        """
        parts = []
        owner = weight.rpartition(".")[0]
        for first in range(0, len(channels), self._batch):
            chosen = channels[first : first + self._batch]
            with self._shortcuts.before(owner, len(chosen)):
                up, down = (self._pass(len(chosen), weight, chosen, sign, readers) for sign in (1.0, -1.0))
                parts.append(up | down)
        return Moved.stacked(parts)

    def change_tensor(self, name: str, dim: int, where: Sequence[Tensor]) -> Moved:
        """Change elements of a parameter or buffer.

        Args:
            name: Its name.
            dim: A dimension.
            where: For each of T tests, indices along it.
        """
        tensor, parts = self.tensors[name].detach(), []
        before = tensor.clone()
        for indices in where:
            both = []
            for sign in (1.0, -1.0):
                noise = sign * _STEP * (torch.rand_like(before.index_select(dim, indices)) + 0.5)
                tensor.index_add_(dim, indices, noise)
                both.append(self._pass(1))
                tensor.copy_(before)
            parts.append(both[0] | both[1])
        return Moved.stacked(parts)

    def _pass(
        self,
        tests: int,
        weight: str | None = None,
        channels: Sequence[Tensor] = (),
        sign: float = 1.0,
        readers: Set[Part] = frozenset(),
    ) -> Moved:
        mode = _Replaying(self, tests, weight, channels, sign, readers)
        moved = torch.zeros(tests, dtype=torch.bool)
        with torch.no_grad(), suppress(_AllSeenError):
            output = first_tensor(self._run(mode, tests))
            if output.shape == (tests * len(self._output), *self._output.shape[1:]):
                moved = differs(output, self._output, tests).flatten(1).any(1)
            else:
                moved = ~moved
        return Moved(mode.moved, moved)

    def _run(self, mode: TorchFunctionMode, repeats: int) -> Any:
        self.network.train().eval()  # drops tensors that a network keeps of its parameters (LeViT's attention biases)
        with mode:
            return self.network(repeated(self.image, repeats))

    def name_of(self, tensor: Any) -> str | None:
        """Return the name of a parameter or buffer, or of the one that a tensor is a view of."""
        return self._names.get(_address(tensor)) if isinstance(tensor, Tensor) and tensor.numel() else None


class _AllSeenError(Exception):
    """Ends a forward pass once everything of interest is seen."""


class _Recording(TorchFunctionMode):
    """Runs the network as it is, and records its products."""

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self._probe = probe

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func in _PRODUCTS and (call := _arguments(func, args, kwargs)):
            _, weight, bias, groups = call
            name = self._probe.name_of(weight)
            if name and weight.shape == self._probe.tensors[name].shape:
                if name in self._probe.products:
                    self._probe.unusual.add(name)
                inputs = weight.shape[1] * groups
                channel = -1 if func is F.linear else 1
                product = Product(name, self._probe.name_of(bias), weight.shape[0], inputs, groups, channel)
                self._probe.products[name] = product
                self._probe._frozen[name] = output
        return output


class _Replaying(TorchFunctionMode):
    """Runs the network with frozen products, one of which may be changed, and compares the inputs of all."""

    def __init__(
        self,
        probe: Probe,
        tests: int = 0,
        weight: str | None = None,
        channels: Sequence[Tensor] = (),
        sign: float = 1.0,
        readers: Set[Part] = frozenset(),
    ) -> None:
        super().__init__()
        self._probe, self._tests, self._weight, self._channels, self._sign = probe, tests, weight, channels, sign
        self._unseen = set(readers)
        self.moved: dict[Part, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, probe = kwargs or {}, self._probe
        if func in _PRODUCTS and (call := _arguments(func, args, kwargs)):
            inputs, weight, _, _ = call
            name = probe.name_of(weight)
            if name in probe._frozen and weight.shape == probe.tensors[name].shape:
                channel = probe.products[name].channel
                self._see(Part(name, "in"), inputs, channel)
                return self._output(name, channel)
        if func is F.batch_norm and (name := probe.name_of(_argument(args, kwargs, 1, "running_mean"))):
            self._see(Part(name.rpartition(".")[0], "norm"), args[0], 1)
        return func(*args, **kwargs)

    def _see(self, part: Part, inputs: Tensor, channel: int) -> None:
        if not self._tests:
            self._probe._inputs[part] = inputs.clone()
            return
        before = self._probe._inputs[part]
        if inputs.shape != (self._tests * len(before), *before.shape[1:]):
            self._probe.unusual.add(part.name)
            return
        moved = differs(inputs, before, self._tests).movedim(channel if channel < 0 else channel + 1, -1)
        moved = moved.reshape(self._tests, -1, moved.shape[-1]).any(1)
        self.moved[part] = self.moved[part] | moved if part in self.moved else moved
        if part in self._unseen:
            self._unseen.remove(part)
            if not self._unseen:
                raise _AllSeenError

    def _output(self, name: str, channel: int) -> Tensor:
        output = repeated(self._probe._frozen[name], max(self._tests, 1))
        if name != self._weight:
            return output
        each = len(output) // self._tests
        for test, chosen in enumerate(self._channels):
            part = output[test * each : (test + 1) * each].movedim(channel, -1)
            part[..., chosen] += self._sign * _STEP * (torch.rand(*part.shape[:-1], len(chosen)) + 0.5)
        return output


def _randomised(network: nn.Module) -> nn.Module:
    """Return a copy on the CPU in float32 and eval mode.

    Norms and scales get random values, since a scale of zero would hide the channels behind it.
    """
    network = copy.deepcopy(network).cpu().float()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() <= 1:
                parameter.copy_(1 + 0.1 * torch.randn_like(parameter))
        for module in network.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                module.reset_running_stats()
    return network.requires_grad_(False)


def _arguments(func: Any, args: Any, kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Any, int] | None:
    """Return input, weight, bias and groups of a product; None if they are no tensors."""
    inputs, weight = (_argument(args, kwargs, i, name) for i, name in enumerate(("input", "weight")))
    if not isinstance(inputs, Tensor) or not isinstance(weight, Tensor):
        return None
    groups = 1 if func is F.linear else _argument(args, kwargs, 6, "groups") or 1
    return inputs, weight, _argument(args, kwargs, 2, "bias"), groups


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any], position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def first_tensor(output: Any) -> Tensor:
    """Return the first tensor in the output of a network, which may be nested in tuples, lists and dictionaries."""
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
