"""What a training step needs in memory, and the refusal of trainings that do not fit, before any of them begins."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import warm
from composing import composed
from torch import Tensor, nn

from mmp.config.schema import PruneConfig
from mmp.config.validate import validate
from mmp.errors import MmpError
from mmp.models.networks import build_bare, fill_input
from mmp.runs.job import PruneJob
from mmp.training.step_memory import StepMemory, _bytes_of_an_image, require_memory, steps_left
from mmp.training.trial import try_training

STEP = StepMemory(held=3_000_000, gradients=1_000_000, image=80_000)


def configuration(folder: Path, *overrides: str) -> PruneConfig:
    places = [f"paths.results={folder}", "trainer.accelerator=cpu"]
    config: Any = validate(composed("model=cnn", "data=digits", *overrides, *places), PruneConfig)
    fill_input(config)
    return config


def measured(folder: Path, *overrides: str) -> StepMemory:
    config = configuration(folder, *overrides)
    steps = PruneJob.of(config, folder).steps
    assert set(steps) == {"dense", "finetune"}
    assert try_training(config) == steps or config.finetune.averaging, "read from the marker, as it was measured"
    return steps["finetune"]


@pytest.mark.slow
def test_a_step_holds_weights_gradients_moments_and_activations(tmp_path: Path) -> None:
    weights = sum(4 * parameter.numel() for parameter in build_bare(configuration(tmp_path).model).parameters())
    adamw = measured(tmp_path)
    assert adamw.gradients == weights
    assert adamw.held == pytest.approx(3 * weights, rel=0.01)  # with the buffers and the counts of steps
    assert measured(tmp_path, "finetune.optimizer=sgd").held == pytest.approx(2 * weights, rel=0.01)
    assert 16 * 16 * 4 < adamw.image < 10**6
    assert measured(tmp_path, "data.image_size=32").image == pytest.approx(4 * adamw.image, rel=0.05)
    copies = measured(tmp_path, "finetune.distillation=0.5", "finetune.averaging=0.9")
    assert copies.held == pytest.approx(5 * weights, rel=0.01)
    assert copies.image == adamw.image


@pytest.mark.slow
def test_half_precision_halves_what_it_stores(tmp_path: Path) -> None:
    single, mixed, true = (
        measured(tmp_path, f"trainer.precision={name}") for name in ("32", "bf16-mixed", "bf16-true")
    )
    assert single.image / 2 <= mixed.image < 0.7 * single.image
    assert (mixed.held, mixed.gradients) == (single.held, single.gradients)
    assert true.image == pytest.approx(single.image / 2, rel=0.1)
    assert true.held == pytest.approx(single.held / 2, rel=0.1)


class Chance(nn.Module):
    """Skips each of its blocks by chance; with dropout, random numbers are drawn for every image in between."""

    def __init__(self, draw: Callable[[], float], dropout: float) -> None:
        super().__init__()
        blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Dropout(dropout)) for _ in range(8)]
        self.stem, self.blocks = nn.Conv2d(3, 8, 1), nn.ModuleList(blocks)
        self.draw = draw

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images)
        for block in self.blocks:
            if self.draw() > 0.5:
                maps = maps + block(maps)
        return maps.mean((2, 3))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("draw", [lambda: float(torch.rand(())), random.random, np.random.rand])
def test_a_model_that_skips_layers_by_chance_needs_no_more_than_without(
    draw: Callable[[], float], dropout: float
) -> None:
    trainer: Any = SimpleNamespace(precision_plugin=SimpleNamespace(forward_context=nullcontext))
    measured, image = set(), torch.zeros(1, 3, 16, 16)
    for seed in range(8):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        model = Chance(draw, dropout)
        before = torch.get_rng_state()
        measured.add(_bytes_of_an_image(trainer, model, image))
        assert torch.equal(before, torch.get_rng_state())
    assert len(measured) == 1
    assert measured.pop() <= _bytes_of_an_image(trainer, Chance(lambda: 1.0, dropout), image)


def test_the_larger_of_gradients_and_activations_counts() -> None:
    assert (STEP.needed(1), STEP.needed(100)) == (4_000_000, 11_000_000)


def test_a_batch_that_does_not_fit_is_refused_with_one_that_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(tmp_path, "data.batch_size=1000")
    monkeypatch.setenv("MMP_MEMORY", str(11_000_000))
    needs = r"needs at least 0\.083 GB \(0\.08 GB of it for 1000 images\), and 0\.011 of .* GB .*\(MMP_MEMORY\)"
    with pytest.raises(MmpError, match=rf"^data\.batch_size=1000: .* {needs}; set data\.batch_size=100 or less$"):
        require_memory(config, {"dense": STEP}, images=5000)
    require_memory(config, {"dense": STEP}, images=100)  # a batch is not larger than the data
    config.data.batch_size = 100
    require_memory(config, {"dense": STEP}, images=5000)
    config.trainer.devices = 2  # two processes on the same machine
    with pytest.raises(MmpError, match=r"\(MMP_MEMORY\), for 2 processes; set data\.batch_size=31 or less$"):
        require_memory(config, {"dense": STEP}, images=5000)


def test_a_model_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configuration(tmp_path)
    monkeypatch.setenv("MMP_MEMORY", str(3_500_000))
    needs = r"finetune\.optimizer=adamw needs at least 0\.004 GB even for one image of 16 pixels, and .*; choose"
    with pytest.raises(MmpError, match=rf"^model\.name=resnet18: a training step with {needs}"):
        require_memory(config, {"finetune": STEP}, images=5000)
    require_memory(config, steps_left({"dense": STEP}, Path(__file__)), images=5000)  # is not trained again
    with pytest.raises(MmpError):
        require_memory(config, steps_left({"dense": STEP}, tmp_path / "missing"), images=5000)


@pytest.mark.slow
def test_a_run_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    places = [f"paths.results={tmp_path}", f"paths.cache={tmp_path / 'cache'}", "trainer.accelerator=cpu"]
    limited = {**os.environ, "OMP_NUM_THREADS": "1", "MMP_MEMORY": str(32 * 2**20)}
    for script in ("prune.py", "train.py"):
        done = warm.run([script, "model=cnn", "data=digits", "data.batch_size=1000", *places], limited)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("error: data.batch_size=1000: a training step of ")
        assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.safetensors"))
