"""Experiments on a network whose layers are frozen: change the output of one, and see which inputs of others change.

Every product of an input with a weight (a linear layer or a convolution) returns a fixed random tensor. A change to one
of them therefore reaches only the layers that read it directly: through activations, norms, pools, gates, sums and
attention, but not through another layer.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from mmp.pruning.channels.group import Part
from mmp.pruning.channels.moved import Moved, differs
from mmp.pruning.channels.products import PRODUCTS, Product, argument_of, arguments_of
from mmp.pruning.channels.shortcuts import OverError, Shortcuts, repeated

_SPREAD = 2.0  # frozen outputs are between -2 and 2: both sides of an activation, but no gate is fully shut
_STEP = 6.0  # size of a change
_MANY = 16  # values of which some are negative and some are not


class Probe:
    """A copy of a network with frozen products.

    Args:
        network: Any network.
        image: One image, (1, C, H, W).
        batch: Number of tests in one forward pass.

    Attributes:
        products: The weights that one product uses, by name, in forward order.
        unusual: The weights that are used more than once, or whose input has another form in a batch.
        constant: The weights whose input does not depend on the image, as that of an MLP of positions.
        tensors: All parameters and buffers by name.
    """

    def __init__(self, network: nn.Module, image: Tensor, batch: int = 8) -> None:
        self.network = randomised(network)
        self.image, self._batch = image.detach().float().cpu(), batch
        self.products: dict[str, Product] = {}
        self.unusual: set[str] = set()
        self.constant: set[str] = set()
        self.tensors = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        self._names = {_address(tensor): name for name, tensor in self.tensors.items() if tensor.numel()}
        uses = Counter(id(parameter) for _, parameter in self.network.named_parameters(remove_duplicate=False))
        self._shared = {name for name, tensor in self.tensors.items() if uses[id(tensor)] > 1}
        # Modules that keep tensors they made of their parameters, as LeViT's attention biases, drop them in `train`.
        self._caching = [module for module in self.network.modules() if type(module).train is not nn.Module.train]
        # Outputs of products, and inputs of products and batch norms when nothing is changed. The key has the shape of
        # the input, too, since a layer that runs several times may have inputs of several sizes.
        self._frozen: dict[tuple[str, torch.Size], Tensor] = {}
        self._inputs: dict[tuple[Part, torch.Size], list[Tensor]] = defaultdict(list)  # one for each run of the layer
        self._widths: dict[Part, int] = {}
        with torch.no_grad():
            self._run(_Recording(self), 1)
            for (name, _), output in self._frozen.items():
                positions = output.uniform_(-_SPREAD, _SPREAD).movedim(self.products[name].channel, -1)
                positions[(0,) * (positions.dim() - 1)] = 1.0  # no activation and no gate hides a channel here
            self._shortcuts = Shortcuts(self.network, self.image)
            self._output = self._shortcuts.record(
                lambda images: first_tensor(self._run(_Replaying(self, images if images > 1 else 0), images))
            )

    def width(self, part: Part) -> int:
        """Return the number of channels of a part that reads."""
        return self._widths[part]

    def change(self, weight: str, channels: Sequence[Tensor], readers: Set[Part] = frozenset()) -> Moved:
        """Change output channels of a product.

        Args:
            weight: Name of its weight.
            channels: For each of T tests, the channels to change.
            readers: The parts of interest. If given, each pass ends once all of them are seen.
        """
        parts = []
        positions = min(output.numel() for (name, _), output in self._frozen.items() if name == weight)
        positions //= self.products[weight].outputs
        batch = 1 if weight in self.constant else self._batch
        for first in range(0, len(channels), batch):
            chosen = channels[first : first + batch]
            with self._shortcuts.around(weight.rpartition(".")[0], len(chosen)):
                parts.append(self._both(positions, partial(self._pass, len(chosen), weight, chosen, readers)))
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

        def changed(indices: Tensor, sign: float) -> Moved:
            tensor.index_add_(dim, indices, noise(before.index_select(dim, indices), sign))
            moved = self._pass(1)
            tensor.copy_(before)
            return moved

        owner = "" if name in self._shared else name.rpartition(".")[0]
        with self._shortcuts.around(owner, 1):
            for indices in where:
                size = before.numel() * len(indices) // before.shape[dim]
                parts.append(self._both(size, partial(changed, indices)))
        return Moved.stacked(parts)

    @staticmethod
    def _both(values: int, run: Callable[[float], Moved]) -> Moved:
        """Return what changes of either sign do: in one pass if there are many values, each across zero."""
        return run(0.0) if values >= _MANY else run(1.0) | run(-1.0)

    def _pass(
        self,
        tests: int,
        weight: str | None = None,
        channels: Sequence[Tensor] = (),
        readers: Set[Part] = frozenset(),
        sign: float = 1.0,
    ) -> Moved:
        mode = _Replaying(self, tests, weight, channels, sign, readers)
        moved = torch.zeros(tests, dtype=torch.bool, device="cpu")
        with torch.no_grad(), suppress(OverError):
            output = first_tensor(self._run(mode, tests))
            if output.shape == (tests * len(self._output), *self._output.shape[1:]):
                moved = differs(output, self._output, tests).flatten(1).any(1)
            else:
                moved = ~moved
        return Moved(mode.moved, moved)

    def _run(self, mode: TorchFunctionMode, repeats: int) -> Any:
        for module in self._caching:
            module.train(True)
            module.train(False)
        with mode:
            return self.network(repeated(self.image, repeats))

    def name_of(self, tensor: Any) -> str | None:
        """Return the name of a parameter or buffer, or of the one that a tensor is a view of."""
        return self._names.get(_address(tensor)) if isinstance(tensor, Tensor) and tensor.numel() else None


class _Recording(TorchFunctionMode):
    """Runs the network as it is, and records its products."""

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self._probe = probe

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func in PRODUCTS and (call := arguments_of(func, args, kwargs)):
            inputs, weight, bias, groups = call
            name = self._probe.name_of(weight)
            if name and weight.shape == self._probe.tensors[name].shape:
                if name in self._probe.products:
                    self._probe.unusual.add(name)
                channel = -1 if func is F.linear else 1
                product = Product(
                    name, self._probe.name_of(bias), weight.shape[0], weight.shape[1] * groups, groups, channel
                )
                self._probe.products[name] = product
                self._probe._frozen[name, inputs.shape[1:]] = output.clone()
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
        self._readers, self._unseen = readers, set(readers)
        self.moved: dict[Part, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, probe = kwargs or {}, self._probe
        if func in PRODUCTS and (call := arguments_of(func, args, kwargs)):
            inputs, weight, _, _ = call
            name = probe.name_of(weight)
            shape = inputs.shape[1:]
            if name and (name, shape) in probe._frozen and weight.shape == probe.tensors[name].shape:
                channel = probe.products[name].channel
                self._see(Part(name, "in"), inputs, channel)
                return self._output(name, shape, channel)
        if func is F.batch_norm and (name := probe.name_of(argument_of(args, kwargs, 1, "running_mean"))):
            self._see(Part(name.rpartition(".")[0], "norm"), args[0], 1)
        return func(*args, **kwargs)

    def _see(self, part: Part, inputs: Tensor, channel: int) -> None:
        if not self._tests:
            self._probe._inputs[part, inputs.shape[1:]].append(inputs.clone())
            self._probe._widths[part] = inputs.shape[channel]
            return
        if self._readers and part not in self._readers:
            return
        before = self._probe._inputs.get((part, inputs.shape[1:]), [])
        if before and self._tests > 1 and inputs.shape == before[0].shape:
            self._probe.constant.add(part.name)
            return
        if not before or inputs.shape != (self._tests * len(before[0]), *before[0].shape[1:]):
            self._probe.unusual.add(part.name)
            return
        # A pass may skip runs of a layer that runs several times, so its input is compared with the most similar one.
        moved = torch.stack([differs(inputs, one, self._tests) for one in before])
        nearest = moved.flatten(2).sum(2).argmin(0)
        moved = moved[nearest, range(self._tests)].movedim(channel if channel < 0 else channel + 1, -1)
        moved = moved.reshape(self._tests, -1, moved.shape[-1]).any(1)
        self.moved[part] = self.moved[part] | moved if part in self.moved else moved
        if part in self._unseen:
            self._unseen.remove(part)
            if not self._unseen:
                raise OverError

    def _output(self, name: str, shape: torch.Size, channel: int) -> Tensor:
        repeats = 1 if name in self._probe.constant else max(self._tests, 1)
        output = repeated(self._probe._frozen[name, shape], repeats)
        if name != self._weight:
            return output
        each = len(output) // self._tests
        for test, chosen in enumerate(self._channels):
            part = output[test * each : (test + 1) * each].movedim(channel, -1)
            part[..., chosen] += noise(part[..., chosen], self._sign)
        return output


def randomised(network: nn.Module) -> nn.Module:
    """Return a copy on the CPU in float32 and eval mode.

    Norms and scales get random values, since a scale of zero would hide the channels behind it.
    """
    network = copy.deepcopy(network).cpu().float().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() <= 1:
                parameter.copy_(1 + 0.1 * torch.randn_like(parameter))
        for module in network.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                module.reset_running_stats()
    return network.requires_grad_(False)


def noise(values: Tensor, sign: float) -> Tensor:
    """Return random changes of values: of one sign, or if that is 0, each to the other side of zero.

    A value that crosses zero changes what is behind an activation, also where only one position reads it.
    """
    return _STEP * (torch.rand_like(values) + 0.5) * (sign or torch.where(values > 0, -1.0, 1.0))


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def first_tensor(output: Any) -> Tensor:
    """Return the first tensor in the output of a network, which may be nested in tuples, lists and dictionaries."""
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
