"""Joint reconstruction: all kept weights are tuned together, until blocks and logits are close to the dense network's.

Least squares solves one layer at a time (:mod:`mmp.pruning.reconstruction.reconstruct`), so no layer can make up for
the error of a later one. Here the kept weights of all layers, the biases and the scales and shifts of norms follow the
gradient of one loss: the error of the outputs of the network's blocks and of its logits, on the same unlabelled images
(:class:`mmp.pruning.reconstruction.imitation.Imitation`). Batch norms stay in eval mode, and masks are held. Adam takes
the steps, each in proportion to the size of a parameter's values, with a learning rate that rises for three tenths of
them and then falls to zero (Smith and Topin 2018, arXiv 1708.07120). The images are varied
(:func:`mmp.pruning.reconstruction.tuning_images.varied`), so that a few thousand suffice.

A share of the images is held out. The weights with the lowest loss on these images are the result, or the weights from
before if none are better. If the loss on them grows beyond that of the beginning, the steps were too long. Then the
tuning returns to its best weights and begins another cycle with a quarter of the rate.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mmp.compilation import compiled
from mmp.errors import MmpError
from mmp.pruning.layers.eval_mode import differentiable, evaluating
from mmp.pruning.layers.prunable import find_layers
from mmp.pruning.masks import MaskEnforcer, Masks
from mmp.pruning.reconstruction.blocks import find_blocks, require_blocks
from mmp.pruning.reconstruction.imitation import Imitation
from mmp.pruning.reconstruction.joint_report import TUNED, JointReport
from mmp.pruning.reconstruction.repeatable import repeatable
from mmp.pruning.reconstruction.tuning_images import Batches, TuningImages
from mmp.pruning.reconstruction.tuning_state import TuningState
from mmp.tensors import memory_of, tensors_digest

log = logging.getLogger(__name__)

Loss = Callable[[nn.Module, Tensor], Tensor]

FULL, MIXED = PRECISIONS = ("32-true", "bf16-mixed")  # Lightning's names
_MEASUREMENTS = 10  # of the held images' loss, evenly over the steps; each is followed by a checkpoint
_RISING = 0.3  # share of the steps in which the learning rate rises
_LOWEST = 0.04  # of the highest rate: where it begins
_VERSION = 2  # of the algorithm; a checkpoint of another one is not continued
_MOST_LOWERED = 5  # how often the rate may be divided by four
_MOST_SAVED = 2**30  # bytes that the graph of a forward pass may hold; an eighth of a small memory, see _part


@dataclass(frozen=True)
class Tuning:
    """The settings of a joint tuning.

    Attributes:
        steps: Number of steps.
        learning_rate: Highest learning rate of Adam, as a share of the size of each parameter: the root mean square of
            its values that are not zero.
        batch_size: Number of images of a step.
        logits: Weight of the divergence of the logits, beside the mean error of the blocks.
        precision: ``32-true``, or ``bf16-mixed``: the networks of a step are computed in bfloat16, and weights, steps
            and measurements stay in single precision.
        compile: Whether steps are compiled by ``torch.compile``, which needs a C++ compiler and a minute or more.

    Raises:
        MmpError: if a value is out of range.
    """

    steps: int = 1000
    learning_rate: float = 0.02
    batch_size: int = 128
    logits: float = 0.1
    precision: str = FULL
    compile: bool = False

    @classmethod
    def of(cls, settings: object) -> Tuning:
        """Return the settings among the attributes of an object, such as a section of a configuration."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise MmpError(f"{name}={getattr(self, name)}: must be at least 1")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise MmpError(f"learning_rate={self.learning_rate}: must be positive")
        if not (self.logits >= 0 and math.isfinite(self.logits)):
            raise MmpError(f"logits={self.logits}: must be at least 0")
        if self.precision not in PRECISIONS:
            raise MmpError(f"precision={self.precision}: must be {' or '.join(PRECISIONS)}")


def reconstruct_jointly(
    model: nn.Module,
    masks: Masks,
    batches: Batches,
    dense: nn.Module,
    tuning: Tuning | None = None,
    held: Batches | None = None,
    blocks: Iterable[str] | None = None,
    checkpoint: Path | None = None,
) -> JointReport:
    """Tune the kept weights of all layers together, in place.

    The kept weights of layers, biases, and scales and shifts of norms change; other parameters, frozen parameters and
    all buffers do not. On one machine, the same call gives the same bits, unless a smaller
    limit of the memory makes it take a batch in smaller parts. On a GPU, convolutions and attention are
    computed by deterministic kernels, and some other operations only under
    ``torch.use_deterministic_algorithms(True)``; equal bits were measured there for a ResNet-20.

    Args:
        model: A pruned network, best after :func:`mmp.reconstruct`. Its modes (training, eval) are restored.
        masks: Its masks by weight name. Pruned weights are exactly zero afterwards.
        batches: Batches of unlabelled images of one size (B, C, H, W), or pairs whose first element is one, on any
            device.
        dense: The network to follow, which is not changed.
        tuning: Steps, learning rate, batch size and weight of the logits; None takes their defaults.
        held: The same, of images that are not tuned on but decide which weights are the result. They should not be
            among the images of :func:`mmp.reconstruct`, which would favour its weights. None takes a tenth of
            ``batches``, at least 32 images.
        blocks: Names of the modules whose outputs are compared; None finds them (:func:`find_blocks`).
        checkpoint: A file in which the state is kept, ten times over the steps. If it exists and belongs to the same
            call, the tuning continues from it, and ends with the same bits as without an interruption.

    Returns:
        The loss of the held images before and after, and the steps.

    Raises:
        MmpError: if there are too few images or they differ in size, if a mask, a block or the dense network does not
            fit the model, if the two networks are on different devices, if a weight is not in single or double
            precision, if all parameters are frozen, if the dense outputs are not finite, or if ``torch.inference_mode``
            is on.

    Example:
        >>> import copy, mmp, torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> parts = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)]
        >>> dense = nn.Sequential(*parts)
        >>> scores = mmp.score(mmp.Magnitude(), mmp.prunable_parameters(dense, mmp.prunable_layers(dense)), {})
        >>> masks = mmp.make_masks(scores, dict.fromkeys(scores, 0.8))
        >>> model, images, held = copy.deepcopy(dense), [torch.randn(512, 3, 8, 8)], [torch.randn(64, 3, 8, 8)]
        >>> reports = mmp.reconstruct(model, masks, images)
        >>> report = mmp.reconstruct_jointly(model, masks, images, dense, mmp.Tuning(steps=50), held)
        >>> report.status, report.blocks, report.images, report.held
        ('tuned', 3, 512, 64)
        >>> report.after < report.before
        True
    """
    if torch.is_inference_mode_enabled():
        raise MmpError("joint tuning cannot work inside torch.inference_mode(), which forbids gradients; leave it")
    tuning = tuning or Tuning()
    _require_alike(model, dense)
    named = find_blocks(model) if blocks is None else require_blocks(model, blocks)
    masks.require_fit(dict(model.named_parameters(remove_duplicate=False)))
    parameters = _tuned(model, masks)
    images = TuningImages.of(batches, held, next(iter(parameters.values())).device)
    begun = time.perf_counter()
    with (
        evaluating(model, dense),
        differentiable(model),
        repeatable(images.device),
        _alone(model, parameters),
        torch.enable_grad(),
        torch.autocast(images.device.type, enabled=False),  # the caller's
    ):
        images = images.arranged_for(model, dense)
        imitation = Imitation.of(dense, named, tuning.logits, images.held_batches())
        state = _Descent(model, masks, parameters, images, imitation, tuning).run(checkpoint)
    report = JointReport(
        status=_status(state, tuning),
        before=state.before,
        after=state.best_loss,
        best_step=state.best_step,
        steps=state.step,
        blocks=len(named),
        images=len(images.tuned),
        held=len(images.held),
        seconds=time.perf_counter() - begun,
        compiled=state.compiled,
    )
    if report.status != TUNED:
        log.warning("joint tuning leaves the weights as they were: %s", report.status)
    return report


def _require_alike(model: nn.Module, dense: nn.Module) -> None:
    """Raise unless two networks have parameters of the same names, shapes and devices, and share none."""
    ours, theirs = (dict(network.named_parameters()) for network in (model, dense))
    for name in [*ours, *theirs]:
        a, b = ours.get(name), theirs.get(name)
        if a is None or b is None or a.shape != b.shape:
            raise MmpError(
                f"dense is another network than model: they differ in {name!r}; pass a copy of it from before"
            )
        if a is b:
            raise MmpError(f"dense and model share {name!r}; copy the dense network with copy.deepcopy before pruning")
        if a.device != b.device:
            raise MmpError(f"dense is on {b.device}, but model is on {a.device} ({name!r}); move one of them by to()")


def _tuned(model: nn.Module, masks: Masks) -> dict[str, nn.Parameter]:
    """Return the parameters to tune, by name: prunable weights, biases, and scales and shifts of norms."""
    names = {*masks, *(layer.name for layer in find_layers(model))}
    weights = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if name in names}
    found = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.dim() <= 1 or id(parameter) in weights)
    }
    if not found:
        raise MmpError("all weights of the model are frozen, so none can be tuned; call model.requires_grad_(True)")
    for name, parameter in found.items():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise MmpError(
                f"{name!r} is {parameter.dtype}, too coarse for small steps; convert both networks by float()"
            )
    return found


@contextmanager
def _alone(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Compute gradients of these parameters only, for a ``with`` block. Gradients from before are restored."""
    tuned = {id(parameter) for parameter in parameters.values()}
    others = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in tuned]
    gradients = [parameter.grad for parameter in parameters.values()]
    try:
        for parameter in others:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            parameter.grad = gradient


@dataclass(frozen=True)
class _Descent:
    """The steps of a tuning, and the measurements between them."""

    model: nn.Module
    masks: Masks
    parameters: Mapping[str, nn.Parameter]
    images: TuningImages
    imitation: Imitation
    tuning: Tuning

    def run(self, checkpoint: Path | None) -> TuningState:
        """Take all steps, and leave the model with its best weights."""
        enforcer = MaskEnforcer(dict(self.model.named_parameters(remove_duplicate=False)))
        enforcer.set(self.masks)
        part, steps = self._part(), self.tuning.steps
        state = TuningState.new(self.parameters, self._held_loss(part))
        state.part = part
        key = self._key() if checkpoint else ""
        if checkpoint and state.load(checkpoint, key):
            log.info("joint tuning continues after step %d of %d", state.step, steps)
        enforcer.attach(state.optimizer)
        loss_of = self._loss_of_steps(state)
        state.compiled = loss_of != self._loss
        self._descend(state, loss_of, checkpoint, key)
        state.restore_best()
        return state

    def _descend(self, state: TuningState, loss_of: Loss, checkpoint: Path | None, key: str) -> None:
        """Take the steps that are left; ten times, measure the loss of the held images and save the state."""
        steps = self.tuning.steps
        every = max(1, steps // _MEASUREMENTS)
        loss, first, begun = state.best_loss, state.step, time.perf_counter()
        while state.step < steps and math.isfinite(loss):
            self._step(state, loss_of)
            if state.step % every and state.step < steps:
                continue
            loss = self._held_loss(state.part)
            state.see(loss)
            if not loss <= state.before and state.step < steps and state.lowered < _MOST_LOWERED:  # true for NaN
                state.go_back()
                log.info("joint tuning, step %d: loss %.4g, back to the best weights at a lower rate", state.step, loss)
                loss = state.best_loss
            left = (time.perf_counter() - begun) / (state.step - first) * (steps - state.step)
            log.info("joint tuning, step %d of %d: loss %.4g, %.0f s left", state.step, steps, loss, left)
            if checkpoint and math.isfinite(loss):
                state.save(checkpoint, key)

    def _loss_of_steps(self, state: TuningState) -> Loss:
        if not self.tuning.compile or state.step >= self.tuning.steps:
            return self._loss
        parts = self.images.batch(state.step, self.tuning.batch_size).split(state.part)

        def trial(loss: Loss) -> None:
            for images in {len(part): part for part in parts}.values():
                loss(self.model, images).backward()

        return compiled(self._loss, trial, "joint tuning")

    def _loss(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return the loss of a step, computed in the precision of the tuning."""
        mixed = self.tuning.precision == MIXED
        with torch.autocast(images.device.type, torch.bfloat16, enabled=mixed, cache_enabled=False):
            return self.imitation.loss(model, images)

    def _step(self, state: TuningState, loss_of: Loss) -> None:
        images = self.images.batch(state.step, self.tuning.batch_size)
        state.optimizer.zero_grad()
        for some in images.split(state.part):
            (loss_of(self.model, some) * (len(some) / len(images))).backward()
        share = (state.step - state.start) / (self.tuning.steps - state.start)
        state.step_by(self.tuning.learning_rate * 0.25**state.lowered * _rate(share))

    @torch.no_grad()
    def _held_loss(self, part: int) -> float:
        """Return the mean loss of the images that are held out."""
        losses = ((self.imitation.loss(self.model, some), len(some)) for some in self.images.held_batches(part))
        return sum(float(loss) * count for loss, count in losses) / len(self.images.held)

    def _part(self) -> int:
        """Return the number of images whose graph needs `_MOST_SAVED` bytes, at most a whole batch.

        Where memory is short, it may need an eighth of it.
        """
        saved = dict.fromkeys(map(_address, [*self.model.parameters(), *self.model.buffers()]), 0)

        def record(value: Tensor) -> Tensor:
            saved.setdefault(_address(value), value.untyped_storage().nbytes())
            return value.detach()

        with saved_tensors_hooks(record, lambda value: value):
            self.imitation.loss(self.model, next(self.images.held_batches(1)))
        most = min(_MOST_SAVED, memory_of(self.images.device) // 8)
        return max(1, min(self.tuning.batch_size, most // max(1, sum(saved.values()))))

    def _key(self) -> str:
        """Return a hash of everything that decides the tuning."""
        networks = [tensors_digest(network.state_dict()) for network in (self.model, self.imitation.dense)]
        settings = [astuple(self.tuning), self.imitation.blocks, self.masks.digest(), self.images.digest()]
        known = [_VERSION, networks, settings, [*self.parameters], torch.__version__]
        return hashlib.sha256(repr(known).encode()).hexdigest()


def _address(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


def _rate(share: float) -> float:
    """Return the learning rate, as a share of the highest, after a share of the steps: two halves of a cosine."""
    if share < _RISING:
        return _LOWEST + (1 - _LOWEST) * (1 - math.cos(math.pi * share / _RISING)) / 2
    return (1 + math.cos(math.pi * (share - _RISING) / (1 - _RISING))) / 2


def _status(state: TuningState, tuning: Tuning) -> str:
    if state.best_step:
        return TUNED
    if state.step < tuning.steps:
        return "the loss became NaN or infinite; lower the learning rate"
    return "no step lowered the loss of the held images"
