"""Interrupted and resumed trainings end with the same bits as uninterrupted ones."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from composing import composed
from partly import partly_slow
from torch import Tensor, nn

from callbacks.averaging import AverageAtTarget
from callbacks.pruning import MaskPruning
from callbacks.requeue import saving_in_time
from mmp.config.schema import PruneConfig
from mmp.config.validate import validate
from mmp.data.loader import EpochLoader, EpochShuffle, Split
from mmp.data.module import ImageData
from mmp.models.networks import fill_input
from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters
from mmp.pruning.schedules import OneShot
from mmp.runs import slurm
from mmp.runs.store import RunFolder
from mmp.training.checkpoints import LAST, last_checkpoint, open_checkpoints
from mmp.training.classifier import Classifier
from mmp.training.recorder import Recorder
from mmp.training.trainer import RestoreSigterm, build_callbacks, build_trainer, fit

METRICS = "checkpoints/metrics.jsonl"


class StoppedError(Exception):
    """Raised in place of ending the process."""


class SignalAt(pl.Callback):
    """Sends Slurm's time-limit signal during a batch."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_zero_grad(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGUSR1)


@pytest.fixture
def config(tmp_path: Path) -> PruneConfig:
    overrides = [
        "data.batch_size=30",
        "data.validation=0.8",
        "trainer.limit_val_batches=4",
        "finetune.epochs=3",
        "logger=none",
        f"paths.results={tmp_path}",
        "data.workers=0",
    ]
    overrides += [
        "+data.augment={hflip: 0.5, scale: [0.7, 1.0]}",
        "data.image_size=12",
        "callbacks.early_stopping=null",
    ]
    config: PruneConfig = validate(composed(*overrides))
    fill_input(config)
    return config


def train(config: PruneConfig, data: ImageData, folder: Path, *extra: pl.Callback) -> dict[str, Tensor]:
    """Train a network with dropout under masks, resuming from a folder, and return the averaged weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(400, 10))
    layers = prunable_layers(model)
    scores = {name: p.detach().abs() for name, p in prunable_parameters(model, layers).items()}
    masking = MaskPruning(layers, scores, dict.fromkeys(scores, 0.5), OneShot())
    callbacks = [
        masking,
        AverageAtTarget(0.9),
        *build_callbacks(config, folder).values(),
        *extra,
        *saving_in_time(config),
    ]
    module = Classifier(model, config.finetune, 10, seed=config.seed)
    trainer = build_trainer(config, config.finetune.epochs, callbacks, [], folder / "checkpoints")
    fit(trainer, module, data, last_checkpoint(folder / "checkpoints"))
    assert trainer.current_epoch == config.finetune.epochs
    return {name: value.clone() for name, value in module.state_dict().items()}


def leave() -> None:
    raise StoppedError


@pytest.mark.slow
@pytest.mark.parametrize("workers", partly_slow([0, 2], quick=[0]))
@pytest.mark.parametrize("batches", [True, False])
@pytest.mark.parametrize("steps", partly_slow([(1,), (4,), (2, 3, 7, 9, 11)], quick=[(1,), (4,)]), ids=str)
def test_a_training_interrupted_within_an_epoch_ends_with_the_same_bits(
    config: PruneConfig,
    steps: tuple[int, ...],
    batches: bool,
    workers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config.data.augment_batches = batches
    data = ImageData(config.data, config.seed)
    assert len(data.train_dataloader()) == 4  # so steps 4 and 8 are the first of an epoch
    whole = train(config, data, tmp_path / "whole")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(slurm, "requeue", leave)
    config.data.workers = workers
    for step in steps:
        with pytest.raises(StoppedError):
            train(config, data, tmp_path / "stopped", SignalAt(step))
        assert (tmp_path / "stopped" / "checkpoints" / LAST).is_file()
    resumed = train(config, data, tmp_path / "stopped")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    reached = [
        [(epoch["epoch"], epoch["val/accuracy"]) for epoch in Recorder(tmp_path / name / METRICS).history()]
        for name in ("whole", "stopped")
    ]
    assert reached[0] == reached[1]
    assert [epoch for epoch, _ in reached[0]] == list(range(config.finetune.epochs))


class InterruptedWrite(pl.Callback):
    """Ctrl-C while a file is being written, which torch turns into another error."""

    def on_train_batch_end(self, *_: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("unexpected pos") from None


class Interrupted(pl.Callback):
    def on_train_batch_end(self, *_: object) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("callback", [InterruptedWrite, Interrupted])
def test_ctrl_c_in_a_training_raises_keyboard_interrupt(
    config: PruneConfig, callback: type[pl.Callback], tmp_path: Path
) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(config, ImageData(config.data, config.seed), tmp_path, callback())
    assert signal.getsignal(signal.SIGINT) is before


class Terminated(pl.Callback):
    """Raises SIGTERM, and records the handler that is installed in the next batch."""

    def __init__(self, early: bool) -> None:
        self.early = early

    def on_train_start(self, *_: object) -> None:
        if self.early:
            signal.raise_signal(signal.SIGTERM)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step == 1 and not self.early:
            signal.raise_signal(signal.SIGTERM)
        self.handler = signal.getsignal(signal.SIGTERM)


@pytest.mark.parametrize("early", [True, False])
def test_sigterm_in_a_training_calls_the_earlier_handler(config: PruneConfig, early: bool, tmp_path: Path) -> None:
    flag, terminated = slurm.SignalFlag(), Terminated(early)
    before = signal.signal(signal.SIGTERM, flag)
    try:
        train(config, ImageData(config.data, config.seed), tmp_path, terminated)
        assert flag.received
        assert terminated.handler is flag
        assert signal.getsignal(signal.SIGTERM) is flag
    finally:
        signal.signal(signal.SIGTERM, before)


def test_sigterm_at_the_start_of_a_training_calls_the_earlier_handler() -> None:
    flag = slurm.SignalFlag()
    before = signal.signal(signal.SIGTERM, flag)
    try:
        callback = RestoreSigterm()
        callback.on_fit_start()
        callback.on_train_start(SimpleNamespace(received_sigterm=True))  # type: ignore[arg-type]
        assert flag.received
    finally:
        signal.signal(signal.SIGTERM, before)


def test_metrics_that_are_not_finite_become_null_in_a_result(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / METRICS)
    recorder.log_metrics({"epoch": 0, "val/loss": float("nan"), "val/accuracy": 0.5}, step=3)
    recorder.log_metrics({"epoch": 0, "train/loss": float("inf")}, step=3)
    run = RunFolder(tmp_path)
    run.complete([], history=recorder.history())
    assert run.result is not None
    (epoch,) = run.result["history"]
    assert (epoch["val/accuracy"], epoch["val/loss"], epoch["train/loss"]) == (0.5, None, None)


@pytest.mark.slow
def test_an_epoch_may_be_shorter_than_the_data(
    config: PruneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.trainer.limit_train_batches = 3
    data = ImageData(config.data, config.seed)
    whole = train(config, data, tmp_path / "whole")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(slurm, "requeue", leave)
    for step in (2, 4):  # the last batch of an epoch, and one in the middle
        with pytest.raises(StoppedError):
            train(config, data, tmp_path / "stopped", SignalAt(step))
    resumed = train(config, data, tmp_path / "stopped")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["a bit of last.ckpt", "half of best.ckpt", "no best.ckpt"])
def test_a_damaged_checkpoint_is_detected_and_the_training_restarts(
    config: PruneConfig, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ImageData(config.data, config.seed)
    whole = train(config, data, tmp_path / "whole")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(slurm, "requeue", leave)
    with pytest.raises(StoppedError):
        train(config, data, tmp_path / "stopped", SignalAt(5))
    folder = tmp_path / "stopped" / "checkpoints"
    last, best = folder / LAST, folder / "best.ckpt"
    assert last_checkpoint(folder) == last
    if damage == "a bit of last.ckpt":
        content = bytearray(last.read_bytes())
        content[len(content) // 2] ^= 16
        last.write_bytes(content)
    elif damage == "half of best.ckpt":
        best.write_bytes(best.read_bytes()[: best.stat().st_size // 2])
    else:
        best.unlink()
    assert last_checkpoint(folder) is None
    assert not list(folder.glob("*.ckpt"))
    resumed = train(config, data, tmp_path / "stopped")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_signal_in_the_last_batch_waits_for_validation_and_checkpoint(
    config: PruneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ImageData(config.data, config.seed)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(slurm, "requeue", leave)
    with pytest.raises(StoppedError):
        train(config, data, tmp_path, SignalAt(3))
    checkpoint = torch.load(tmp_path / "checkpoints" / LAST, weights_only=True)
    assert (checkpoint["global_step"], checkpoint["epoch"]) == (4, 0)
    assert (tmp_path / "checkpoints" / "best.ckpt").is_file()


def test_a_loader_resumes_from_its_state(config: PruneConfig) -> None:
    images = Split(torch.arange(10), range(10))

    def batches(loader: EpochLoader) -> list[list[int]]:
        return [batch.tolist() for batch in loader]

    def loader() -> EpochLoader:
        return EpochLoader(images, 3, EpochShuffle(10, seed=1))

    whole, stopped, resumed = loader(), loader(), loader()
    expected = batches(whole)
    running = iter(stopped)
    assert [next(running).tolist(), next(running).tolist()] == expected[:2]
    resumed.load_state_dict(stopped.state_dict())
    assert batches(resumed) == expected[2:]
    assert batches(resumed) == expected  # the state applies only once
    next(running)
    resumed.load_state_dict(stopped.state_dict())  # the epoch is finished
    whole.sampler.set_epoch(1)  # type: ignore[attr-defined]
    assert batches(resumed) == batches(whole)


def test_ranks_divide_an_epoch_without_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        shares.append(list(EpochShuffle(10, seed=0, ranks=3)))
    assert [len(share) for share in shares] == [3, 3, 3]
    assert len({image for share in shares for image in share}) == 9


def test_random_augmentation_depends_on_seed_epoch_and_image_only() -> None:
    class Noisy:
        def __getitem__(self, index: int) -> float:
            return index + float(torch.rand(()))

    def draws(seed: int, *indices: int) -> list[float]:
        return Split(Noisy(), range(4), seed).__getitems__(list(indices))

    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert draws(0, 1, 2) == draws(0, 2, 1)[::-1]
    assert torch.equal(torch.get_rng_state(), before)
    assert len({value % 1 for seed in range(2) for value in draws(seed, 1, 2, 5)}) == 6


def test_checkpoints_of_another_training_are_removed(tmp_path: Path) -> None:
    open_checkpoints(tmp_path / "c", {"identity": "a"})
    (tmp_path / "c" / LAST).write_bytes(b"x")
    open_checkpoints(tmp_path / "c", {"identity": "a"})
    assert (tmp_path / "c" / LAST).is_file()
    open_checkpoints(tmp_path / "c", {"identity": "b"})
    assert not (tmp_path / "c" / LAST).exists()
    (tmp_path / "c" / "owner.json").write_text('{"ident')
    (tmp_path / "c" / LAST).write_bytes(b"x")
    open_checkpoints(tmp_path / "c", {"identity": "b"})
    assert not (tmp_path / "c" / LAST).exists()
