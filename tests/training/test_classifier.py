"""The classifier: its learning-rate schedules, its loss, and an accuracy that counts every sample once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mmp.config.schema import RecipeConfig
from mmp.errors import MmpError
from mmp.training import trainer as training
from mmp.training.classifier import Classifier
from mmp.training.evaluation import accuracy


class Fixed(nn.Module):
    """Predicts the class that is its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(x[:, 0].long(), 3).float()


def test_accuracy_counts_every_sample_once_with_a_partial_last_batch() -> None:
    predicted = torch.tensor([[0.0], [1.0], [2.0], [0.0], [1.0]])
    truth = torch.tensor([0, 1, 0, 1, 1])
    loader = DataLoader(TensorDataset(predicted, truth), batch_size=2)
    model = Fixed().train()
    found, samples = accuracy({"a": model, "b": model}, loader, 3, torch.device("cpu"))
    assert samples == 5
    assert found == {"a": pytest.approx(3 / 5), "b": pytest.approx(3 / 5)}
    assert model.training


def fit(recipe: RecipeConfig, epochs: int) -> list[float]:
    """Train a linear map and return the learning rate of every epoch."""
    rates: list[float] = []

    class Rates(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    torch.manual_seed(0)
    data = DataLoader(TensorDataset(torch.randn(8, 4), torch.arange(8) % 3), batch_size=4)
    trainer = pl.Trainer(
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        accelerator="cpu",
        callbacks=[Rates()],
    )
    trainer.fit(Classifier(nn.Linear(4, 3), recipe, 3), data, data)
    return rates


def test_the_rate_follows_warm_up_and_cosine() -> None:
    recipe = RecipeConfig(name="r", epochs=4, learning_rate=1.0, warmup_epochs=2, scheduler="cosine")
    # Two epochs from 1/100 upwards, then the cosine over the other two: (1 + cos 0) / 2 and (1 + cos(pi / 2)) / 2.
    assert fit(recipe, 4) == pytest.approx([0.01, 0.505, 1.0, 0.5], abs=1e-6)


def test_without_a_schedule_the_rate_is_constant() -> None:
    assert fit(RecipeConfig(name="r", epochs=3, learning_rate=0.1, scheduler="none"), 3) == [0.1] * 3


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    recipe = RecipeConfig(name="r", epochs=3, learning_rate=1e38, optimizer="sgd", scheduler="none")
    with pytest.raises(MmpError, match=r"training loss became .* lower the learning rate"):
        fit(recipe, 3)


@pytest.mark.parametrize(("key", "near"), [("optimizer", "'adam'"), ("scheduler", "'cosine'")])
def test_unknown_optimizers_and_schedulers_are_explained(key: str, near: str) -> None:
    recipe = RecipeConfig(name="r", epochs=1, learning_rate=0.1, **{key: "adamm" if key == "optimizer" else "cosin"})
    with pytest.raises(MmpError, match=near):
        Classifier(nn.Linear(1, 1), recipe, 3)


class Caching(nn.Module):
    """Keeps a result computed from its weight in eval mode until train() is called, as LeViT does with its biases."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.cache = nn.Parameter(torch.zeros(3)), None

    def train(self, mode: bool = True) -> nn.Module:
        if mode:
            self.cache = None
        return super().train(mode)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.cache is None or self.training:
            self.cache = 2 * self.weight
        return self.cache.expand(len(images), 3)


def test_accuracy_uses_the_current_weights() -> None:
    model = Caching()
    batches = [(torch.zeros(4, 1), torch.full((4,), 2))]
    assert accuracy({"m": model}, batches, 3, torch.device("cpu"))[0]["m"] == 0.0
    model.eval()
    model(batches[0][0])
    with torch.no_grad():
        model.weight[2] = 1.0
    assert accuracy({"m": model}, batches, 3, torch.device("cpu"))[0]["m"] == 1.0
    assert not model.training


def test_validation_uses_the_current_weights(tmp_path: Path) -> None:
    model = Caching()
    data = DataLoader(TensorDataset(torch.zeros(4, 1), torch.full((4,), 2)), batch_size=4)
    module = Classifier(model, RecipeConfig(name="x", epochs=2, optimizer="sgd", learning_rate=9.0), 3)
    seen = []

    class Watch(pl.Callback):
        def on_validation_end(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
            seen.append(float(trainer.callback_metrics["val/accuracy"]))

    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_epochs=2, callbacks=[Watch()], default_root_dir=tmp_path, **options)  # type: ignore[arg-type]
    trainer.fit(module, data, data)  # in the sanity check all logits are zero, which predicts class 0
    assert seen == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(("processes", "kind"), [(1, "meta"), (2, "cpu")])
def test_the_device_of_a_single_process_prepares_its_batches(
    processes: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    data = SimpleNamespace(
        train_dataloader=lambda ranks, device: asked.extend((ranks, device)) or DataLoader([1, 2, 3]),
        val_dataloader=asked.append,
    )
    trainer = SimpleNamespace(
        world_size=processes, strategy=SimpleNamespace(root_device=torch.device("meta")), limit_train_batches=1.0,
        fit=lambda *_, **__: None,
    )  # fmt: skip
    monkeypatch.setattr(training, "recorder_of", lambda _: SimpleNamespace(replay=lambda: None))
    training.fit(trainer, nn.Linear(1, 1), data)
    assert asked == [processes, torch.device(kind), torch.device(kind)]
