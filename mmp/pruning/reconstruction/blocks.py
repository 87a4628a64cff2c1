"""The blocks of a network: the modules whose outputs a tuned network is compared with the dense one at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import nn

from mmp.errors import MmpError, nearest
from mmp.pruning.layers.prunable import find_layers

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_LEAST = 2  # prunable weights in a block


def find_blocks(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a network's blocks: residual blocks, transformer blocks, inception modules and the like.

    A block is a module with at least two prunable weights that has a sibling of its own class. Modules in a
    ``Sequential``, a ``ModuleList`` or a ``ModuleDict`` count as children of the module that holds the container. If a
    block has numbered blocks itself, as a stage does, they take its place. A network without blocks, such as VGG, has
    its prunable layers in place of them.

    Raises:
        MmpError: if the model has no prunable layer.

    Example:
        >>> from torch import nn
        >>> class Block(nn.Module):
        ...     def __init__(self) -> None:
        ...         super().__init__()
        ...         self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        >>> find_blocks(nn.Sequential(nn.Linear(4, 8), nn.Sequential(Block(), Block()), nn.Linear(8, 2)))
        ('1.0', '1.1')
    """
    modules = [layer.module for layer in find_layers(model)]
    return _blocks_in("", model, modules) or tuple(dict.fromkeys(modules))


def require_blocks(model: nn.Module, names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of blocks as a tuple.

    Raises:
        MmpError: if there are none, or the model has no module of a name.
    """
    modules, stated = [name for name, _ in model.named_modules()], (names,) if isinstance(names, str) else tuple(names)
    if not stated:
        raise MmpError("blocks is empty; name modules of the model, or leave blocks out to find them")
    for name in stated:
        if name not in modules:
            raise MmpError(f"blocks: {name!r} is no module of the model; {nearest(name, modules)}")
    return stated


def _blocks_in(path: str, module: nn.Module, weights: list[str]) -> tuple[str, ...]:
    """Return the blocks below a module; empty if there are none.

    Args:
        path: Name of the module.
        module: The module.
        weights: For each prunable weight, the name of the module that holds it.
    """
    children = {name: child for name, child in _children(path, module) if _size(name, weights) >= _LEAST}
    if len(children) == 1:
        ((name, child),) = children.items()
        return _blocks_in(name, child, weights)
    kinds = Counter(map(type, children.values()))
    if not any(count > 1 for count in kinds.values()):
        return ()
    inner = {name: _parts_of(name, child, weights) or (name,) for name, child in children.items()}
    return tuple(block for blocks in inner.values() for block in blocks)


def _parts_of(path: str, module: nn.Module, weights: list[str]) -> tuple[str, ...]:
    """Return the numbered blocks of a stage; empty for a block, such as one of a mixer, which has two equal halves."""
    found = _blocks_in(path, module, weights)
    numbered = any(any(map(str.isdigit, name.removeprefix(f"{path}."))) for name in found)
    return found if numbered else ()


def _children(path: str, module: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """Yield a module's children by their full names, in place of a container its items."""
    for name, child in module.named_children():
        full = f"{path}.{name}" if path else name
        if type(child) in _CONTAINERS:
            yield from _children(full, child)
        else:
            yield full, child


def _size(name: str, weights: list[str]) -> int:
    return sum(weight == name or weight.startswith(f"{name}.") for weight in weights)
