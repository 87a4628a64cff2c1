"""Mix-and-Match Pruning: prune a vision model ten ways from one scoring of its weights.

    import mmp

    result = mmp.prune(model, budget=0.9, images=batches)

``mmp.prune`` and ``mmp.prune_all`` do everything in one call, for any ``nn.Module`` (:mod:`mmp.method`). The other
names are the parts of it, for use on their own. A name is imported when it is first used, so ``import mmp`` is fast.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # type checkers read it as True; to import typing would take most of the time
if TYPE_CHECKING:
    from typing import Any

    from mmp.errors import MmpError
    from mmp.export.shrunk_file import load_shrunk
    from mmp.export.sparse_file import load_sparse, save_sparse
    from mmp.method import prune, prune_all
    from mmp.plan import load_ranges, load_strategies, load_strategy, make_plan
    from mmp.pruning.budgets import Budget
    from mmp.pruning.calibration_statistics import collect
    from mmp.pruning.channels.coupling import channel_groups
    from mmp.pruning.channels.group import ChannelGroup
    from mmp.pruning.channels.masks import channel_masks
    from mmp.pruning.channels.removal import Removal
    from mmp.pruning.channels.shrink import shrink
    from mmp.pruning.criteria import criterion
    from mmp.pruning.layers.layer import Layer
    from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters
    from mmp.pruning.masks import MaskEnforcer, Masks, check_zeros, load_masks, make_grid, make_masks, save_masks
    from mmp.pruning.optimal_brain_surgeon import Obs, ObsFisher
    from mmp.pruning.patterns import Pattern
    from mmp.pruning.plan import Plan, plan_model
    from mmp.pruning.ranges import Constraints, Range, RangeTable, Rule, RuleTable, Selector
    from mmp.pruning.reconstruction.joint import Tuning, reconstruct_jointly
    from mmp.pruning.reconstruction.joint_report import JointReport
    from mmp.pruning.reconstruction.layer_report import LayerReport
    from mmp.pruning.reconstruction.reconstruct import reconstruct
    from mmp.pruning.result import PruneResult
    from mmp.pruning.schedules import Cubic, OneShot, Stepwise
    from mmp.pruning.signals import Fisher, Gradient, Magnitude, Product, score
    from mmp.pruning.strategies import Strategy

__version__ = "0.2.0"

_NAMES = {
    "mmp.errors": ("MmpError",),
    "mmp.export.shrunk_file": ("load_shrunk",),
    "mmp.export.sparse_file": ("load_sparse", "save_sparse"),
    "mmp.method": ("prune", "prune_all"),
    "mmp.plan": ("load_ranges", "load_strategies", "load_strategy", "make_plan"),
    "mmp.pruning.budgets": ("Budget",),
    "mmp.pruning.calibration_statistics": ("collect",),
    "mmp.pruning.channels.coupling": ("channel_groups",),
    "mmp.pruning.channels.group": ("ChannelGroup",),
    "mmp.pruning.channels.masks": ("channel_masks",),
    "mmp.pruning.channels.removal": ("Removal",),
    "mmp.pruning.channels.shrink": ("shrink",),
    "mmp.pruning.criteria": ("criterion",),
    "mmp.pruning.layers.layer": ("Layer",),
    "mmp.pruning.layers.prunable": ("prunable_layers", "prunable_parameters"),
    "mmp.pruning.masks": (
        "MaskEnforcer", "Masks", "check_zeros", "load_masks", "make_grid", "make_masks", "save_masks",
    ),
    "mmp.pruning.optimal_brain_surgeon": ("Obs", "ObsFisher"),
    "mmp.pruning.patterns": ("Pattern",),
    "mmp.pruning.plan": ("Plan", "plan_model"),
    "mmp.pruning.ranges": ("Constraints", "Range", "RangeTable", "Rule", "RuleTable", "Selector"),
    "mmp.pruning.reconstruction.joint": ("Tuning", "reconstruct_jointly"),
    "mmp.pruning.reconstruction.joint_report": ("JointReport",),
    "mmp.pruning.reconstruction.layer_report": ("LayerReport",),
    "mmp.pruning.reconstruction.reconstruct": ("reconstruct",),
    "mmp.pruning.result": ("PruneResult",),
    "mmp.pruning.schedules": ("Cubic", "OneShot", "Stepwise"),
    "mmp.pruning.signals": ("Fisher", "Gradient", "Magnitude", "Product", "score"),
    "mmp.pruning.strategies": ("Strategy",),
}  # fmt: skip
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "Budget", "ChannelGroup", "Constraints", "Cubic", "Fisher", "Gradient", "JointReport", "Layer", "LayerReport",
    "Magnitude", "MaskEnforcer", "Masks", "MmpError", "Obs", "ObsFisher", "OneShot", "Pattern", "Plan", "Product",
    "PruneResult", "Range", "RangeTable", "Removal", "Rule", "RuleTable", "Selector", "Stepwise", "Strategy", "Tuning",
    "channel_groups", "channel_masks", "check_zeros", "collect", "criterion", "load_masks", "load_ranges",
    "load_shrunk", "load_sparse", "load_strategies", "load_strategy", "make_grid", "make_masks", "make_plan",
    "plan_model", "prunable_layers", "prunable_parameters", "prune", "prune_all", "reconstruct", "reconstruct_jointly",
    "save_masks", "save_sparse", "score", "shrink",
]  # fmt: skip


if not TYPE_CHECKING:  # which would accept every name

    def __getattr__(name: str) -> Any:
        """Import a public name when it is first used (PEP 562)."""
        if name not in _MODULES:
            from mmp.errors import nearest

            raise AttributeError(f"module 'mmp' has no attribute {name!r}; {nearest(name, _MODULES)}")
        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
