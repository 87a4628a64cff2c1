"""The parts of a fine-tuning recipe, one at a time: their effect on loss, learning rate, weights and norms."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from composing import composed
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from callbacks.averaging import AverageAtTarget
from callbacks.pruning import MaskPruning
from callbacks.selection import CheckpointAtTarget
from mmp.config.schema import FinetuneConfig
from mmp.config.validate import validate
from mmp.data.module import ImageData
from mmp.models.networks import build_model, fill_input
from mmp.pruning.layers.prunable import prunable_layers
from mmp.pruning.schedules import OneShot, Schedule, Stepwise
from mmp.training.classifier import Classifier, distillation_loss
from mmp.training.finetune import Finetuning, finetune_best

EPOCHS, STEPS = 4, 5


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(8 * STEPS, 2, 8, 8, generator=generator)
    return DataLoader(TensorDataset(images, torch.randint(3, (len(images),), generator=generator)), batch_size=8)


def recipe(**changes: object) -> FinetuneConfig:
    return FinetuneConfig(name="test", epochs=EPOCHS, learning_rate=0.1, **{"optimizer": "sgd", **changes})


class Rates(pl.Callback):
    """Records the learning rate of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def fit(module: Classifier, *callbacks: pl.Callback, folder: Path | None = None) -> pl.Trainer:
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", callbacks=list(callbacks), logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder,
        enable_checkpointing=any(isinstance(c, CheckpointAtTarget) for c in callbacks),
    )  # fmt: skip
    trainer.fit(module, loader(), loader())
    return trainer


# --- norms ---


@pytest.mark.parametrize("epochs", [0, 1])
def test_norms_are_reestimated_on_the_calibration_images(
    tmp_path: Path, epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [
        f"finetune.epochs={epochs}",
        "trainer.limit_train_batches=2",
        "logger=none",
        f"paths.results={tmp_path}",
    ]
    config = validate(composed(*overrides, "finetune.reestimate_norms=true"))
    fill_input(config)
    monkeypatch.setattr("mmp.training.finetune.fit", lambda *_: None)  # this test is about the end of the training
    data, model = ImageData(config.data, 0), build_model(config.model).eval()
    tuned, _ = finetune_best(Finetuning(config, data, model, list, [], tmp_path), model, model)
    device = tuned.bn1.running_mean.device  # a GPU if there is one
    made = [tuned.conv1(images.to(device)) for images, _ in data.calibration_dataloader()]
    expected = torch.stack([part.mean((0, 2, 3)) for part in made]).mean(0)
    assert torch.allclose(tuned.bn1.running_mean, expected, atol=1e-5)
    assert not torch.allclose(tuned.bn1.running_mean.cpu(), model.bn1.running_mean)


# --- distillation ---


def test_distillation_loss_by_hand() -> None:
    logits, teacher = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    p = torch.tensor([1.0, torch.e]) / (1 + torch.e)  # teacher, softened by 2
    q = p.flip(0)
    expected = 4 * (p * (p / q).log()).sum() / 2  # for the second image, both agree
    assert distillation_loss(logits, teacher, 2.0) == pytest.approx(expected.item())
    assert distillation_loss(teacher, teacher, 3.0) == pytest.approx(0.0, abs=1e-7)


def test_distillation_is_a_share_of_the_loss_and_the_teacher_is_no_submodule(conv_net: nn.Module) -> None:
    teacher = copy.deepcopy(conv_net)
    with torch.no_grad():
        next(teacher.parameters()).mul_(3)
    before = copy.deepcopy(teacher.state_dict())
    batch = next(iter(loader()))
    losses = {}
    for share in (0.0, 0.25, 1.0):
        module = Classifier(conv_net.eval(), recipe(distillation=share), 3, teacher)
        losses[share] = module.training_step(batch, 0).item()
    assert losses[0.25] == pytest.approx(0.75 * losses[0.0] + 0.25 * losses[1.0], rel=1e-5)
    logits, followed = conv_net(batch[0]), teacher.eval()(batch[0])
    assert losses[1.0] == pytest.approx(distillation_loss(logits, followed, 2.0).item())
    assert len(list(module.parameters())) == len(list(conv_net.parameters()))
    fit(module)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


# --- rates ---


def test_a_rate_per_step_warms_up_and_decays_within_the_epochs(conv_net: nn.Module) -> None:
    rates = Rates()
    fit(Classifier(conv_net, recipe(by_step=True, warmup_epochs=1), 3), rates)
    assert len(rates.seen) == EPOCHS * STEPS
    assert rates.seen[0] == pytest.approx(0.001)
    assert rates.seen[: STEPS + 1] == sorted(rates.seen[: STEPS + 1])
    assert max(rates.seen) == rates.seen[STEPS] == pytest.approx(0.1)
    assert rates.seen[STEPS:] == sorted(rates.seen[STEPS:], reverse=True)
    assert rates.seen[-1] < 0.002


def test_a_rate_per_epoch_is_constant_within_an_epoch(conv_net: nn.Module) -> None:
    rates = Rates()
    fit(Classifier(conv_net, recipe(), 3), rates)
    assert [len(set(rates.seen[i * STEPS : (i + 1) * STEPS])) for i in range(EPOCHS)] == [1] * EPOCHS
    assert len(set(rates.seen)) == EPOCHS


@pytest.mark.parametrize("scheduler", ["none", "cosine"])
def test_layers_far_from_the_output_have_a_lower_learning_rate(conv_net: nn.Module, scheduler: str) -> None:
    conv_net.pretrained_cfg = {"classifier": "8"}  # from which timm derives the order of the layers
    trainer = fit(Classifier(conv_net, recipe(layer_decay=0.5, scheduler=scheduler), 3))
    scale = {id(p): group["lr_scale"] for group in trainer.optimizers[0].param_groups for p in group["params"]}
    rates = {id(p): group["lr"] for group in trainer.optimizers[0].param_groups for p in group["params"]}
    first, last = conv_net[0].weight, conv_net[-1].weight
    assert scale[id(first)] < scale[id(last)]
    if scheduler == "none":
        assert rates[id(first)] == pytest.approx(0.1 * scale[id(first)])


# --- averaging ---


class Watch(pl.Callback):
    """Records the weights after every step and at every validation."""

    def __init__(self) -> None:
        self.trained: list[Tensor] = []
        self.validated: list[Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        self.trained.append(pl_module.model[4].weight.detach().clone())

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        if _[1] == 0:
            self.validated.append(pl_module.model[4].weight.detach().clone())


@pytest.fixture(params=[OneShot(0), Stepwise([0, 2], [0.5, 1.0])], ids=["at once", "gradually"])
def averaged(
    request: pytest.FixtureRequest, conv_net: nn.Module, tmp_path: Path
) -> tuple[Schedule, Classifier, Watch, Tensor, Path]:
    layers = prunable_layers(conv_net)
    parameters = dict(conv_net.named_parameters())
    scores = {layer.name: parameters[layer.name].detach().abs().clone() for layer in layers}
    pruning = MaskPruning(layers, scores, dict.fromkeys(scores, 0.6), request.param)
    module, watch = Classifier(conv_net, recipe(), 3), Watch()
    best = CheckpointAtTarget(tmp_path, filename="best", monitor="val/loss", mode="min", save_top_k=1)
    fit(module, pruning, AverageAtTarget(0.9), watch, best, folder=tmp_path)
    kept = scores["4.weight"].flatten().sort().values[int(0.6 * scores["4.weight"].numel())]
    return request.param, module, watch, scores["4.weight"] >= kept, Path(best.best_model_path)


def test_the_average_of_a_pruned_weight_is_zero(averaged) -> None:
    _, module, watch, mask, best = averaged
    for weight in (
        module.model[4].weight,
        watch.validated[-1],
        torch.load(best, weights_only=True)["state_dict"]["model.4.weight"],
    ):
        assert torch.equal(weight != 0, mask)


def test_the_model_is_the_moving_average_since_the_final_masks(averaged) -> None:
    schedule, module, watch, _, _ = averaged
    begin = STEPS * schedule.last_epoch
    average = watch.trained[begin]
    for n, weight in enumerate(watch.trained[begin + 1 :], start=1):
        average = average.lerp(weight, 1 - min(0.9, (1 + n) / (10 + n)))
    assert torch.allclose(module.model[4].weight, average, atol=1e-6)
    assert torch.equal(watch.validated[-1], module.model[4].weight)
    assert not torch.equal(watch.trained[-1], module.model[4].weight)


def test_validation_before_the_final_masks_uses_the_trained_weights(averaged) -> None:
    schedule, _, watch, _, _ = averaged
    for epoch in range(schedule.last_epoch):
        assert torch.equal(watch.validated[epoch], watch.trained[(epoch + 1) * STEPS - 1])


@pytest.mark.parametrize("accumulated", [2, 3, 4])
def test_the_average_begins_after_a_step_under_the_final_masks(conv_net: nn.Module, accumulated: int) -> None:
    layers = prunable_layers(conv_net)
    scores = {name: value.detach().abs() for name, value in conv_net.named_parameters() if value.dim() > 1}
    pruning = MaskPruning(layers, scores, dict.fromkeys(scores, 0.6), Stepwise([0, 2], [0.5, 1.0]))
    module, averaging = Classifier(conv_net, recipe(), 3), AverageAtTarget(0.9)
    updates: list[tuple[int, int]] = []

    class Updates(pl.Callback):
        """Records epoch and batch of every update of the average."""

        def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
            if averaging._started and int(averaging._average_model.n_averaged) > len(updates):
                updates.append((trainer.current_epoch, int(_[-1])))

    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", callbacks=[pruning, averaging, Updates()], logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, enable_checkpointing=False,
        accumulate_grad_batches=accumulated,
    )  # fmt: skip
    trainer.fit(module, loader())
    ends = [batch for batch in range(STEPS) if (batch + 1) % accumulated == 0 or batch == STEPS - 1]
    assert updates == [(epoch, batch) for epoch in (2, 3) for batch in ends]  # one update for each optimizer step
