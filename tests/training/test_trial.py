"""The trial step: settings with which no training can work are refused at once, with a value that works."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from composing import composed
from partly import partly_slow
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from torch import nn

import mmp.training.trial
from mmp.config.schema import PruneConfig, TrainConfig
from mmp.config.validate import validate
from mmp.errors import MmpError
from mmp.models.networks import fill_input
from mmp.runs.job import PruneJob
from mmp.training.finetune import reestimate_norms
from mmp.training.monitors import check_monitors
from mmp.training.trainer import check_config
from mmp.training.trial import try_training


def configuration(folder: Path, *overrides: str, name: str = "prune") -> Any:
    schema = PruneConfig if name == "prune" else TrainConfig
    config = validate(composed(*overrides, f"paths.results={folder}", "trainer.accelerator=cpu", name=name), schema)
    fill_input(config)
    return config


def refusal(folder: Path, *overrides: str) -> str:
    with pytest.raises(MmpError) as error:
        PruneJob.of(configuration(folder, *overrides), folder)
    assert "\n" not in str(error.value)
    return str(error.value)


TIMM = ("model=timm", "data.image_size=64")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["finetune.optimizer=adahessian"], ["finetune.optimizer=adahessian", "finetune.optimizer=adamw works"]),
        pytest.param(
            ["dense.optimizer=fusedsgd"],
            ["dense.optimizer=fusedsgd", "CUDA", "dense.optimizer=adamw works"],
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="its reason is the missing GPU"),
        ),
        (["dense.optimizer=bnbadam"], ["dense.optimizer=bnbadam", "dense.optimizer=adamw works"]),
        (["trainer.precision=bf17"], ["trainer.precision=bf17", "bf16-mixed", "trainer.precision=32-true works"]),
        (["trainer.precision=transformer-engine"], ["trainer.precision=transformer-engine", "32-true works"]),
        (["+callbacks.best.every_n_epochs=-1"], ["callbacks.best", "every_n_epochs"]),
        (["callbacks.early_stopping.mode=upward"], ["callbacks.early_stopping", "upward"]),
        (
            ["+callbacks.more._target_=builtins.dict"],
            ["callbacks.more._target_=builtins.dict", "no Lightning callback"],
        ),
        (["signal._target_=builtins.dict"], ["signal._target_=builtins.dict", "is no signal"]),
        (["schedule._target_=builtins.dict"], ["schedule", "builtins.dict"]),
        (["model=timm", "model.name=convnext_atto"], ["data.image_size=16", "convnext_atto", "data.image_size=32"]),
        (["model=vit", "data.image_size=3"], ["data.image_size=3", "set data.image_size=8"]),
        ([*TIMM, "model.name=resnet10t", "+model.kwargs.global_pool=''"], ["model.kwargs.global_pool", "leave it out"]),
        (["+model.kwargs.drop_rate=-1"], ["model.kwargs.drop_rate=-1", "between 0 and 1"]),
        (["data.image_size=1000000000"], ["data.image_size=1000000000", "GB"]),
        (["data.classes=1000000000", "model.num_classes=1000000000"], ["1000000000 classes", "GB"]),
        (["model=levit", "data.image_size=32", "data.batch_size=1"], ["data.batch_size=1", "data.batch_size=2 works"]),
        (["trainer.devices=100000"], ["trainer.devices=100000", "cores", "trainer.devices=1"]),
    ],
)
def test_what_cannot_train_is_refused_with_its_key_and_a_way_out(
    overrides: list[str], parts: list[str], tmp_path: Path
) -> None:
    found = refusal(tmp_path, *overrides)
    for part in parts:
        assert part in found
    assert not list(tmp_path.rglob("*.json")), "a trial that fails leaves no marker"


TRAINABLE = [
    ["trainer.precision=bf16-true", "finetune=strong"],
    ["trainer.precision=64-true", "finetune.optimizer=lion"],
    ["finetune=strong", "finetune.layer_decay=0.7", "trainer.gradient_clip_val=1.0"],
    ["finetune.scheduler=multistep", "dense.scheduler=tanh", "trainer.accumulate_grad_batches=8"],
    ["callbacks.early_stopping.patience=0", "callbacks.best.monitor=val/loss", "callbacks.best.mode=min"],
    ["callbacks.early_stopping.monitor=train/loss", "callbacks.early_stopping.mode=min", "finetune=auto"],
    ["data.batch_size=1", "schedule=cubic"],
]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", partly_slow(TRAINABLE, quick=TRAINABLE[:2]))
def test_what_can_train_passes(overrides: list[str], tmp_path: Path) -> None:
    PruneJob.of(configuration(tmp_path, *overrides), tmp_path)


@pytest.mark.slow
def test_a_trial_runs_once_for_the_jobs_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    monkeypatch.setattr(mmp.training.trial, "_try", lambda *_: runs.append(1) or {})
    for line in (
        ["strategy=p30"],
        ["strategy=p70", "signal=product", "seed=3"],
        ["finetune.epochs=4"],
        ["finetune=none"],
    ):
        PruneJob.of(configuration(tmp_path, *line), tmp_path)
    assert len(runs) == 3, "another strategy, signal or seed needs no other trial; another recipe does"


@pytest.mark.slow
def test_a_trial_leaves_all_random_numbers_and_nothing_else(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    try_training(configuration(tmp_path / "results"))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (str(np.random.get_state()), random.getstate())  # noqa: NPY002
    assert torch.get_default_dtype() == torch.float32
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"cache"}


@pytest.mark.slow
def test_a_dense_training_is_tried_with_its_callbacks(tmp_path: Path) -> None:
    node = "{_target_: pytorch_lightning.callbacks.ModelCheckpoint, monitor: %s, mode: min}"
    config = configuration(tmp_path, f"+callbacks.best={node % 'sparsity'}", name="train")
    with pytest.raises(MmpError, match=r"callbacks.best.monitor=sparsity: .* train/loss"):
        check_config(config, tmp_path)
    config = configuration(tmp_path, f"+callbacks.best={node % 'val/loss'}", name="train")
    check_config(config, tmp_path)
    try_training(config)


class Logs(pl.Callback):
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.log("own/metric", 1.0)


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ({"e": EarlyStopping("val/acc", mode="max")}, r"callbacks.e.monitor=val/acc: .*'val/accuracy'"),
        ({"e": EarlyStopping("val_loss")}, r"callbacks.e.monitor=val_loss: .*'val/loss'"),
        ({"e": EarlyStopping("epoch")}, r"callbacks.e.monitor=epoch"),
        ({"b": ModelCheckpoint(monitor="accuracy", mode="max")}, r"callbacks.b.monitor=accuracy"),
        ({"b": ModelCheckpoint(monitor="val/accuracy")}, r"callbacks.b.mode=min: .*set callbacks.b.mode=max"),
        ({"e": EarlyStopping("val/loss", mode="max")}, r"callbacks.e.mode=max: .*set callbacks.e.mode=min"),
        ({"e": EarlyStopping("train/loss", patience=-1)}, r"callbacks.e.patience=-1: .*callbacks.e=null"),
        ({"e": EarlyStopping("train/loss", patience=2.5)}, r"callbacks.e.patience=2.5"),  # type: ignore[arg-type]
        ({"e": EarlyStopping("own/metric"), "o": Logs()}, None),
        ({"e": EarlyStopping("lr-AdamW"), "o": LearningRateMonitor()}, None),
        ({"b": ModelCheckpoint(monitor="epoch", mode="max"), "e": EarlyStopping("sparsity", mode="max")}, None),
        ({"e": EarlyStopping("val/loss", patience=0), "b": ModelCheckpoint()}, None),
    ],
)
def test_callbacks_watch_a_metric_that_is_logged_in_its_better_direction(callbacks: Any, message: str | None) -> None:
    if message is None:
        check_monitors(callbacks, pruned=True)
        return
    with pytest.raises(MmpError, match=message):
        check_monitors(callbacks, pruned=True)


class _Calibration:
    """Calibration images in batches, as ``ImageData`` returns them."""

    def __init__(self, images: torch.Tensor, batch_size: int) -> None:
        self.images = images
        self.cfg = type("Config", (), {"batch_size": batch_size})

    def calibration_dataloader(self) -> list[tuple[torch.Tensor, None]]:
        return [(batch, None) for batch in self.images.split(self.cfg.batch_size)]


@pytest.mark.parametrize(("count", "batch_size", "sizes"), [(9, 4, [4, 5]), (3, 1, [3]), (8, 4, [4, 4]), (2, 5, [2])])
def test_batch_norms_are_estimated_without_a_batch_of_one_image(count: int, batch_size: int, sizes: list[int]) -> None:
    images = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    model = nn.BatchNorm1d(3)
    reestimate_norms(model, _Calibration(images, batch_size), torch.device("cpu"))  # type: ignore[arg-type]
    means = torch.stack([batch.mean(0) for batch in images.split(sizes)])
    torch.testing.assert_close(model.running_mean, means.mean(0))
