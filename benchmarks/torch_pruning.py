"""Torch-Pruning (Fang et al. 2023, arXiv 2301.12900) as its examples for timm models use it.

Used by :mod:`benchmarks.channels_latency` and :mod:`benchmarks.channel_families`; needs ``pip install torch-pruning``.
"""

from __future__ import annotations

import copy
import warnings
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from benchmarks.channel_networks import CLASSES, parameters_of

ROUND_TO = 16
STEPS = 8  # of the bisection


def is_installed() -> bool:
    """Return whether the package is installed."""
    return find_spec("torch_pruning") is not None


def without(network: nn.Module, images: Tensor, gone: float) -> tuple[nn.Module, nn.Module]:
    """Return a network without a share of its parameters, by the lowest common ratio that reaches the share.

    Args:
        network: A timm model. It is not changed.
        images: A batch (B, C, H, W).
        gone: The share of the parameters to remove, at least.

    Returns:
        The smaller network, and the network with zeros in the parameters that it lacks.
    """
    total = parameters_of(network)
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        smaller, _ = pruned(network, images, middle)
        low, high = (middle, high) if parameters_of(smaller) > (1 - gone) * total else (low, middle)
    return pruned(network, images, high)


def pruned(network: nn.Module, images: Tensor, ratio: float) -> tuple[nn.Module, nn.Module]:
    """Return a network without a share of the channels of every group, and the network with zeros in their place.

    Importance is the norm of a group's weights, and the classifier keeps its outputs. Widths are rounded to multiples
    of `ROUND_TO`, and every head of an attention keeps the same number of dimensions.
    """
    import torch_pruning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # parameters outside of modules, which it then finds the dimension of by itself
        smaller = copy.deepcopy(network)
        heads = {m.qkv: m.num_heads for m in smaller.modules() if hasattr(m, "num_heads") and hasattr(m, "qkv")}
        pruner = torch_pruning.pruner.BasePruner(
            smaller,
            images[:1],
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[m for m in smaller.modules() if isinstance(m, nn.Linear) and m.out_features == CLASSES],
            num_heads=heads,
            round_to=ROUND_TO,
            in_channel_groups={},  # the default is one dictionary for all pruners of a process
            out_channel_groups={},
        )
        pruner.step()
        _set_heads(smaller)
        numbered = copy.deepcopy(network).double()
        with torch.no_grad():
            for parameter in numbered.parameters():
                parameter.copy_(torch.arange(parameter.numel()).view_as(parameter))
        graph = torch_pruning.DependencyGraph().build_dependency(numbered, images[:1].double(), verbose=False)
        graph.load_pruning_history(pruner.pruning_history())
    return smaller.eval(), _with_zeros(network, numbered)


def _with_zeros(network: nn.Module, numbered: nn.Module) -> nn.Module:
    """Return a network with zeros in all elements whose numbers are not in the parameters of a pruned one."""
    masked = copy.deepcopy(network)
    kept = dict(numbered.named_parameters())
    with torch.no_grad():
        for name, parameter in masked.named_parameters():
            mask = torch.zeros(parameter.numel(), dtype=torch.bool)
            mask[kept[name].detach().flatten().long()] = True
            parameter.mul_(mask.view_as(parameter))
    return masked.eval()


def _set_heads(network: nn.Module) -> None:
    """Set the dimensions of heads in timm's attention."""
    for module in network.modules():
        if hasattr(module, "num_heads") and isinstance(qkv := getattr(module, "qkv", None), nn.Linear):
            module.head_dim = qkv.out_features // (3 * module.num_heads)
            if hasattr(module, "attn_dim"):
                module.attn_dim = module.head_dim * module.num_heads
