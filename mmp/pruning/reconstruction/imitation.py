"""How far a network is from the dense one: at the outputs of its blocks, and in its logits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, mse_loss
from torch.utils._pytree import tree_leaves

from mmp.errors import MmpError

_ROUNDING = 1e-12  # of the mean square; a variance below it comes from rounding
_TEMPERATURE = 2.0  # that divides logits (Hinton et al. 2015, arXiv 1503.02531)


@dataclass(frozen=True)
class Imitation:
    """The loss of a network that follows another one, on images without labels.

    The loss is the mean over the blocks of the squared error of their outputs, each as a share of the variance of the
    dense outputs, plus ``logits`` times the divergence of the class probabilities. If the networks do not return
    logits (B, classes), the squared error of their outputs takes the place of the divergence.

    Attributes:
        dense: The network to follow, in eval mode.
        blocks: Names of the modules whose outputs are compared.
        logits: Weight of the divergence, or of the squared error in its place.
        variances: Variance of every output of the blocks and of the network, in the order of their computation.
    """

    dense: nn.Module
    blocks: tuple[str, ...]
    logits: float
    variances: tuple[float, ...]

    @classmethod
    def of(cls, dense: nn.Module, blocks: Iterable[str], logits: float, batches: Iterable[Tensor]) -> Imitation:
        """Return the loss, with the variances of the dense outputs on some images.

        Args:
            dense: The network to follow, in eval mode.
            blocks: Names of modules.
            logits: See the attributes.
            batches: At least one batch of images, (B, C, H, W) each.

        Raises:
            MmpError: if an output of the network is not finite, or it returns none.
        """
        blocks, sums = tuple(blocks), torch.zeros((), device="cpu")
        with torch.no_grad():
            for images in batches:
                sums = sums + torch.stack([_moments(output) for output in outputs_of(dense, blocks, images)])
        variances = tuple(_variance(*moments) for moments in sums.tolist())
        if not torch.tensor(variances, device="cpu").isfinite().all():
            raise MmpError("the outputs of the dense network are not finite, so no network can follow them")
        return cls(dense, blocks, logits, variances)

    def loss(self, network: nn.Module, images: Tensor) -> Tensor:
        """Return the mean loss of images.

        Args:
            network: The network that follows, in eval mode.
            images: A batch (B, C, H, W).
        """
        with torch.no_grad():
            *targets, wanted = map(_precise, outputs_of(self.dense, self.blocks, images))
        *outputs, logits = map(_precise, outputs_of(network, self.blocks, images))
        variances = self.variances[:-1]
        errors = [
            mse_loss(output, target) / variance
            for output, target, variance in zip(outputs, targets, variances, strict=True)
            if variance
        ]
        loss = torch.stack(errors).mean() if errors else torch.zeros((), device=images.device)
        return loss + self.logits * self._divergence(logits, wanted) if self.logits else loss

    def _divergence(self, logits: Tensor, wanted: Tensor) -> Tensor:
        if logits.dim() != 2 or logits.shape[1] < 2:
            return mse_loss(logits, wanted) / (self.variances[-1] or 1.0)
        followed, target = (log_softmax(values / _TEMPERATURE, 1) for values in (logits, wanted))
        return kl_div(followed, target, reduction="batchmean", log_target=True) * _TEMPERATURE**2


def outputs_of(network: nn.Module, blocks: Sequence[str], images: Tensor) -> list[Tensor]:
    """Return the outputs of every call of the blocks, in the order of the calls; the network's own output is last.

    Raises:
        MmpError: if the network returns no tensor of floating-point numbers.
    """
    modules = dict(network.named_modules())
    found: list[Tensor] = []

    def see(_module: nn.Module, _inputs: Any, output: Any) -> None:
        found.extend(_floats(output))

    handles = [modules[name].register_forward_hook(see) for name in blocks]
    try:
        output = network(images.clone())  # the network may change its input in place
    finally:
        for handle in handles:
            handle.remove()
    last = _floats(output)
    if not last:
        raise MmpError(f"{type(network).__name__} returns a {type(output).__name__} without outputs to follow")
    return [*found, last[0]]


def _precise(values: Tensor) -> Tensor:
    """Return values in at least single precision, as losses need it where networks are computed in less."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _floats(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _moments(values: Tensor) -> Tensor:
    """Return the sum, the sum of squares and the number of values, (3,)."""
    wide = values.double()
    return torch.stack([wide.sum(), wide.square().sum(), torch.full_like(wide.sum(), wide.numel())])


def _variance(total: float, squares: float, count: float) -> float:
    square = squares / count
    variance = square - (total / count) ** 2
    return 0.0 if variance <= _ROUNDING * square else variance
