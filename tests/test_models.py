"""Models: building, loading, learning-rate schedules, and an accuracy that counts every sample once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mmp.config import ModelConfig, RecipeConfig
from mmp.errors import MmpError
from mmp.models import Classifier, accuracy, build_model, load_weights

TINY = {"layers": [1, 1, 1, 1], "channels": [4, 4, 4, 4], "stem_width": 4}


def model_config(**changes: Any) -> ModelConfig:
    return ModelConfig(**{"name": "resnet18", "num_classes": 3, "in_chans": 1, "kwargs": TINY, **changes})


def test_a_model_is_built_by_its_timm_name() -> None:
    model = build_model(model_config())
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 3)


def test_unknown_names_and_arguments_are_told() -> None:
    with pytest.raises(MmpError, match=r"resnet19.*'resnet18'"):
        build_model(model_config(name="resnet19"))
    with pytest.raises(MmpError, match=r"resnet18.*laers"):
        build_model(model_config(kwargs={"laers": [1]}))


@pytest.mark.parametrize("kind", ["safetensors", "state_dict", "lightning"])
def test_weights_come_from_any_kind_of_checkpoint(kind: str, tmp_path: Path) -> None:
    source, target = build_model(model_config()), build_model(model_config())
    state = source.state_dict()
    path = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'ckpt'}"
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "state_dict":
        torch.save(state, path)
    else:
        torch.save({"state_dict": {f"model.{name}": value for name, value in state.items()}, "epoch": 3}, path)
    load_weights(target, path)
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in state.items())


def test_a_checkpoint_of_another_architecture_names_what_differs(tmp_path: Path) -> None:
    state = build_model(model_config(num_classes=5)).state_dict()
    state["extra"] = torch.zeros(1)
    del state["conv1.weight"]
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(MmpError, match=r"missing conv1\.weight; unexpected extra; fc\.weight is \(5, 4\) instead of"):
        load_weights(build_model(model_config()), tmp_path / "other.safetensors")


class Fixed(nn.Module):
    """Predicts the class that its input names."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(x[:, 0].long(), 3).float()


def test_accuracy_counts_every_sample_once_with_a_partial_last_batch() -> None:
    said = torch.tensor([[0.0], [1.0], [2.0], [0.0], [1.0]])
    truth = torch.tensor([0, 1, 0, 1, 1])
    loader = DataLoader(TensorDataset(said, truth), batch_size=2)
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


def test_a_rate_without_schedule_stays() -> None:
    assert fit(RecipeConfig(name="r", epochs=3, learning_rate=0.1, scheduler="none"), 3) == [0.1] * 3


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    recipe = RecipeConfig(name="r", epochs=3, learning_rate=1e38, optimizer="sgd", scheduler="none")
    with pytest.raises(MmpError, match=r"training loss became .* lower the learning rate"):
        fit(recipe, 3)


@pytest.mark.parametrize(("key", "near"), [("optimizer", "'adam'"), ("scheduler", "'cosine'")])
def test_unknown_recipes_are_told(key: str, near: str) -> None:
    recipe = RecipeConfig(name="r", epochs=1, learning_rate=0.1, **{key: "adamm" if key == "optimizer" else "cosin"})
    with pytest.raises(MmpError, match=near):
        Classifier(nn.Linear(1, 1), recipe, 3)
