"""The keys of cached scores: every user's class, its arguments and its source have files of their own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmp.config import source_code
from mmp.config.objects import instantiate
from mmp.pruning.criteria import criterion
from mmp.pruning.layers.prunable import prunable_layers
from mmp.pruning.signals import Magnitude
from mmp.runs.calibration import Calibration

MODULE = """
from mmp.pruning.criteria import Criterion
from helper import scale

class One:
    name, needs = 'mine', frozenset()
    def score(self, weight, statistics):
        return scale * weight.abs()

class Two(One):
    def score(self, weight, statistics):
        return scale - weight.abs()

class Slotted(Criterion):
    __slots__ = ('factor',)
    name = 'slotted'
    def __init__(self, factor=1.0, min_density=0.0, by=None):
        object.__setattr__(self, 'factor', factor)
        object.__setattr__(self, 'min_density', min_density)
        object.__setattr__(self, 'by', by or object())
    def score(self, weight, statistics):
        return self.factor * weight.abs()

class Magnitude(One):
    name = 'magnitude'

def make():
    return Two()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_scorers.py").write_text(MODULE)
    edit_helper(tmp_path, "scale = 1\n")
    yield tmp_path
    forget()


def edit_helper(folder: Path, text: str) -> None:
    (folder / "helper.py").write_text(text)
    forget()


def forget() -> None:
    """Forget the user's modules, as a new process."""
    for name in ("my_scorers", "helper"):
        sys.modules.pop(name, None)
    source_code._read.clear()
    importlib.invalidate_caches()


@pytest.fixture
def calibration(conv_net: nn.Module, image_batches: Any, tmp_path: Path) -> Callable[[], Calibration]:
    layers = prunable_layers(conv_net)
    return lambda: Calibration(conv_net, layers, image_batches, nn.CrossEntropyLoss(), tmp_path / "cache", "key")


def test_signals_of_one_name_and_one_module_have_their_own_scores(
    folder: Path, calibration: Callable[[], Calibration]
) -> None:
    found = {}
    for address in ("my_scorers.One", "my_scorers.Two", "my_scorers.make"):
        node = {"_target_": address, "name": "mine"}
        scores, source = calibration().scores(instantiate({"_target_": address}, "signal"), node)
        assert not source["cached"]
        found[address] = scores["0.weight"]
        assert calibration().scores(instantiate({"_target_": address}, "signal"), node)[1] == {**source, "cached": True}
    assert not torch.equal(found["my_scorers.One"], found["my_scorers.Two"])
    assert torch.equal(found["my_scorers.make"], found["my_scorers.Two"])


def test_an_edit_of_a_helper_computes_the_scores_again(folder: Path, calibration: Callable[[], Calibration]) -> None:
    found = []
    for text in ("scale = 2\n", "scale = -3\n", "scale = 2\n"):
        edit_helper(folder, text)
        scores, source = calibration().scores(instantiate({"_target_": "my_scorers.Two"}, "signal"))
        found.append((scores["0.weight"], source["cached"]))
    assert [cached for _, cached in found] == [False, False, True]
    assert not torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][0], found[2][0])


def test_a_users_signal_with_the_name_of_ours_leaves_ours(folder: Path, calibration: Callable[[], Calibration]) -> None:
    edit_helper(folder, "scale = -1\n")
    theirs, _ = calibration().scores(instantiate({"_target_": "my_scorers.Magnitude"}, "signal"))
    ours, source = calibration().scores(Magnitude())
    assert not source["cached"]
    assert theirs["0.weight"].max() <= 0 <= ours["0.weight"].min()


def test_arguments_of_a_users_criterion_count(folder: Path, calibration: Callable[[], Calibration]) -> None:
    sources = []
    for arguments in ({}, {"factor": 2.0}, {"min_density": 0.1}, {"factor": 2.0, "by": "x"}, {"factor": 2.0}):
        node = {"_target_": "my_scorers.Slotted", **arguments}
        _, source = calibration().criterion_scores(instantiate(node, "criterion"), 1.0, {**node, "name": "slotted"})
        sources.append(source)
    assert [source["cached"] for source in sources] == [False, False, False, False, True]
    assert len({source["key"] for source in sources}) == 4


def test_arguments_of_our_criteria_count_if_they_change_scores(calibration: Callable[[], Calibration]) -> None:
    keys = {
        calibration().criterion_scores(scorer, temperature)[1]["key"]
        for scorer, temperature in [(criterion("mag"), 1.0), (criterion("mag"), 2.0), (criterion("lamp"), 1.0)]
    }
    assert len(keys) == 3


def test_scores_of_other_code_of_ours_are_computed_again(
    calibration: Callable[[], Calibration], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = set()
    for code in ("before", "after"):
        monkeypatch.setattr("mmp.runs.calibration.source_code", lambda code=code: code)
        keys.add(calibration().scores(Magnitude())[1]["key"])
        keys.add(calibration().criterion_scores(criterion("mag"), 1.0)[1]["key"])
    assert len(keys) == 4


def test_outputs_of_dense_layers_are_stored_once_and_only_if_they_fit(
    calibration: Callable[[], Calibration], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files() -> list[Path]:
        return list((tmp_path / "cache" / "targets").glob("*.safetensors"))

    images = calibration().images(10)
    monkeypatch.setenv("MMP_MEMORY", "1000")
    assert not calibration().targets(images, 1.0)
    monkeypatch.setenv("MMP_MEMORY", "4e9")
    assert not calibration().targets(images, 0.0001)
    assert not files(), "an empty result is not stored, since it holds for this limit only"
    stored = calibration().targets(images, 1.0)
    needed = sum(rows.nbytes for rows in stored.values())
    for memory in (8e9, 4 * needed):  # any other limit in which they fit
        monkeypatch.setenv("MMP_MEMORY", str(memory))
        again = calibration().targets(images, 1.0)
        assert again.keys() == stored.keys()
        assert all(torch.equal(again[name], rows) for name, rows in stored.items())
    monkeypatch.setenv("MMP_MEMORY", str(4 * needed - 4))
    assert not calibration().targets(images, 1.0)
    assert len(files()) == 1
    assert calibration().targets(calibration().images(9), 1.0), "fewer images are another file"
    assert len(files()) == 2
