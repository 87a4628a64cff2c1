"""The memory that a training step certainly needs, measured in the trial step, and the check that it is there."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mmp.config.schema import FinetuneConfig, TrainConfig
from mmp.errors import MmpError
from mmp.machine import memory
from mmp.tensors import memory_of
from mmp.training.evaluation import device_of

_REPETITIONS = 3


@dataclass(frozen=True)
class StepMemory:
    """What a step of a training holds in memory.

    Attributes:
        held: Bytes of the weights, of their copies (the teacher and the average), and of the optimizer's state.
        gradients: Bytes of the gradients.
        image: Bytes that one image of the batch leaves for the backward pass.
    """

    held: int
    gradients: int
    image: int

    @classmethod
    def of(cls, trainer: Trainer, model: nn.Module, recipe: object, images: Tensor) -> StepMemory:
        """Measure a step.

        Args:
            trainer: The trainer, after it has trained the model.
            model: The model.
            recipe: The recipe of the training.
            images: At least one image, (B, C, H, W).
        """
        copies, parts = 1, 2 if str(trainer.precision).endswith("16-true") else 1  # the model is in float32 again
        if isinstance(recipe, FinetuneConfig):
            copies += bool(recipe.distillation) + bool(recipe.averaging)
        weights = [*model.parameters(), *model.buffers()]
        states = (value for state in trainer.optimizers[0].state.values() for value in state.values())
        return cls(
            held=copies * _bytes(weights) // parts + _bytes([value for value in states if isinstance(value, Tensor)]),
            gradients=_bytes([weight for weight in model.parameters() if weight.requires_grad]) // parts,
            image=_bytes_of_an_image(trainer, model, images[:1]) // parts,
        )

    def needed(self, batch: int) -> int:
        """Return the bytes that a step with a batch of this number of images needs at least."""
        return self.held + max(self.gradients, batch * self.image)


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _bytes_of_an_image(trainer: Trainer, model: nn.Module, image: Tensor) -> int:
    """Return what one more image leaves for the backward pass; 0 if the model cannot run outside of its trainer.

    A model may skip layers by chance. Passes with the same seed skip the same ones, unless the model draws more random
    numbers for more images; so the smallest of several measurements counts.
    """

    def saved(images: int, seed: int) -> int:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (a model may use the global generator)
        torch.manual_seed(seed)
        return _saved(trainer, model, image.expand(images, -1, -1, -1))

    try:
        with isolate_rng(include_cuda=torch.cuda.is_available()):
            return max(0, min(saved(3, seed) - saved(2, seed) for seed in range(_REPETITIONS)))
    except Exception:  # trainer.precision may need what the trainer does around a step; a model can raise any exception
        return 0


def _saved(trainer: Trainer, model: nn.Module, images: Tensor) -> int:
    """Return the bytes that a forward pass saves for the backward pass, beside the weights."""
    saved = {tensor.untyped_storage().data_ptr(): 0 for tensor in (*model.parameters(), *model.buffers())}

    def record(value: Tensor) -> Tensor:
        saved.setdefault(value.untyped_storage().data_ptr(), value.untyped_storage().nbytes())
        return value.detach()

    with torch.enable_grad(), trainer.precision_plugin.forward_context():
        with saved_tensors_hooks(record, lambda value: value):
            logits = model.train()(images.contiguous().to(next(model.parameters()).device))
        del logits
    return sum(saved.values())


def steps_left(steps: Mapping[str, StepMemory], dense: Path) -> dict[str, StepMemory]:
    """Return the steps of the trainings that are left: a dense model that exists is not trained again."""
    return {section: step for section, step in steps.items() if section != "dense" or not dense.is_file()}


def require_memory(config: TrainConfig, steps: Mapping[str, StepMemory], images: int) -> None:
    """Check that the trainings of a job fit into the memory of its device, before any of them begins.

    Args:
        config: The configuration, validated and complete.
        steps: What a step needs, for each training of the job: ``dense`` and ``finetune``.
        images: Number of training images; a batch is not larger.

    Raises:
        MmpError: if a training certainly needs more. The message says how much, and which setting to lower.
    """
    device, processes = device_of(config), config.trainer.devices
    on_cpu = device.type == "cpu"
    available = memory_of(device) // (processes if on_cpu else 1)
    shared = f", for {processes} processes" if on_cpu and processes > 1 else ""
    there = f"{memory().describe()}{shared}" if on_cpu else f"the GPU has {_gb(available)}"
    batch = min(config.data.batch_size, images)
    for section, step in steps.items():
        if step.needed(batch) <= available:
            continue
        if step.needed(1) <= available:
            fitting = (available - step.held) // step.image
            raise MmpError(
                f"data.batch_size={config.data.batch_size}: a training step of {config.model.title} needs at least "
                f"{_gb(step.needed(batch))} ({_gb(batch * step.image)} of it for {batch} images), and {there}; "
                f"set data.batch_size={fitting} or less"
            )
        raise MmpError(
            f"{config.model.setting}: a training step with {section}.optimizer={getattr(config, section).optimizer} "
            f"needs at least {_gb(step.needed(1))} even for one image of {config.data.image_size} pixels, and {there}; "
            "choose a smaller model, a smaller data.image_size or another optimizer"
        )


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
