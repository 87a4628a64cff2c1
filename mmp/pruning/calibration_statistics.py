"""Calibration statistics: the inputs of signals and criteria, collected from a model over the calibration split."""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from mmp.errors import MmpError
from mmp.pruning.layers.eval_mode import differentiable, evaluating
from mmp.pruning.layers.forward import LayerWalk
from mmp.pruning.layers.products import column_pieces, rows_of
from mmp.tensors import all_finite, memory_of, widened

log = logging.getLogger(__name__)

Batches = Iterable[Sequence[Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]

STATISTICS = (
    "gradient", "absolute_gradient", "squared_batch_gradient", "squared_gradient", "hessian_gradient",
    "input_covariance", "squared_output_gradient",
)  # fmt: skip
MOST_IMAGES = 512  # for input_covariance and squared_output_gradient; further images hardly change them
MOST_TWICE = 64  # images that hessian_gradient differentiates twice at a time, which bounds its memory
MOST_KEPT = 2**30  # bytes of graphs that hessian_gradient keeps for its second pass; an eighth of a small memory

_FEWEST, _SINGLE = 2**11, 2**14  # rows that are summed in float32, before the sum is added in float64

# Statistics that are means of a function of a batch's gradients.
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
    """Collect statistics of the calibration split.

    The model runs in eval mode (running BatchNorm statistics, no dropout), so the result is deterministic and no buffer
    changes. Modes, gradients and ``requires_grad`` are restored.

    The statistics are, for a loss L, of the weight's shape unless stated otherwise (those of a weight in half precision
    are in float32):

    - ``gradient``: dL/dw, the mean over images.
    - ``absolute_gradient``: |dL_b/dw|, the mean over batches b weighted by their images (docs/method.md, phase 3; the
      authors weight all batches equally). It does not grow with the number of batches.
    - ``squared_batch_gradient``: (dL_b/dw)^2, the same mean.
    - ``squared_gradient``: (dL_i/dw)^2, the mean over single images i.
    - ``hessian_gradient``: H g, the Hessian of the loss times its gradient (GraSP, arXiv 2002.07376). It takes at most
      `MOST_KEPT` bytes, or an eighth of the device's memory, more than `MOST_TWICE` images need.
    - ``input_covariance``: the covariance of the rows that the weight is multiplied by, (groups, columns, columns).
    - ``squared_output_gradient``: the squared gradient of each output, summed over positions, the mean over images,
      (outputs,).

    The last two are taken over at most `MOST_IMAGES` images. A weight whose module does not multiply its input by it
    gets the identity and ones, and a line in the log.

    Args:
        model: The network.
        parameters: The weights to collect statistics for, by name.
        batches: (images, labels) pairs on the model's device; for ``hessian_gradient``, an iterable that can be read
            twice in the same order.
        loss: The training loss: the mean over a batch of a loss that depends on one image at a time.
        needs: Names of the statistics.
        temperature: Divisor of the outputs for ``hessian_gradient``; GraSP's authors use 200.

    Returns:
        For each statistic, one tensor per weight, by name.

    Raises:
        MmpError: if there is no image, a statistic is unknown, a weight has no influence on the loss, or a gradient is
            not finite.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[2.0, -1.0]])
        >>> batches = [(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0]]))]
        >>> collect(layer, {"weight": layer.weight}, batches, nn.MSELoss(), ["gradient"])
        {'gradient': {'weight': tensor([[4., 0.]])}}
    """
    wanted = set(needs)
    if unknown := wanted - set(STATISTICS):
        raise MmpError(f"unknown statistics {sorted(unknown)}; choose from: {', '.join(STATISTICS)}")
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
    sums = {kind: _zeros(parameters) for kind in kinds}
    samples = 0
    for inputs, targets in batches:
        samples += len(inputs)
        gradients = _gradients(loss(model(inputs), targets), parameters)
        for kind in kinds:
            _add(sums[kind], gradients, len(inputs), _FIRST_ORDER[kind])
        del gradients  # before the next ones are allocated
    _require(samples)
    for values in sums.values():
        torch._foreach_div_(values, samples)
    return {kind: dict(zip(parameters, values, strict=True)) for kind, values in sums.items()}


def _zeros(parameters: Mapping[str, nn.Parameter]) -> list[Tensor]:
    """Return a sum of each weight's shape, in float32 at least."""
    return [widened(torch.zeros_like(parameter, requires_grad=False)) for parameter in parameters.values()]


def _add(
    totals: Iterable[Tensor],
    values: Iterable[Tensor],
    times: int,
    function: Callable[[Tensor], Tensor] = torch.Tensor.detach,
) -> None:
    """Add ``times`` the function of each value to its total; the results are in memory one layer at a time."""
    for total, value in zip(totals, values, strict=True):
        total.add_(function(widened(value)), alpha=times)


def _squared_gradient(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Batches, loss: Loss
) -> dict[str, Tensor]:
    total = _zeros(parameters)
    samples = 0
    for inputs, targets in batches:
        for i in range(len(inputs)):
            found = _gradients(loss(model(inputs[i : i + 1]), targets[i : i + 1]), parameters)
            gradients = [*map(widened, found)]
            torch._foreach_addcmul_(total, gradients, gradients)
            del found, gradients  # before the next ones are allocated
        samples += len(inputs)
    _require(samples)
    torch._foreach_div_(total, samples)
    return dict(zip(parameters, total, strict=True))


def _input_covariance(model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Batches) -> dict[str, Tensor]:
    images = _first_images(batches)
    shifts: dict[str, Tensor] = {}  # means of the first rows, so that little cancels
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    rows = Counter[str]()

    def see(name: str, module: nn.Module, inputs: Tensor, _: Tensor) -> None:
        pieces = (widened(piece).split(_SINGLE, dim=1) for piece in column_pieces(module, inputs, _FEWEST))
        for some in chain.from_iterable(pieces):
            x = some - shifts.setdefault(name, some.mean(1, keepdim=True))
            parts = (x.transpose(1, 2) @ x).double(), x.sum(1).double()
            sums[name] = (sums[name][0].add_(parts[0]), sums[name][1].add_(parts[1])) if name in sums else parts
            rows[name] += x.shape[1]

    with torch.no_grad():
        walk = LayerWalk(model, parameters, images)
        for batch in images:
            walk.visit(batch.clone(), see)
    if uncalled := {name: parameter for name, parameter in parameters.items() if name not in walk.order}:
        _require_use(model, uncalled, images[0][:1])
    covariances = {}
    for name, parameter in parameters.items():
        if reason := "its module is never called" if name in uncalled else walk.unfit(name):
            log.info("%s is scored as if its inputs were uncorrelated: %s", name, reason)
            covariances[name] = torch.eye(parameter[0].numel(), dtype=torch.float64, device=parameter.device)[None]
        else:
            square, mean = (total.div_(rows[name]) for total in sums.pop(name))
            covariances[name] = square - mean.unsqueeze(2) * mean.unsqueeze(1)
    return covariances


def _require_use(model: nn.Module, parameters: Mapping[str, nn.Parameter], images: Tensor) -> None:
    """Raise unless the outputs depend on every parameter, as on an attention's projection used in a function."""
    outputs = [leaf for leaf in tree_leaves(model(images)) if isinstance(leaf, Tensor) and leaf.requires_grad]
    _gradients(sum((output.sum() for output in outputs), torch.zeros((), requires_grad=True, device="cpu")), parameters)


def _squared_output_gradient(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Batches, loss: Loss
) -> dict[str, Tensor]:
    images = _first_images(batches)
    sums = {name: torch.zeros(len(parameter), device=parameter.device) for name, parameter in parameters.items()}

    def see(name: str, module: nn.Module, _: Tensor, output: Tensor) -> None:
        def add(gradient: Tensor) -> None:
            sums[name] += widened(rows_of(module, gradient)).square().sum(1).flatten()

        output.register_hook(add)

    with torch.no_grad():
        walk = LayerWalk(model, parameters, images)
    for batch, (_, targets) in zip(images, batches, strict=False):
        outputs = walk.visit(batch.clone(), see)
        _gradients(len(batch) * loss(outputs, targets[: len(batch)]), parameters)  # a sum over images, not a mean
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
    """Return H g: the mean gradient g from a first pass, the Hessian-vector products of each piece from a second.

    The graphs of the first pass are kept as long as there is room, so that the second need not build them again.
    """
    weights = list(parameters.values())
    mean, total = _zeros(parameters), _zeros(parameters)
    held = dict.fromkeys(map(_address, [*model.parameters(), *model.buffers()]), 0)  # are in memory anyway
    graphs: deque[list[GradientEdge | None]] = deque()

    def gradients(inputs: Tensor, targets: Tensor, create_graph: bool) -> list[Tensor]:
        return _gradients(loss(model(inputs) / temperature, targets), parameters, create_graph)

    def product(inputs: Tensor, targets: Tensor) -> Sequence[Tensor]:
        edges = graphs.popleft() if graphs else _edges(gradients(inputs, targets, create_graph=True))
        return _hessian_product(edges, mean, weights)

    most = min(MOST_KEPT, memory_of(weights[0].device) // 8) if weights else 0

    def room() -> bool:
        return sum(held.values()) <= most

    with sdpa_kernel(SDPBackend.MATH):  # fused attention kernels have no second derivative
        samples = 0
        for inputs, targets in _pieces(batches):
            samples += len(inputs)
            with _counting(held) if (keep := room()) else nullcontext():
                found = gradients(inputs, targets, create_graph=keep)
            _add(mean, found, len(inputs))
            if keep and room():
                graphs.append(_edges(found))
            del found  # before the next ones are allocated
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
    """Yield batches in even pieces of at most `MOST_TWICE` images."""
    for inputs, targets in batches:
        count = max(1, math.ceil(len(inputs) / MOST_TWICE))
        yield from zip(inputs.tensor_split(count), targets.tensor_split(count), strict=True)


def _edges(gradients: Iterable[Tensor]) -> list[GradientEdge | None]:
    """Return the graph edge of each gradient (the values can then be freed); None for a constant gradient."""
    return [get_gradient_edge(gradient) if gradient.requires_grad else None for gradient in gradients]


def _hessian_product(
    edges: Iterable[GradientEdge | None], vector: Iterable[Tensor], weights: list[nn.Parameter]
) -> Sequence[Tensor]:
    """Return the Hessian times a vector, from the graph edges of the gradients; the graph is freed."""
    parts = (part.to(weight.dtype) for part, weight in zip(vector, weights, strict=True))
    pairs = [(edge, part) for edge, part in zip(edges, parts, strict=True) if edge is not None]
    if not pairs:  # the loss is linear in the weights
        return list(map(torch.zeros_like, weights))
    outputs, vectors = zip(*pairs, strict=True)
    # A weight in which the loss is linear has no second derivative: zeros instead of an error.
    return torch.autograd.grad(outputs, weights, vectors, allow_unused=True, materialize_grads=True)


@contextmanager
def _counting(held: dict[int, int]) -> Iterator[None]:
    """Record the bytes of all storages that are saved in graphs during a ``with`` block, by address."""

    def record(value: Tensor) -> Tensor:
        held.setdefault(_address(value), value.untyped_storage().nbytes())
        return value.detach()  # a graph that saved its own outputs with their history would never be freed

    with saved_tensors_hooks(record, lambda value: value):
        yield


def _address(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


def _gradients(value: Tensor, parameters: Mapping[str, nn.Parameter], create_graph: bool = False) -> list[Tensor]:
    gradients = torch.autograd.grad(value, list(parameters.values()), create_graph=create_graph, allow_unused=True)
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            raise MmpError(
                f"{name!r} has no gradient: the loss does not depend on it; remove its module from the model"
            )
    return list(gradients)


def _require(samples: int) -> None:
    if not samples:
        raise MmpError(
            "the calibration split is empty (raise data.calibration), or its batches are an exhausted iterator (pass a "
            "list)"
        )


@contextmanager
def _scoring_mode(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Run a ``with`` block in eval mode, with gradients of all parameters, frozen ones included."""
    frozen = [p for p in parameters.values() if not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with evaluating(model), differentiable(model), torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
