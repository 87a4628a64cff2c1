"""The methods of the one-shot benchmark."""

from __future__ import annotations

from mmp.config.choices import choices_of

BRIEF_STEPS = 400
SOLVED = {
    "layer-wise": ("reconstruct=least_squares",),
    "brief": ("reconstruct=joint", f"reconstruct.tuning.steps={BRIEF_STEPS}"),
    "joint": ("reconstruct=joint",),
}
LABELS = {"brief": f"joint, {BRIEF_STEPS} steps"}  # of ways to re-solve whose name is no label
STUDIED = "obs"  # the method whose accuracy against pictures and seconds the report shows


def methods() -> dict[str, tuple[str, ...]]:
    """Return the settings of each method."""
    return {
        "MAG": ("criterion=mag",),
        "LAMP": ("criterion=lamp",),
        "ERK": ("criterion=erk",),
        "obs": ("signal=obs", "allocation=lamp"),
        "searched": ("signal=obs", "allocation=searched"),
        "channels": ("signal=obs", "pattern=channels:1"),
        **{f"strategy {name}": ("signal=magnitude", f"strategy={name}") for name in choices_of("strategy")},
    }


def label_of(column: str) -> str:
    """Return how the tables call a way to re-solve, or ``masked``."""
    return LABELS.get(column, column)


def is_strategy(method: str) -> bool:
    """Return whether a method is one of the strategies."""
    return method.startswith("strategy ")
