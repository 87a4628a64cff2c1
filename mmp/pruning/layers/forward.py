"""A walk through a network, layer by layer in forward order, on a fixed set of images.

To get what one layer reads, the network is run up to that layer and no further; modules that lie wholly behind it in
the past give back what they put out the last time. So a walk over all layers costs a few forward passes, not one per
layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map

from mmp.pruning.layers.products import product_of, why_no_product


class _EnoughError(Exception):
    """Raised inside a forward pass when everything that was asked for has been seen."""


@dataclass
class _Calls:
    """When and how a module ran in a forward pass.

    Attributes:
        first: Position of its first entry.
        last: Position of its last exit.
        count: How often it ran.
        changes_inputs: Whether it changes what it reads in place.
        changed: Whether what it puts out is changed in place by what follows.
        shrinks: Whether it puts out less than it reads.
    """

    first: int = -1
    last: int = -1
    count: int = 0
    changes_inputs: bool = False
    changed: bool = False
    shrinks: bool = False


_MOST_KEPT = 4 * 2**30  # bytes of outputs that one walk keeps; what goes beyond is computed again
_UNCHANGED = 1e-2  # difference of two outputs, as a share of the largest, that is rounding
_SAMPLE = 2  # images that are enough to see what there is


class Walk:
    """See the module. The network must be in eval mode, and change only in layers at or behind the one asked for.

    Args:
        network: The network.
        names: Names of the weights of interest.
        images: Batches of images, (B, C, H, W) each.

    Attributes:
        order: The names that the images reach, by the position of their first use.
    """

    def __init__(self, network: nn.Module, names: Iterable[str], images: Sequence[Tensor]) -> None:
        self._network, self._images = network, images
        self._modules = dict(network.named_modules())
        holders: dict[int, list[nn.Module]] = {}
        for module in self._modules.values():
            for parameter in module.parameters(recurse=False):
                holders.setdefault(id(parameter), []).append(module)
        parameters = dict(network.named_parameters(remove_duplicate=False))
        self._users = {name: holders[id(parameters[name])] for name in names}
        self._calls: dict[nn.Module, _Calls] = {module: _Calls() for module in self._modules.values()}
        self._norms: dict[nn.Module, _BatchNorm] = {}
        self._unlike: dict[str, str] = {}
        self._kept: dict[nn.Module, dict[int, Any]] = {}
        self._room = 0
        self._trace()
        used = {name: [self._calls[m].first for m in self._users[name] if self._calls[m].count] for name in self._users}
        self.order = sorted((name for name in used if used[name]), key=lambda name: min(used[name]))

    def owner(self, name: str) -> nn.Module:
        """Return the first module that uses a weight."""
        return self._users[name][0]

    def norm_behind(self, name: str) -> nn.Module | None:
        """Return the batch norm that reads a layer's output and nothing else, if there is one."""
        users = self._users[name]
        return self._norms.get(users[0]) if len(users) == 1 and self._calls[users[0]].count == 1 else None

    def unfit(self, name: str) -> str | None:
        """Return why a layer cannot be re-solved, None if it can."""
        return self._unlike.get(name)

    def biases(self, name: str) -> list[Tensor | None]:
        """Return the bias of every module that uses a weight."""
        return [module.bias if isinstance(module.bias, Tensor) else None for module in self._users[name]]

    def inputs(self, name: str) -> Iterator[list[tuple[nn.Module, Tensor]]]:
        """Yield, for each batch of images, the modules that use a weight with what each reads, call by call.

        Args:
            name: Name of the weight, one of ``order``.
        """
        return self._record(name, lambda module, arguments, _: (module, arguments[0]), before=True)

    def products(self, name: str) -> Iterator[list[Tensor]]:
        """Yield what a weight makes of each batch: outputs less biases, (groups, rows, outputs per group) each.

        Args:
            name: Name of the weight, one of ``order``.
        """
        return self._record(name, lambda module, _, output: product_of(module, output), before=False)

    def visit(self, images: Tensor, see: Callable[[str, nn.Module, Tensor, Tensor], None]) -> Tensor:
        """Run the network once, and show every layer that can be re-solved what it reads and puts out.

        Args:
            images: A batch, (B, C, H, W).
            see: Called with a weight's name, its module, that module's input and its output, call by call.

        Returns:
            The network's output.
        """
        handles = []
        for name in self.order:
            if name in self._unlike:
                continue

            def hook(module: nn.Module, arguments: Any, output: Tensor, name: str = name) -> None:
                see(name, module, arguments[0], output)

            handles += [module.register_forward_hook(hook) for module in self._users[name]]
        try:
            return self._network(images)
        finally:
            for handle in handles:
                handle.remove()

    def _record(self, name: str, take: Callable[..., Any], before: bool) -> Iterator[list[Any]]:
        users = [module for module in self._users[name] if self._calls[module].count]
        wanted = sum(self._calls[module].count for module in users)
        finished = self._finished(min(self._calls[module].first for module in users))
        inner = [kept for module, kept in self._kept.items() if module not in finished]
        self._kept |= {module: {} for module in finished if module not in self._kept}
        self._room = _MOST_KEPT - sum(_bytes_of(output) for kept in self._kept.values() for output in kept.values())
        for number, images in enumerate(self._images):
            seen: list[Any] = []

            def see(module: nn.Module, arguments: Any, output: Any = None, seen: list[Any] = seen) -> None:
                taken = take(module, arguments, output)
                seen.append(_cloned(taken) if wanted > 1 else taken)  # what follows may change it in place
                if len(seen) == wanted:
                    raise _EnoughError

            handles = [m.register_forward_pre_hook(see) if before else m.register_forward_hook(see) for m in users]
            try:
                with self._remembering(number), suppress(_EnoughError):
                    self._network(images.clone())
            finally:
                for handle in handles:
                    handle.remove()
            for kept in inner:  # of what lies in modules that are finished by now: it has served them once more
                self._room += _bytes_of(kept.pop(number, None))
            yield seen
        self._kept = {module: self._kept[module] for module in finished}

    # --- the past is not computed twice ---

    @contextmanager
    def _remembering(self, number: int) -> Iterator[None]:
        for module, kept in self._kept.items():
            own = _cloned if self._calls[module].changed else _same
            module.forward = self._recall(module.forward, kept, number, own)
        try:
            yield
        finally:
            for module in self._kept:
                del module.forward  # the class's own forward is in force again

    def _recall(
        self, forward: Callable[..., Any], kept: dict[int, Any], number: int, own: Callable[[Any], Any]
    ) -> Callable[..., Any]:
        def recall(*arguments: Any, **options: Any) -> Any:
            if number in kept:
                return own(kept[number])
            output = forward(*arguments, **options)
            if (needed := _bytes_of(output)) <= self._room:
                self._room -= needed
                kept[number] = own(output)
            return output

        return recall

    def _finished(self, here: int) -> list[nn.Module]:
        """Modules that ran once and were done before a position, and lie in no other such module.

        Those without parameters (activations, dropout) are computed again, unless they put out less than they read
        (pooling); to keep what they put out costs more memory than it saves time.
        """
        found: list[nn.Module] = []
        inside: set[str] = set()
        for path, module in self._modules.items():
            if any(path.startswith(f"{outer}.") for outer in inside):
                continue
            calls = self._calls[module]
            bare = "forward" not in vars(module)
            costly = calls.shrinks or any(True for _ in module.parameters())
            if path and bare and costly and calls.count == 1 and calls.last < here and not calls.changes_inputs:
                found.append(module)
                inside.add(path)
        return found

    # --- two passes over a few images, to see what there is ---

    def _trace(self) -> None:
        clock = 0
        outputs: dict[int, tuple[Tensor, int, nn.Module]] = {}  # by address; held, so that no other tensor takes it
        readers: dict[int, list[nn.Module | None]] = {}  # of those outputs; a batch norm, or None for anything else
        versions: dict[nn.Module, list[tuple[Tensor, int]]] = {}
        made: list[tuple[_Calls, Tensor, int]] = []
        owned = {user: name for name, users in self._users.items() for user in users}

        def enter(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
            nonlocal clock
            calls = self._calls[module]
            calls.first = clock if calls.first < 0 else calls.first
            clock += 1
            tensors = [leaf for leaf in tree_leaves((arguments, options)) if isinstance(leaf, Tensor)]
            versions[module] = [(tensor, tensor._version) for tensor in tensors]
            leaf = not any(True for _ in module.children()) and not isinstance(module, nn.Identity)
            for tensor in tensors if leaf or isinstance(module, _BatchNorm) else ():
                if made := outputs.get(tensor.data_ptr()):
                    norm = isinstance(module, _BatchNorm) and _same_channels(tensor, *made)
                    readers.setdefault(tensor.data_ptr(), []).append(module if norm else None)

        def leave(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            nonlocal clock
            calls = self._calls[module]
            calls.last, calls.count = clock, calls.count + 1
            clock += 1
            read = versions.pop(module, [])
            calls.changes_inputs |= any(tensor._version != before for tensor, before in read)
            calls.shrinks |= _bytes_of(output) < _bytes_of([tensor for tensor, _ in read])
            made.extend((calls, leaf, leaf._version) for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
            if module in owned:
                if isinstance(output, Tensor):
                    outputs[output.data_ptr()] = (output, output._version, module)
                if owned[module] not in self._unlike and (reason := why_no_product(module, arguments, output)):
                    self._unlike[owned[module]] = reason

        handles: list[Any] = []
        for module in self._modules.values():
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave))
        try:
            result = self._network(self._images[0][:_SAMPLE].clone())
        finally:
            for handle in handles:
                handle.remove()
        for calls, tensor, before in made:
            calls.changed |= tensor._version != before
        norms: dict[nn.Module, _BatchNorm] = {}
        for address, (_, _, module) in outputs.items():
            behind = readers.get(address, [])
            norm = behind[0] if len(behind) == 1 else None
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None and self._calls[norm].count == 1:
                norms[module] = norm
        if not self._takes_up_constants(norms, result):  # something that is no module reads an output, too
            norms = {module: norm for module, norm in norms.items() if self._takes_up_constants({module: norm}, result)}
        self._norms = norms

    def _takes_up_constants(self, norms: Mapping[nn.Module, _BatchNorm], result: Any) -> bool:
        """Return whether constants added to layers' outputs and to the running means behind them change nothing."""
        handles, before = (
            [],
            {norm: norm.running_mean.clone() for norm in norms.values() if norm.running_mean is not None},
        )
        try:
            for module, norm in norms.items():
                assert norm.running_mean is not None
                constant = norm.running_var.sqrt() if norm.running_var is not None else torch.ones_like(before[norm])
                norm.running_mean.add_(constant)
                shape = (-1, *[1] * (module.weight.dim() - 2)) if isinstance(module, nn.Conv1d | nn.Conv2d) else (-1,)
                added = constant.view(shape)
                handles.append(module.register_forward_hook(lambda _, __, output, added=added: output + added))
            shifted = self._network(self._images[0][:_SAMPLE].clone())
        finally:
            for handle in handles:
                handle.remove()
            for norm, mean in before.items():
                assert norm.running_mean is not None
                norm.running_mean.copy_(mean)
        pairs = zip(tree_leaves(result), tree_leaves(shifted), strict=True)
        tensors = [(a, b) for a, b in pairs if isinstance(a, Tensor) and a.is_floating_point()]
        return all((a - b).abs().max() <= _UNCHANGED * a.abs().max() for a, b in tensors if a.numel())


def _same_channels(read: Tensor, output: Tensor, version: int, owner: nn.Module) -> bool:
    """Return whether a batch norm reads a layer's output as it was made, perhaps reshaped, channel by channel."""
    channel = 1 if isinstance(owner, nn.Conv1d | nn.Conv2d) else output.dim() - 1
    shape = read.dim() > 1 and (read.shape[1], read.stride(1)) == (output.shape[channel], output.stride(channel))
    return shape and read.numel() == output.numel() and read._version == version


def _cloned(value: Any) -> Any:
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)


def _same(value: Any) -> Any:
    return value


def _bytes_of(value: Any) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
