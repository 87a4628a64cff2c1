"""The library alone: with torch, numpy and safetensors, and without the frameworks around it."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

import pytest

pytestmark = pytest.mark.slow

ABSENT = (
    "hydra", "omegaconf", "pytorch_lightning", "lightning", "wandb", "timm", "torchvision", "torchmetrics", "sklearn",
    "rich", "filelock", "matplotlib", "plotly", "joblib", "submitit", "yaml", "optuna", "scipy",
)  # fmt: skip

WITHOUT = dedent(
    """
    import sys
    from importlib.machinery import PathFinder


    class Without(PathFinder):
        @classmethod
        def find_spec(cls, name, path=None, target=None):
            return None if name.partition(".")[0] in ABSENT else super().find_spec(name, path, target)


    sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
    for name in ABSENT:
        try:
            __import__(name)
        except ModuleNotFoundError:
            continue
        raise AssertionError(f"{name} can be imported")
    """
)

IMPORTS = dedent(
    """
    import importlib
    import pkgutil

    import mmp.pruning

    for found in pkgutil.walk_packages(mmp.pruning.__path__, "mmp.pruning."):
        importlib.import_module(found.name)
        print(found.name)
    """
)

PRUNING = dedent(
    """
    import torch
    from torch import nn

    from mmp.pruning.budgets import Budget
    from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters
    from mmp.pruning.masks import MaskEnforcer, check_zeros, make_masks
    from mmp.pruning.plan import plan_model
    from mmp.pruning.ranges import Constraints, Range, RangeTable, Rule, RuleTable, Selector
    from mmp.pruning.reconstruction.reconstruct import reconstruct
    from mmp.pruning.signals import Magnitude, score
    from mmp.pruning.strategies import Strategy

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * 16, 10),
    )
    rules = RuleTable("mine", (Rule(Selector(role=("stem",)), Range(0.0, 0.3)),), default=Range(0.4, 0.8))
    table = RangeTable("mine", rules, constraints=Constraints(small_below=0))
    plan = plan_model(model, table, [Strategy("balanced", position=0.5)], Budget(sparsity=0.6))
    print(plan)

    layers = prunable_layers(model)
    parameters = prunable_parameters(model, layers)
    masks = make_masks(score(Magnitude(), parameters, {}), plan.sparsities["balanced"])
    assert sum(masks.pruned.values()) == plan.pruned["balanced"] == round(0.6 * masks.total)

    reports = reconstruct(model, masks, list(torch.rand(96, 3, 8, 8).split(32)))
    assert [report.status for report in reports] == ["solved"] * 3

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    enforcer = MaskEnforcer(parameters)
    enforcer.set(masks, [optimizer])
    enforcer.attach(optimizer)
    model(torch.rand(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    check_zeros(model.state_dict(), masks)
    """
)


def run_alone(code: str) -> str:
    """Run code in an interpreter that cannot import the frameworks, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", f"ABSENT = {ABSENT}\n{WITHOUT}\n{code}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_of_the_library_is_imported_alone() -> None:
    names = run_alone(IMPORTS).split()
    assert {"mmp.pruning.plan", "mmp.pruning.search", "mmp.pruning.reconstruction.reconstruct"} <= set(names)


def test_a_model_is_planned_pruned_and_reconstructed_alone() -> None:
    printed = run_alone(PRUNING)
    assert "prunable in 3 layers; ranges mine, budget 60 %" in printed
    assert "balanced" in printed
