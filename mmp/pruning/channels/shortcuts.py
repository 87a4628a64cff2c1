"""Shortcuts: forward passes that skip the modules which end before a point of interest, and stop after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mmp.pruning.channels.moved import differs
from mmp.pruning.layers.trace import trace


class OverError(Exception):
    """Ends a forward pass once nothing of interest can follow."""


class Shortcuts:
    """Outputs of the modules of a network for one image, which later passes return instead of computing them.

    Args:
        network: A network, in eval mode.
        image: One image, (1, C, H, W).
    """

    def __init__(self, network: nn.Module, image: Tensor) -> None:
        self._modules = dict(network.named_modules())
        self._calls = trace(network, {}, image).calls
        self._outputs: dict[nn.Module, Tensor] = {}
        self._grows: dict[nn.Module, bool] = {}  # whether the output has the batch as its first dimension
        self._before: dict[str, list[nn.Module]] = {}

    def record(self, run: Callable[[int], Tensor]) -> Tensor:
        """Keep the outputs of modules, and return the network's output.

        Args:
            run: Runs the network on a given number of equal images, and returns its output.
        """
        outputs: list[dict[nn.Module, Any]] = [{}, {}]
        results = []
        for count, kept in enumerate(outputs, start=1):

            def keep(module: nn.Module, _: Any, output: Any, kept: dict[nn.Module, Any] = kept) -> None:
                kept[module] = output.clone() if isinstance(output, Tensor) else None

            handles = [module.register_forward_hook(keep) for module in self._modules.values()]
            try:
                results.append(run(count))
            finally:
                for handle in handles:
                    handle.remove()
        for module, single in outputs[0].items():
            double = outputs[1].get(module)
            if isinstance(single, Tensor) and isinstance(double, Tensor) and single.dim():
                grows = double.shape == (2 * len(single), *single.shape[1:])
                if grows or double.shape == single.shape:
                    self._outputs[module], self._grows[module] = single, grows
        return results[0]

    @contextmanager
    def around(self, path: str, count: int) -> Iterator[None]:
        """In a ``with`` block, a forward pass computes only what a change in a module can reach.

        Modules that end before the module starts return their recorded outputs. The pass ends with an `OverError` as
        soon as a module around it returns its recorded output, since nothing behind that can differ.

        Args:
            path: The module.
            count: Number of images in the batch.
        """
        while path and not self._calls[self._modules[path]].count:  # a container that never runs itself
            path = path.rpartition(".")[0]
        skipped = self._finished(path)
        for module in skipped:
            module.forward = self._recall(module, count)
        handles = [module.register_forward_hook(self._stop(module, count)) for module in self._outside(path)]
        try:
            yield
        finally:
            for module in skipped:
                del module.forward  # the forward of the class applies again
            for handle in handles:
                handle.remove()

    def _outside(self, path: str) -> Iterator[nn.Module]:
        """Yield the modules around a module that run once, return a tensor and change no input."""
        while path := path.rpartition(".")[0]:
            module = self._modules[path]
            calls = self._calls[module]
            if module in self._outputs and self._grows[module] and calls.count == 1 and not calls.changes_inputs:
                yield module

    def _stop(self, module: nn.Module, count: int) -> Callable[..., None]:
        def stop(_: nn.Module, __: Any, output: Any) -> None:
            before = self._outputs[module]
            if output.shape == (count * len(before), *before.shape[1:]) and not differs(output, before, count).any():
                raise OverError

        return stop

    def _recall(self, module: nn.Module, count: int) -> Callable[..., Tensor]:
        def recall(*_: Any, **__: Any) -> Tensor:
            output = self._outputs[module]
            return repeated(output, count) if self._grows[module] else output.clone()

        return recall

    def _finished(self, path: str) -> list[nn.Module]:
        """Return the outermost modules that run once, end before a module starts and change no input."""
        if path in self._before:
            return self._before[path]
        position = self._calls[self._modules[path]].first
        found = self._before[path] = []
        inside: set[str] = set()
        for name, module in self._modules.items():
            if name.rpartition(".")[0] in inside:
                inside.add(name)
                continue
            if module not in self._outputs:
                continue
            calls = self._calls[module]
            if name and calls.count == 1 and calls.last < position and not calls.changes_inputs:
                found.append(module)
                inside.add(name)
        return found


def repeated(value: Tensor, times: int) -> Tensor:
    """Return a tensor several times, one after the other in its first dimension."""
    return value.repeat(times, *[1] * (value.dim() - 1))
