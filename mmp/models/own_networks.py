"""A network of the user: any class or function that returns an ``nn.Module``."""

from __future__ import annotations

import copy

from torch import nn

from mmp.config.objects import call, resolve
from mmp.config.schema import ModelConfig
from mmp.errors import MmpError
from mmp.pruning.layers.checks import require_plain


def build_own(cfg: ModelConfig) -> nn.Module:
    """Create the network of ``model._target_`` with the arguments in ``model.kwargs``, in training mode.

    Raises:
        MmpError: if the class or function cannot be imported, if an argument is unknown or missing, if it fails, or if
            it returns anything but a plain module.
    """
    address = str(cfg._target_)
    target = resolve(address, "model")
    if isinstance(target, nn.Module):
        raise MmpError(
            f"{cfg.setting}: is a network; name its class, or a function that returns it, so that it can be built again"
        )
    network = call(target, copy.deepcopy(cfg.kwargs), address, "model.kwargs")
    if not isinstance(network, nn.Module):
        kind = type(network).__name__
        raise MmpError(f"{cfg.setting}: returns a {kind}; it must return a torch.nn.Module, whose output is logits")
    try:
        require_plain(network)
    except MmpError as error:
        raise MmpError(f"{cfg.setting}: {error}") from error
    return (network if isinstance(target, type) else _alone(network, cfg)).train()


def _alone(network: nn.Module, cfg: ModelConfig) -> nn.Module:
    """Return a copy of the network of a function, which may return the same one each time."""
    try:
        return copy.deepcopy(network)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise MmpError(f"{cfg.setting}: its network cannot be copied ({reason}); correct the function") from error
