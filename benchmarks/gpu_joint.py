"""Parts of ``python -m benchmarks.gpu``: joint tuning on the CPU and on the GPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from benchmarks.cifar_resnet import CifarResNet
from benchmarks.gpu_channels import Case
from benchmarks.gpu_figures import DEVICE, Figure, Setting, between, exactly
from benchmarks.timing import Claim
from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters
from mmp.pruning.masks import Masks, make_masks
from mmp.pruning.reconstruction.joint import Tuning, reconstruct_jointly
from mmp.pruning.reconstruction.joint_report import TUNED, JointReport
from mmp.pruning.reconstruction.reconstruct import reconstruct

_DEIT = Case("deit_tiny_patch16_224", lambda: timm.create_model("deit_tiny_patch16_224", num_classes=100), 224)


class _StoppedError(Exception):
    """Stands for an interruption."""


@dataclass(frozen=True)
class _Task:
    """A pruned network to be tuned.

    Attributes:
        name: The network's name.
        dense: The dense network.
        start: The pruned network, re-solved layer by layer.
        masks: Its masks.
        images: Images to tune on.
        held: Images that are held out.
        tuning: The settings.
    """

    name: str
    dense: nn.Module
    start: nn.Module
    masks: Masks
    images: Tensor
    held: Tensor
    tuning: Tuning

    @classmethod
    def of(cls, case: Case, sparsity: float, counts: tuple[int, int], tuning: Tuning) -> _Task:
        """Prune a network by the magnitude of its weights.

        Args:
            case: The network.
            sparsity: Share of the weights of every layer.
            counts: Number of images to tune on, and of images that are held out.
            tuning: The settings.
        """
        dense = case.network()
        images, held = case.images(sum(counts)).split(counts)
        weights = prunable_parameters(dense, prunable_layers(dense))
        scores = {name: weight.detach().abs() for name, weight in weights.items()}
        masks = make_masks(scores, dict.fromkeys(scores, sparsity))
        start = copy.deepcopy(dense).to(DEVICE)
        reconstruct(start, masks, [images[:64].to(DEVICE)])
        return cls(case.name, dense, start, masks, images, held, tuning)

    def tuned(
        self, device: str, checkpoint: Path | None = None, stop: int | None = None
    ) -> tuple[nn.Module, JointReport | None]:
        """Tune a copy on a device.

        Args:
            device: The device.
            checkpoint: The checkpoint's file.
            stop: The step at which the tuning is interrupted.

        Returns:
            The copy, and the report; None after an interruption.
        """
        model, dense = (copy.deepcopy(network).to(device) for network in (self.start, self.dense))
        passes = 0

        def interrupt(*_: object) -> None:
            nonlocal passes
            passes += torch.is_grad_enabled()  # one for each step, and one before all steps
            if stop is not None and passes > stop + 1:
                raise _StoppedError

        model.register_forward_hook(interrupt)
        with suppress(_StoppedError):
            batches, held = [self.images], [self.held]
            return model, reconstruct_jointly(
                model, self.masks, batches, dense, self.tuning, held, checkpoint=checkpoint
            )
        return model, None


def joint(setting: Setting) -> Iterator[Figure]:
    """Tune a ResNet at 90 % on both devices: zeros, repeated bits, an interruption, and the loss."""
    task = _resnet(setting)
    name, steps = f"{task.name}, 90 %", task.tuning.steps
    first, report = task.tuned(DEVICE)
    assert report is not None
    yield exactly(f"{name}: networks that were tuned", int(report.status == TUNED), 1, "networks", report.describe())
    yield exactly(f"{name}: pruned weights that are not zero", _alive(first, task.masks), 0, "weights")
    yield _repeated(name, task, first)
    file, stop = setting.work / "joint" / "state.safetensors", int(0.75 * steps)
    file.parent.mkdir(parents=True, exist_ok=True)
    task.tuned(DEVICE, file, stop)
    continued, _ = task.tuned(DEVICE, file)
    what = f"{name}: tensors that differ after an interruption at step {stop} of {steps}"
    yield exactly(what, _differences(first, continued), 0, "tensors")
    if not setting.dry:
        other = _Task.of(_DEIT, 0.5, (64, 32), Tuning(steps=10, batch_size=32))
        yield _repeated(f"{other.name}, 50 %", other, other.tuned(DEVICE)[0])
    _, on_cpu = task.tuned("cpu")
    assert on_cpu is not None
    note = f"{report.after:.4g} over {on_cpu.after:.4g}, from {on_cpu.before:.4g}, after {steps} steps"
    yield between(f"{name}: loss of the held images over the CPU's", report.after / on_cpu.after, 0.98, 1.02, note)


def joint_steps(setting: Setting) -> Iterator[Figure]:
    """Time steps of a joint tuning, its measurements included."""
    task = _resnet(setting)
    reports = [task.tuned(DEVICE)[1] for _ in range(2 if setting.dry else 4)]
    seconds = [1000 * report.seconds / report.steps for report in reports[1:] if report is not None]
    note = f"batches of {task.tuning.batch_size} images"
    yield Figure.of(Claim(f"{task.name}: a step of a joint tuning", seconds, note=note), "ms")


def _resnet(setting: Setting) -> _Task:
    """Return a ResNet at 90 %."""
    if setting.dry:
        return _Task.of(Case("ResNet-8", lambda: CifarResNet(8), 32), 0.9, (16, 16), Tuning(steps=4, batch_size=8))
    return _Task.of(Case("ResNet-20", lambda: CifarResNet(20), 32), 0.9, (512, 128), Tuning(steps=40))


def _repeated(name: str, task: _Task, first: nn.Module) -> Figure:
    """Return how many tensors differ if the same tuning runs again."""
    again, _ = task.tuned(DEVICE)
    return exactly(f"{name}: tensors that differ after the same tuning", _differences(first, again), 0, "tensors")


def _differences(some: nn.Module, others: nn.Module) -> int:
    """Return the number of tensors whose bits differ."""
    other = others.state_dict()
    return sum(not torch.equal(value.cpu(), other[name].cpu()) for name, value in some.state_dict().items())


def _alive(network: nn.Module, masks: Masks) -> int:
    """Return the number of pruned weights that are not zero."""
    weights = network.state_dict()
    return sum(int((weights[name].cpu() != 0)[~mask].sum()) for name, mask in masks.items())
