"""The protocol: a run reads its test images exactly once, after everything is chosen and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from composing import composed

from mmp.config.validate import validate
from mmp.data.module import ImageData
from mmp.models.networks import fill_input
from mmp.runs.job import PruneJob
from mmp.runs.prune import prune
from mmp.runs.store import WEIGHTS, RunFolder, Stopwatch


class Recorded:
    """A data set that records which images are read, and whether any is read before the model is saved."""

    def __init__(self, images: Any, weights: Path) -> None:
        self.images, self.weights = images, weights
        self.read: list[int] = []
        self.early = False

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: list[int]) -> Any:
        self.read += indices
        self.early |= not self.weights.is_file()
        return self.images.__getitems__(indices)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("strategy=p70", "ranges=observed", "reconstruct=least_squares", "finetune=auto"),
        ("criterion=lamp", "budget=0.8", "finetune=strong"),
    ],
    ids=["everything that chooses", "a baseline"],
)
def test_test_images_are_read_exactly_once_after_everything_is_chosen(
    tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    shrunk = (
        "dense.epochs=1",
        "finetune.epochs=1",
        "trainer.limit_train_batches=2",
        f"paths.results={tmp_path}",
        "logger=none",
    )
    config = validate(composed(*overrides, *shrunk))
    fill_input(config)
    for attempt in ("first", "from the cache"):
        run = RunFolder(tmp_path / attempt, {"run_name": "protocol"})
        data = ImageData(config.data, config.seed)
        recorded = data._sets["test"] = Recorded(data._sets["test"], run.path / WEIGHTS)
        result = prune(PruneJob.of(config, run.path), data, run, Stopwatch())
        assert sorted(recorded.read) == list(range(360)), attempt
        assert not recorded.early, attempt
        assert result["samples"]["test"] == 360
