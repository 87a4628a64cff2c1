"""Torch-Pruning (Fang et al. 2023, arXiv 2301.12900) as its examples for timm models use it.

Used by :mod:`benchmarks.channels_latency` and :mod:`benchmarks.channel_families`; needs ``pip install torch-pruning``.
"""

from __future__ import annotations

import copy
import warnings
from importlib.util import find_spec
from typing import Any

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
    smaller, history = pruned(network, images, high)
    return smaller, masked(network, images, history)


def pruned(network: nn.Module, images: Tensor, ratio: float) -> tuple[nn.Module, list[Any]]:
    """Return a network without a share of the channels of every group, and the history of the pruning.

    Importance is the norm of a group's weights, and the classifier keeps its outputs. Widths are rounded to multiples
    of `ROUND_TO`, and every head of an attention keeps the same number of dimensions.
    """
    import torch_pruning

    smaller = copy.deepcopy(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about parameters outside of layers, whose dimensions it then guesses
        pruner = torch_pruning.pruner.BasePruner(
            smaller,
            images[:1],
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[m for m in smaller.modules() if isinstance(m, nn.Linear) and m.out_features == CLASSES],
            num_heads={qkv: module.num_heads for module, qkv in _attentions(smaller)},
            round_to=ROUND_TO,
            in_channel_groups={},  # the default is one dictionary for all pruners of a process
            out_channel_groups={},
        )
        pruner.step()
    for module, qkv in _attentions(smaller):
        module.head_dim = qkv.out_features // (3 * module.num_heads)
        if hasattr(module, "attn_dim"):
            module.attn_dim = module.head_dim * module.num_heads
    return smaller.eval(), pruner.pruning_history()


def masked(network: nn.Module, images: Tensor, history: list[Any]) -> nn.Module:
    """Return a network with zeros in the elements of its parameters that a pruning removes.

    The same pruning of a network whose parameters hold the numbers of their elements shows which elements are left.
    """
    import torch_pruning

    numbered, found = copy.deepcopy(network).double(), copy.deepcopy(network)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for parameter in numbered.parameters():
            parameter.copy_(torch.arange(parameter.numel()).view_as(parameter))
        with torch.enable_grad():
            graph = torch_pruning.DependencyGraph().build_dependency(numbered, images[:1].double(), verbose=False)
        graph.load_pruning_history(history)
        left = dict(numbered.named_parameters())
        for name, parameter in found.named_parameters():
            kept = torch.zeros(parameter.numel(), dtype=torch.bool)
            kept[left[name].flatten().long()] = True
            parameter.mul_(kept.view_as(parameter))
    return found.eval()


def _attentions(network: nn.Module) -> list[tuple[Any, nn.Linear]]:
    """Return the attention modules with one layer for queries, keys and values."""
    modules = [(module, getattr(module, "qkv", None)) for module in network.modules() if hasattr(module, "num_heads")]
    return [(module, qkv) for module, qkv in modules if isinstance(qkv, nn.Linear)]
