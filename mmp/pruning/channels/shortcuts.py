"""Shortcuts: forward passes that skip the modules which end before a point of interest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mmp.pruning.layers.trace import trace


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
    def before(self, path: str, count: int) -> Iterator[None]:
        """In a ``with`` block, modules that end before a module starts return their recorded outputs.

        Args:
            path: The module.
            count: Number of images in the batch.
        """
        skipped = self._finished(self._calls[self._modules[path]].first)
        for module in skipped:
            module.forward = self._recall(module, count)
        try:
            yield
        finally:
            for module in skipped:
                del module.forward  # the forward of the class applies again

    def _recall(self, module: nn.Module, count: int) -> Callable[..., Tensor]:
        def recall(*_: Any, **__: Any) -> Tensor:
            output = self._outputs[module]
            return repeated(output, count) if self._grows[module] else output.clone()

        return recall

    def _finished(self, position: int) -> list[nn.Module]:
        """Return the outermost modules that run once, end before a position and change no input."""
        found: list[nn.Module] = []
        inside: set[str] = set()
        for path, module in self._modules.items():
            if any(path.startswith(f"{outer}.") for outer in inside) or module not in self._outputs:
                continue
            calls = self._calls[module]
            if path and calls.count == 1 and calls.last < position and not calls.changes_inputs:
                found.append(module)
                inside.add(path)
        return found


def repeated(value: Tensor, times: int) -> Tensor:
    """Return a tensor several times, one after the other in its first dimension."""
    return value.repeat(times, *[1] * (value.dim() - 1))
