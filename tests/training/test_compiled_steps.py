"""Training steps compiled by torch.compile: the same training, with plain names in its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from composing import composed
from pytorch_lightning.callbacks import ModelCheckpoint
from short_training import digits
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmp.config.identity import identity, settings_of
from mmp.config.schema import FinetuneConfig
from mmp.data.loader import EpochLoader, EpochShuffle, Split
from mmp.training.classifier import Classifier, LossOfStep

RECIPE = FinetuneConfig(name="test", epochs=2, learning_rate=1e-2, distillation=0.5)


def network() -> nn.Module:
    """Return a small CNN with batch norm, whose running statistics a trial must not change, and with dropout."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(288, 10)
    return nn.Sequential(*layers)


class StopEarly(pl.Callback):
    """Ends a training after its first epoch."""

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: object) -> None:
        trainer.should_stop = True


def fit(
    module: Classifier,
    folder: Path,
    callbacks: Sequence[pl.Callback] = (),
    precision: str = "32-true",
    ckpt_path: Path | None = None,
) -> None:
    """Train for two epochs on digits."""
    data = digits()
    trainer = pl.Trainer(
        max_epochs=2, logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[*callbacks],
        enable_checkpointing=bool(callbacks), num_sanity_val_steps=0, accelerator="cpu", deterministic=True,
        default_root_dir=folder, precision=precision,
    )  # fmt: skip
    train = EpochLoader(Split(data, range(len(data))), 64, EpochShuffle(len(data), seed=0))
    trainer.fit(module, train, DataLoader(data, batch_size=320), ckpt_path=ckpt_path, weights_only=True)
    compiled = trainer.callback_metrics["compiled"]
    assert bool(compiled) == (module._loss_of_step != module._loss)


def trained(folder: Path, compiles: bool, precision: str = "32-true") -> nn.Module:
    """Return the network after two epochs."""
    module = Classifier(network(), RECIPE, 10, teacher=network(), compiles=compiles)
    fit(module, folder, precision=precision)
    assert set(module.state_dict()) == {f"model.{name}" for name in module.model.state_dict()}
    return module.model


def same(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.slow
def test_the_trial_of_a_compiled_network_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def compiled(function: LossOfStep, **_: object) -> LossOfStep:
        def call(images: Tensor, targets: Tensor) -> Tensor:
            calls.append(len(images))
            return function(images, targets)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    assert same(trained(tmp_path, compiles=True), trained(tmp_path, compiles=False))
    assert calls == [64] * (1 + 2 * 5)  # the trial and all steps; validation is not compiled


@pytest.mark.slow
def test_without_a_compiler_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compiled(function: LossOfStep, **_: object) -> LossOfStep:
        def call(images: Tensor, targets: Tensor) -> Tensor:
            function(images, targets).backward()
            raise RuntimeError("InvalidCxxCompiler: No C++ compiler")

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    assert same(trained(tmp_path, compiles=True), trained(tmp_path, compiles=False))
    assert "training goes on without torch.compile, which fails: RuntimeError: InvalidCxxCompiler" in caplog.text


class Replacing(nn.Module):
    """Has buffers that its forward pass replaces, adds, counts in, and shares memory in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(64, 10)
        self.register_buffer("seen", torch.zeros(0))
        self.register_buffer("shared", torch.ones(1).expand(3))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("nothing", None)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen = torch.ones(len(self.seen) + 1)
            self.count += 1
        return self.linear(images.flatten(1))


def test_a_trial_puts_back_buffers_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: partial(function))
    module = Classifier(Replacing(), RECIPE, 10, compiles=True)
    fit(module, tmp_path)
    assert (len(module.model.seen), int(module.model.count)) == (10, 10)


@pytest.mark.slow
def test_a_resumed_training_has_the_same_bits(tmp_path: Path) -> None:
    whole = trained(tmp_path, compiles=True)
    saving = ModelCheckpoint(tmp_path, "last", enable_version_counter=False)
    fit(Classifier(network(), RECIPE, 10, teacher=network(), compiles=True), tmp_path, [saving, StopEarly()])
    resumed = Classifier(network(), RECIPE, 10, teacher=network(), compiles=True)
    fit(resumed, tmp_path, ckpt_path=tmp_path / "last.ckpt")
    assert same(whole, resumed.model)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_compiled_steps_train_as_others_do(precision: str, tmp_path: Path) -> None:
    plain, compiled, again = (trained(tmp_path, compiles, precision) for compiles in (False, True, True))
    assert same(compiled, again)
    images, labels = digits()[:]
    accuracies = [float((model.eval()(images).argmax(1) == labels).float().mean()) for model in (plain, compiled)]
    assert accuracies[1] == pytest.approx(accuracies[0], abs=0.05)
    assert accuracies[1] > 0.6


def test_compiled_steps_are_another_run_and_others_are_named_as_before_there_were_any() -> None:
    plain, compiled = (identity(settings_of(composed(f"trainer.compile={value}"))) for value in ("false", "true"))
    assert "compile" not in plain["trainer"]
    assert compiled["trainer"]["compile"]
