"""``mmp.prune`` and the command line give the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from composing import composed
from safetensors.torch import load_file
from sweeping import environment
from torch import nn

import mmp
from mmp.config.validate import validate
from mmp.data.module import ImageData
from mmp.models.networks import fill_input
from mmp.training.dense import dense_model

pytestmark = pytest.mark.slow

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "a strategy": ("cnn", {"signal": "product", "strategy": "p70", "budget": 0.9, "reconstruct": "least_squares"}),
    "observed ranges": (
        "vit",
        {"signal": "obs_fisher", "ranges": "observed", "pattern": "2:4", "reconstruct": "least_squares"},
    ),
    "a baseline": ("vit", {"criterion": "grasp", "budget": 0.8, "reconstruct": "none"}),
    "a baseline at the sparsity of a strategy": (
        "vit",
        {"criterion": "lamp", "strategy": "p30", "reconstruct": "least_squares"},
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The command runs with one thread, too; sums over several have other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("run", RUNS)
def test_a_call_gives_the_masks_and_the_weights_of_a_run(run: str, folder: Path) -> None:
    results = folder / run.replace(" ", "_")
    model, options = RUNS[run]
    shared = [
        f"model={model}",
        f"paths.results={results}",
        f"paths.cache={folder}/cache",
        "dense.epochs=2",
        "finetune=none",
    ]
    words = [f"{key}={value}" for key, value in options.items()]
    done = warm.run(["prune.py", *words, *shared, "logger=none"], environment())
    assert done.returncode == 0, done.stderr
    (result,) = (path.parent for path in results.glob("runs/*/result.json"))

    config = validate(composed(*shared))
    fill_input(config)
    data = ImageData(config.data, config.seed)
    dense, cached = dense_model(config, data)
    assert cached
    loss = nn.CrossEntropyLoss(label_smoothing=config.dense.label_smoothing)
    pruned = mmp.prune(dense, images=data.calibration_dataloader(), loss=loss, **options)

    assert pruned.masks == mmp.load_masks(result / "masks.safetensors")
    weights = load_file(result / "model.safetensors")
    assert weights.keys() == pruned.model.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in pruned.model.state_dict().items())
