"""A walk through a network, layer by layer in forward order, on a fixed set of images.

To record one layer, the network runs up to that layer only, and modules that finished before it return their outputs of
an earlier pass. A walk over all layers therefore costs a few forward passes, not one per layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mmp.pruning.layers.products import product_of
from mmp.pruning.layers.trace import bytes_of, trace

_MOST_CACHED = 4 * 2**30  # bytes of outputs that a walk keeps; further outputs are computed again


class _RecordedError(Exception):
    """Ends a forward pass once all calls of a layer are recorded."""


class LayerWalk:
    """Records the inputs and outputs of each layer, in forward order.

    Between two records the network may change, but only in the layers that were recorded or come later.

    Args:
        network: The network, in eval mode.
        names: Names of the weights of interest.
        images: Batches of images, (B, C, H, W) each.

    Attributes:
        order: The names that the images reach, in the order of their first use.
    """

    def __init__(self, network: nn.Module, names: Iterable[str], images: Sequence[Tensor]) -> None:
        self._network, self._images = network, images
        self._modules = dict(network.named_modules())
        self._holders: dict[int, list[nn.Module]] = {}  # of each parameter, by its id
        for module in self._modules.values():
            for parameter in module.parameters(recurse=False):
                self._holders.setdefault(id(parameter), []).append(module)
        parameters = dict(network.named_parameters(remove_duplicate=False))
        self._users = {name: self._holders[id(parameters[name])] for name in names}
        self._trace = trace(network, self._users, images[0])
        self._calls = self._trace.calls
        self._cached: dict[nn.Module, dict[int, Any]] = {}  # outputs of finished modules, by number of the batch
        self._room = 0  # bytes
        starts = {name: [self._calls[module].first for module in self._used(name)] for name in self._users}
        self.order = sorted((name for name in starts if starts[name]), key=lambda name: min(starts[name]))

    def owner(self, name: str) -> nn.Module:
        """Return the first module that uses a weight."""
        return self._users[name][0]

    def norm_behind(self, name: str) -> nn.Module | None:
        """Return the batch norm that is the only reader of a layer's output, None if there is none."""
        users = self._users[name]
        return self._trace.norms.get(users[0]) if len(users) == 1 and self._calls[users[0]].count == 1 else None

    def unfit(self, name: str) -> str | None:
        """Return the reason why a layer cannot be re-solved, None if it can."""
        return self._trace.unfit.get(name)

    def biases(self, name: str) -> list[Tensor | None]:
        """Return the biases of all modules that use a weight, None for a module without one."""
        return [module.bias if isinstance(module.bias, Tensor) else None for module in self._users[name]]

    def takes_constant(self, name: str) -> bool:
        """Return whether a constant can be added to a layer's outputs, and to no other outputs.

        A batch norm or biases can absorb it. A bias that is computed, or that a module without this weight shares,
        cannot.
        """
        users = self._users[name]
        held = (self._holders.get(id(bias)) for bias in self.biases(name))
        return self.norm_behind(name) is not None or all(found and set(found) <= set(users) for found in held)

    def add_constant(self, name: str, constant: Tensor) -> None:
        """Add a constant to a layer's outputs, by the running mean of the batch norm behind it, else by its biases.

        Args:
            name: Name of the weight; the layer takes a constant.
            constant: One number per output, (outputs,).
        """
        if (norm := self.norm_behind(name)) is not None:
            assert isinstance(norm.running_mean, Tensor)
            norm.running_mean.sub_(constant)
            return
        for bias in {id(bias): bias for bias in self.biases(name) if bias is not None}.values():
            bias.add_(constant)

    def inputs(self, name: str) -> Iterator[list[tuple[nn.Module, Tensor]]]:
        """Yield, for each batch of images, the inputs of every call of the modules that use a weight.

        Args:
            name: Name of the weight, one of ``order``.

        Yields:
            For each call, the module and its input.
        """
        return self._record(name, lambda module, arguments, _: (module, arguments[0]), before=True)

    def products(self, name: str) -> Iterator[list[Tensor]]:
        """Yield, for each batch of images, the products of a weight with the inputs of every call.

        Args:
            name: Name of the weight, one of ``order``.

        Yields:
            For each call, the output without the bias, (groups, rows, outputs per group).
        """
        return self._record(name, lambda module, _, output: product_of(module, output), before=False)

    def visit(self, images: Tensor, see: Callable[[str, nn.Module, Tensor, Tensor], None]) -> Tensor:
        """Run the network once, and call a function with every layer that can be re-solved, its input and its output.

        Args:
            images: A batch, (B, C, H, W).
            see: Called with a weight's name, its module, and the module's input and output, at every call.

        Returns:
            The network's output.
        """
        handles = []
        for name in self.order:
            if self.unfit(name):
                continue

            def hook(module: nn.Module, arguments: Any, output: Tensor, name: str = name) -> None:
                see(name, module, arguments[0], output)

            handles += [module.register_forward_hook(hook) for module in self._users[name]]
        try:
            return self._network(images)
        finally:
            for handle in handles:
                handle.remove()

    def _used(self, name: str) -> list[nn.Module]:
        """Return the modules that use a weight and run."""
        return [module for module in self._users[name] if self._calls[module].count]

    def _record(self, name: str, take: Callable[..., Any], before: bool) -> Iterator[list[Any]]:
        """Yield, for each batch of images, one record for every call of the modules that use a weight.

        Args:
            name: Name of the weight.
            take: Makes the record from a module, its arguments and its output.
            before: Whether to record before a call, where there is no output yet.
        """
        users = self._used(name)
        wanted = sum(self._calls[module].count for module in users)
        finished = self._finished(min(self._calls[module].first for module in users))
        outdated = [outputs for module, outputs in self._cached.items() if module not in finished]
        self._cached |= {module: {} for module in finished if module not in self._cached}
        self._room = _MOST_CACHED - sum(map(bytes_of, self._cached.values()))
        for number, images in enumerate(self._images):
            records: list[Any] = []

            def see(module: nn.Module, arguments: Any, output: Any = None, records: list[Any] = records) -> None:
                record = take(module, arguments, output)
                records.append(_cloned(record) if wanted > 1 else record)  # later operations may change it in place
                if len(records) == wanted:
                    raise _RecordedError

            handles = [m.register_forward_pre_hook(see) if before else m.register_forward_hook(see) for m in users]
            try:
                with self._cached_outputs(number), suppress(_RecordedError):
                    self._network(images.clone())
            finally:
                for handle in handles:
                    handle.remove()
            for outputs in outdated:  # of modules inside a module that has finished since: its own output is cached now
                self._room += bytes_of(outputs.pop(number, None))
            yield records
        self._cached = {module: self._cached[module] for module in finished}

    @contextmanager
    def _cached_outputs(self, number: int) -> Iterator[None]:
        """Replace the forward of finished modules by their output for a batch, in a ``with`` block."""
        for module, outputs in self._cached.items():
            own = _cloned if self._calls[module].changed else _same
            module.forward = self._recall(module.forward, outputs, number, own)
        try:
            yield
        finally:
            for module in self._cached:
                del module.forward  # the forward of the class applies again

    def _recall(
        self, forward: Callable[..., Any], outputs: dict[int, Any], number: int, own: Callable[[Any], Any]
    ) -> Callable[..., Any]:
        """Return a forward that returns the cached output for a batch; a missing output is computed, and cached."""

        def recall(*arguments: Any, **options: Any) -> Any:
            if number in outputs:
                return own(outputs[number])
            output = forward(*arguments, **options)
            if (needed := bytes_of(output)) <= self._room:
                self._room -= needed
                outputs[number] = own(output)
            return output

        return recall

    def _finished(self, position: int) -> list[nn.Module]:
        """Return the outermost modules that run once and end before a position.

        Modules without parameters (activations, dropout) run again, unless their output is smaller than their input
        (pooling): caching their outputs would cost more memory than it saves time.
        """
        found: list[nn.Module] = []
        inside: set[str] = set()
        for path, module in self._modules.items():
            if any(path.startswith(f"{outer}.") for outer in inside):
                continue
            calls = self._calls[module]
            bare = "forward" not in vars(module)
            costly = calls.shrinks or any(True for _ in module.parameters())
            if path and bare and costly and calls.count == 1 and calls.last < position and not calls.changes_inputs:
                found.append(module)
                inside.add(path)
        return found


def _cloned(value: Any) -> Any:
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)


def _same(value: Any) -> Any:
    return value
