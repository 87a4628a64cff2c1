"""Statistics: what signals are made of, collected from a model over the calibration split."""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmp.errors import MmpError
from mmp.pruning.layers.eval_mode import evaluating
from mmp.pruning.layers.forward import LayerWalk
from mmp.pruning.layers.products import columns_of, rows_of
from mmp.tensors import all_finite

log = logging.getLogger(__name__)

Batches = Iterable[Sequence[Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]

STATISTICS = (
    "gradient", "absolute_gradient", "squared_batch_gradient", "squared_gradient", "hessian_gradient",
    "input_covariance", "squared_output_gradient",
)  # fmt: skip
MOST_IMAGES = 512  # of the calibration split, for input_covariance and squared_output_gradient; more hardly add to it
MOST_TWICE = 64  # images that hessian_gradient differentiates twice at a time: what that needs beside stays small
MOST_KEPT = 2**30  # bytes of graphs that hessian_gradient keeps from its first pass to its second


# Statistics of a batch's gradients that one backward pass gives.
_FIRST_ORDER: dict[str, Callable[[Tensor], Tensor]] = {
    "gradient": torch.Tensor.detach,
    "absolute_gradient": torch.abs,
    "squared_batch_gradient": torch.square,
}


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
        batches: (inputs, targets) pairs on the model's device; re-iterable in the same order if ``hessian_gradient`` is
            needed.
        loss: The training loss: the mean of a loss of each image, whatever else is in the batch.
        needs: Which of:
            ``gradient``: dL/dw, the mean over samples;
            ``absolute_gradient``: |dL_b/dw| of each batch b, averaged over batches weighted by their samples
            (the authors average over batches), so the value does not grow with the number of batches;
            ``squared_batch_gradient``: the same of (dL_b/dw)^2;
            ``squared_gradient``: the square of each single image's dL/dw, averaged over images;
            ``hessian_gradient``: the Hessian times the gradient, H g (GraSP, arXiv 2002.07376); takes at most
            `MOST_KEPT` bytes more than `MOST_TWICE` images need;
            ``input_covariance``: of what the weight is multiplied by, (groups, columns, columns);
            ``squared_output_gradient``: of each output, averaged over images and summed over positions, (outputs,).
            The last two see at most `MOST_IMAGES` images; a weight that its module does not multiply its input by
            gets the identity and ones, and a log line.
        temperature: Divides the outputs for ``hessian_gradient``; GraSP's authors use 200.

    Returns:
        For each statistic, a tensor per name, of the weight's shape unless said otherwise.

    Raises:
        MmpError: if there is no sample, an unknown statistic is asked for, a weight takes no part in the loss,
            or a gradient is not finite; never a silent fallback.
    """
    wanted = set(needs)
    if unknown := wanted - set(STATISTICS):
        raise MmpError(f"unknown statistics {sorted(unknown)}; known are {', '.join(STATISTICS)}")
    statistics: dict[str, dict[str, Tensor]] = {}
    with _scoring_mode(model, parameters):
        if wanted & _FIRST_ORDER.keys():
            statistics |= _first_order(model, parameters, batches, loss, wanted)
        if "squared_gradient" in wanted:
            statistics["squared_gradient"] = _squared_gradient(model, parameters, batches, loss)
        if "input_covariance" in wanted:
            statistics["input_covariance"] = _input_covariance(model, parameters, batches)
        if "squared_output_gradient" in wanted:
            statistics["squared_output_gradient"] = _squared_output_gradient(model, parameters, batches, loss)
        if "hessian_gradient" in wanted:
            statistics["hessian_gradient"] = _hessian_gradient(model, parameters, batches, loss, temperature)
    for values in statistics.values():
        for name, value in values.items():
            if not all_finite(value):
                raise MmpError(f"the calibration gradient of {name!r} is not finite; check weights and data")
    return statistics


def _first_order(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Batches, loss: Loss, wanted: set[str]
) -> dict[str, dict[str, Tensor]]:
    kinds = [kind for kind in _FIRST_ORDER if kind in wanted]
    sums = {kind: [torch.zeros_like(p) for p in parameters.values()] for kind in kinds}
    samples = 0
    for inputs, targets in batches:
        samples += len(inputs)
        gradients = _gradients(loss(model(inputs), targets), parameters)
        for kind in kinds:
            _add(sums[kind], gradients, len(inputs), _FIRST_ORDER[kind])
        del gradients  # before the next are made
    _require(samples)
    for values in sums.values():
        torch._foreach_div_(values, samples)
    return {kind: dict(zip(parameters, values, strict=True)) for kind, values in sums.items()}


def _add(
    totals: Iterable[Tensor],
    values: Iterable[Tensor],
    times: int,
    made: Callable[[Tensor], Tensor] = torch.Tensor.detach,
) -> None:
    """Add what is made of values to totals; it is in memory one layer at a time."""
    for total, value in zip(totals, values, strict=True):
        total.add_(made(value), alpha=times)


def _squared_gradient(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Batches, loss: Loss
) -> dict[str, Tensor]:
    total = [torch.zeros_like(p) for p in parameters.values()]
    samples = 0
    for inputs, targets in batches:
        for i in range(len(inputs)):
            gradients = _gradients(loss(model(inputs[i : i + 1]), targets[i : i + 1]), parameters)
            torch._foreach_addcmul_(total, gradients, gradients)
            del gradients  # before the next are made
        samples += len(inputs)
    _require(samples)
    torch._foreach_div_(total, samples)
    return dict(zip(parameters, total, strict=True))


def _input_covariance(model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Batches) -> dict[str, Tensor]:
    images = _first_images(batches)
    shifts: dict[str, Tensor] = {}  # means of the first batch, so that little cancels
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    rows = Counter[str]()

    def see(name: str, module: nn.Module, inputs: Tensor, _: Tensor) -> None:
        x = columns_of(module, inputs)
        x = x - shifts.setdefault(name, x.mean(1, keepdim=True))
        parts = (x.transpose(1, 2) @ x).double(), x.sum(1).double()
        sums[name] = (sums[name][0].add_(parts[0]), sums[name][1].add_(parts[1])) if name in sums else parts
        rows[name] += x.shape[1]

    with torch.no_grad():
        walk = LayerWalk(model, parameters, images)
        for batch in images:
            walk.visit(batch.clone(), see)
    covariances = {}
    for name, parameter in parameters.items():
        if name not in walk.order:
            raise MmpError(f"{name!r} has no gradient: its module is never called, so it cannot be scored")
        if reason := walk.unfit(name):
            log.info("%s is scored as if its inputs were independent: %s", name, reason)
            covariances[name] = torch.eye(parameter[0].numel(), dtype=torch.float64, device=parameter.device)[None]
        else:
            square, mean = (total.div_(rows[name]) for total in sums.pop(name))
            covariances[name] = square - mean.unsqueeze(2) * mean.unsqueeze(1)
    return covariances


def _squared_output_gradient(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Batches, loss: Loss
) -> dict[str, Tensor]:
    images = _first_images(batches)
    sums = {name: torch.zeros(len(parameter), device=parameter.device) for name, parameter in parameters.items()}

    def see(name: str, module: nn.Module, _: Tensor, output: Tensor) -> None:
        def add(gradient: Tensor) -> None:
            sums[name] += rows_of(module, gradient).square().sum(1).flatten()

        output.register_hook(add)

    with torch.no_grad():
        walk = LayerWalk(model, parameters, images)
    for batch, (_, targets) in zip(images, batches, strict=False):
        outputs = walk.visit(batch.clone(), see)
        _gradients(len(batch) * loss(outputs, targets[: len(batch)]), parameters)  # summed, not averaged, over images
    samples = sum(map(len, images))
    return {name: total / samples if total.any() else torch.ones_like(total) for name, total in sums.items()}


def _first_images(batches: Batches) -> list[Tensor]:
    images: list[Tensor] = []
    for inputs, _ in batches:
        left = MOST_IMAGES - sum(map(len, images))
        images += [inputs[:left]] if left > 0 else []
    _require(len(images))
    return images


def _hessian_gradient(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Batches, loss: Loss, temperature: float
) -> dict[str, Tensor]:
    """Take the mean gradient in a first pass, and each piece's Hessian times it in a second.

    Graphs that the first pass made are kept while there is room, so that the second need not make them again.
    """
    weights = list(parameters.values())
    mean, total = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    held = dict.fromkeys(map(_address, [*model.parameters(), *model.buffers()]), 0)  # they are there anyway
    graphs: deque[list[GradientEdge | None]] = deque()

    def gradients(inputs: Tensor, targets: Tensor, create_graph: bool) -> list[Tensor]:
        return _gradients(loss(model(inputs) / temperature, targets), parameters, create_graph)

    def product(inputs: Tensor, targets: Tensor) -> Sequence[Tensor]:
        edges = graphs.popleft() if graphs else _edges(gradients(inputs, targets, create_graph=True))
        return _derivative(edges, mean, weights)

    def room() -> bool:
        return sum(held.values()) <= MOST_KEPT

    with sdpa_kernel(SDPBackend.MATH):  # fused attention kernels have no second derivative
        samples = 0
        for inputs, targets in _pieces(batches):
            samples += len(inputs)
            with _noting(held) if (keep := room()) else nullcontext():
                found = gradients(inputs, targets, create_graph=keep)
            _add(mean, found, len(inputs))
            if keep and room():
                graphs.append(_edges(found))
            del found  # before the next are made
        _require(samples)
        torch._foreach_div_(mean, samples)
        samples = 0
        for inputs, targets in _pieces(batches):
            samples += len(inputs)
            _add(total, product(inputs, targets), len(inputs))
    _require(samples)
    torch._foreach_div_(total, samples)
    return dict(zip(parameters, total, strict=True))


def _pieces(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches in even pieces of at most `MOST_TWICE` images; means over images are the same for any division."""
    for inputs, targets in batches:
        count = max(1, math.ceil(len(inputs) / MOST_TWICE))
        yield from zip(inputs.tensor_split(count), targets.tensor_split(count), strict=True)


def _edges(gradients: Iterable[Tensor]) -> list[GradientEdge | None]:
    """Return where gradients lie in their graph, which needs none of their values; None where one is constant."""
    return [get_gradient_edge(gradient) if gradient.requires_grad else None for gradient in gradients]


def _derivative(
    edges: Iterable[GradientEdge | None], vector: Iterable[Tensor], weights: list[nn.Parameter]
) -> Sequence[Tensor]:
    """Return the Hessian whose gradients these are, times a vector; nothing of their graph is left."""
    pairs = [(edge, part) for edge, part in zip(edges, vector, strict=True) if edge is not None]
    if not pairs:  # the loss is linear in the weights
        return list(map(torch.zeros_like, weights))
    outputs, parts = zip(*pairs, strict=True)
    # A weight in which the loss is linear has no path to the second derivative: zeros, not an error.
    return torch.autograd.grad(outputs, weights, parts, allow_unused=True, materialize_grads=True)


@contextmanager
def _noting(held: dict[int, int]) -> Iterator[None]:
    """Note the bytes of all memory that graphs made meanwhile hold, by its address."""

    def note(value: Tensor) -> Tensor:
        held.setdefault(_address(value), value.untyped_storage().nbytes())
        return value.detach()  # a graph that held its own outputs with their history would never be freed

    with saved_tensors_hooks(note, lambda value: value):
        yield


def _address(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


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
    frozen = [p for p in parameters.values() if not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with evaluating(model), torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
