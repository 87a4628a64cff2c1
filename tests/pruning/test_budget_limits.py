"""A budget out of reach: the message lists the rules that limit it, the strictest first."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import mmp

SMALL = "the rule for small layers (ranges.constraints.small_below=0 turns it off)"


def net(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, width, 3), nn.Flatten(), nn.Linear(16 * width, 10)
    )


def ranges(**constraints: Any) -> mmp.RangeTable:
    table = mmp.RuleTable("mine", (), mmp.Range(0.2, 0.8))
    return mmp.RangeTable("mine", table, constraints=mmp.Constraints(**constraints))


LIMITS: dict[str, tuple[int, dict[str, Any], str]] = {
    "small layers only": (8, {"budget": 0.9}, f"{SMALL} keeps 4,226 weights of 3 layers"),
    "small layers that lose too many": (8, {"budget": 0.001}, f"{SMALL} prunes 222 weights of 3 layers"),
    "small layers and the ceiling": (
        64,
        {"budget": 0.98},
        f"{SMALL} keeps 821 weights of 1 layer, the ceiling of 98 % keeps 573 weights of 2 layers",
    ),
    "a ceiling of the user's own": (
        64,
        {"budget": 0.97, "ranges": ranges(ceiling=0.9)},
        f"the ceiling of 90 % (ranges.constraints.ceiling) keeps 2,867 weights of 2 layers, {SMALL} keeps 821 weights",
    ),
    "the ceiling alone": (
        64,
        {"budget": 0.985, "ranges": ranges(small_below=0)},
        "0.9800; the ceiling of 98 % keeps 591 weights of 3 layers",
    ),
    "a pattern": (
        64,
        {"budget": 0.3, "pattern": "2:4"},
        f"pattern=2:4 prunes 14,336 weights of 2 layers, {SMALL} prunes 43 weights of 1 layer",
    ),
    "a size": (
        64,
        {"budget": mmp.Budget(megabytes=0.001)},
        f"masks and tensors other than weights 0.004 MB); {SMALL} keeps 821 weights of 1 layer",
    ),
    "a pattern under a criterion": (
        64,
        {"budget": 0.3, "pattern": "2:4", "criterion": "mag"},
        "pattern=2:4 prunes 14,336 weights of 3 layers",
    ),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_the_rules_that_limit_a_budget_are_named(limit: str) -> None:
    width, arguments, end = LIMITS[limit]
    with pytest.raises(mmp.MmpError, match="out of reach") as raised:
        mmp.prune(net(width), **arguments)
    assert end in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_named_setting_brings_the_budget_into_reach() -> None:
    assert mmp.prune(net(8), 0.9, ranges=ranges(small_below=0)).sparsity == pytest.approx(0.9, abs=1e-3)
