"""The examples in docstrings: they run, and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from types import ModuleType

import pytest
import torch

import mmp.pruning
from mmp.pruning.calibration_statistics import collect
from mmp.pruning.layers.prunable import prunable_layers
from mmp.pruning.masks import MaskEnforcer, make_grid, make_masks
from mmp.pruning.patterns import Pattern
from mmp.pruning.plan import plan_model
from mmp.pruning.reconstruction.reconstruct import reconstruct
from mmp.pruning.signals import score

MODULES = [importlib.import_module(found.name) for found in pkgutil.walk_packages(mmp.pruning.__path__, "mmp.pruning.")]
EXAMPLES = [
    (module, test) for module in MODULES for test in doctest.DocTestFinder().find(module) if test.examples
]  # fmt: skip


@pytest.mark.parametrize(("module", "test"), EXAMPLES, ids=[test.name for _, test in EXAMPLES])
def test_an_example_prints_the_output_beside_it(module: ModuleType, test: doctest.DocTest) -> None:
    torch.manual_seed(0)
    printed: list[str] = []
    doctest.DocTestRunner().run(test, out=printed.append)
    assert not printed, "".join(printed)


@pytest.mark.parametrize(
    "thing",
    [prunable_layers, plan_model, collect, score, make_masks, make_grid, MaskEnforcer, reconstruct, Pattern.parse],
    ids=lambda thing: thing.__qualname__,
)
def test_the_most_used_functions_have_an_example(thing: object) -> None:
    assert ">>> " in (thing.__doc__ or "")
