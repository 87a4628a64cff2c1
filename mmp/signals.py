"""Signals: how much each weight matters, scored once (phase 3 of the method).

One pass over the calibration split collects gradient statistics; every signal is then a function of a weight
and its statistics. A new signal is a class with ``needs`` and ``score``, and a YAML file in ``conf/signal``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmp.errors import MmpError

Batches = Iterable[Sequence[Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]

STATISTICS = ("gradient", "absolute_gradient", "hessian_gradient")


class Scorer(Protocol):
    """What a signal or a criterion is: the statistics it needs and a function of one weight tensor."""

    @property
    def name(self) -> str:
        """The name that files and reports know it by."""

    @property
    def needs(self) -> frozenset[str]:
        """Which of :data:`STATISTICS` it reads."""

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return importances of the weight's shape, higher is more important.

        Args:
            weight: The weight tensor.
            statistics: The statistics named in ``needs``, each of the weight's shape.
        """


@dataclass(frozen=True)
class Magnitude:
    """|w| (Han et al. 2015, arXiv 1506.02626)."""

    name: str = "magnitude"
    needs: frozenset[str] = frozenset()

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return |w|."""
        return weight.abs()


@dataclass(frozen=True)
class Gradient:
    """|g|, averaged over calibration batches (METHOD, phase 3)."""

    name: str = "gradient"
    needs: frozenset[str] = frozenset({"absolute_gradient"})

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return the mean of |g|."""
        return statistics["absolute_gradient"]


@dataclass(frozen=True)
class Product:
    """|w| * |g|, with |g| averaged over calibration batches (METHOD, phase 3)."""

    name: str = "product"
    needs: frozenset[str] = frozenset({"absolute_gradient"})

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return |w| times the mean of |g|."""
        return weight.abs() * statistics["absolute_gradient"]


PAPER_SIGNALS: tuple[Scorer, ...] = (Magnitude(), Gradient(), Product())


def collect(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batches: Batches,
    loss: Loss,
    needs: Iterable[str],
    temperature: float = 1.0,
) -> dict[str, dict[str, Tensor]]:
    """Collect gradient statistics of the loss over the calibration split.

    The model runs in eval mode (running BatchNorm statistics, no dropout), so the result is deterministic and
    no buffer changes; modes, gradients and ``requires_grad`` are left as they were found.

    Args:
        model: The network.
        parameters: The weights to collect for, by name.
        batches: (inputs, targets) pairs, re-iterable if ``hessian_gradient`` is needed; on the model's device.
        loss: The training loss, averaged over a batch.
        needs: Which of:
            ``gradient``: dL/dw, the mean over samples;
            ``absolute_gradient``: |dL_b/dw| of each batch b, averaged over batches weighted by their samples
            (the authors average over batches), so the value does not grow with the number of batches;
            ``hessian_gradient``: the Hessian times the gradient, H g (GraSP, arXiv 2002.07376).
        temperature: Divides the outputs for ``hessian_gradient``; GraSP's authors use 200.

    Returns:
        For each statistic, a tensor of the weight's shape per name.

    Raises:
        MmpError: if there is no sample, an unknown statistic is asked for, a weight takes no part in the loss,
            or a gradient is not finite; never a silent fallback.
    """
    wanted = set(needs)
    if unknown := wanted - set(STATISTICS):
        raise MmpError(f"unknown statistics {sorted(unknown)}; known are {', '.join(STATISTICS)}")
    statistics: dict[str, dict[str, Tensor]] = {}
    with _scoring_mode(model, parameters):
        if wanted & {"gradient", "absolute_gradient"}:
            statistics |= _first_order(model, parameters, batches, loss, wanted)
        if "hessian_gradient" in wanted:
            statistics["hessian_gradient"] = _hessian_gradient(model, parameters, batches, loss, temperature)
    for values in statistics.values():
        for name, value in values.items():
            if not torch.isfinite(value).all():
                raise MmpError(f"the calibration gradient of {name!r} is not finite; check weights and data")
    return statistics


def _first_order(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Batches, loss: Loss, wanted: set[str]
) -> dict[str, dict[str, Tensor]]:
    kinds = [kind for kind in ("gradient", "absolute_gradient") if kind in wanted]
    sums = {kind: [torch.zeros_like(p) for p in parameters.values()] for kind in kinds}
    samples = 0
    for inputs, targets in batches:
        gradients = _gradients(loss(model(inputs), targets), parameters)
        samples += len(inputs)
        if "gradient" in sums:
            torch._foreach_add_(sums["gradient"], gradients, alpha=len(inputs))
        if "absolute_gradient" in sums:
            torch._foreach_add_(sums["absolute_gradient"], torch._foreach_abs(gradients), alpha=len(inputs))
    _require(samples)
    for values in sums.values():
        torch._foreach_div_(values, samples)
    return {kind: dict(zip(parameters, values, strict=True)) for kind, values in sums.items()}


def _hessian_gradient(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Batches, loss: Loss, temperature: float
) -> dict[str, Tensor]:
    def scaled(outputs: Tensor, targets: Tensor) -> Tensor:
        return loss(outputs / temperature, targets)

    # Fused attention kernels have no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        mean = _first_order(model, parameters, batches, scaled, {"gradient"})["gradient"]
        total = [torch.zeros_like(p) for p in parameters.values()]
        samples = 0
        for inputs, targets in batches:
            value = scaled(model(inputs), targets)
            gradients = _gradients(value, parameters, create_graph=True)
            inner = torch.stack([(g * mean[n]).sum() for n, g in zip(parameters, gradients, strict=True)]).sum()
            if inner.requires_grad:  # else the loss is linear in the weights, and H is zero
                # A weight in which the loss is linear has no path to the second derivative: zeros, not an error.
                second = torch.autograd.grad(
                    inner, list(parameters.values()), allow_unused=True, materialize_grads=True
                )
                torch._foreach_add_(total, second, alpha=len(inputs))
            samples += len(inputs)
    _require(samples)
    torch._foreach_div_(total, samples)
    return dict(zip(parameters, total, strict=True))


def _gradients(value: Tensor, parameters: Mapping[str, nn.Parameter], create_graph: bool = False) -> list[Tensor]:
    gradients = torch.autograd.grad(value, list(parameters.values()), create_graph=create_graph, allow_unused=True)
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            raise MmpError(f"{name!r} has no gradient: it takes no part in the loss, so it cannot be scored by it")
    return list(gradients)


def _require(samples: int) -> None:
    if not samples:
        raise MmpError(
            "the calibration split is empty (raise data.calibration), or its batches were an iterator that is used up "
            "(pass a list)"
        )


@contextmanager
def _scoring_mode(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    frozen = [p for p in parameters.values() if not p.requires_grad]
    forget_cached(model)
    model.eval()
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        forget_cached(model)
        for module, training in modes.items():
            module.training = training


def forget_cached(model: nn.Module) -> None:
    """Make a model forget what it computed from its weights in eval mode; it is in training mode afterwards.

    LeViT and its kin (timm) keep their attention biases from the first evaluation until ``train`` is called. Copying
    the flag ``training`` alone, as Lightning does after validation, leaves biases of old weights behind.
    """
    model.train()


def score(
    scorer: Scorer, parameters: Mapping[str, nn.Parameter], statistics: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Return one score tensor per weight, as the signal or criterion defines it.

    Args:
        scorer: The signal.
        parameters: Weights by name.
        statistics: What :func:`collect` returned, with everything that the signal needs.

    Raises:
        MmpError: if a needed statistic is missing, or a weight is not finite; never a silent fallback.
    """
    if missing := scorer.needs - statistics.keys():
        raise MmpError(f"signal {scorer.name!r} needs {sorted(missing)}, which were not collected")
    scores = {}
    for name, parameter in parameters.items():
        weight = parameter.detach()
        if not torch.isfinite(weight).all():
            raise MmpError(f"weight {name!r} holds NaN or infinity; the checkpoint is damaged or training diverged")
        scores[name] = scorer.score(weight, {need: statistics[need][name] for need in scorer.needs})
    return scores


def normalise(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scale each layer's scores by a power of two so that its largest lies in [0.5, 1).

    A power of two scales exactly (float32 scores down to 1e-38 of the largest), so no two different scores become
    equal and masks do not change.
    """
    result = {}
    for name, value in scores.items():
        exponent = int(torch.frexp(value.max()).exponent)
        result[name] = value * 2.0 ** -max(exponent, -126)
    return result
