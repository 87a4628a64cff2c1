"""Checks of the callbacks that watch a metric: its name, its direction and their patience."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, LearningRateMonitor, ProgressBar

from mmp.errors import MmpError, nearest

# The metrics that a training logs, and the mode that prefers the better value; None where neither is better.
LOGGED = {"val/accuracy": "max", "val/loss": "min", "train/loss": "min", "lr": None, "epochs": None}
LOGGED_BY_MASKS = "sparsity"
_OF_CHECKPOINTS = ("epoch", "step")  # Lightning adds these to the metrics that a checkpoint can watch


def check_monitors(callbacks: Mapping[str, pl.Callback], pruned: bool) -> None:
    """Check what the callbacks of a training watch.

    A name that the training does not log is accepted if a callback of the user's own may log it.

    Args:
        callbacks: The configured callbacks, by their keys.
        pruned: Whether the training applies masks, and so logs their sparsity.

    Raises:
        MmpError: on a metric that is not logged, a mode that prefers the worse value, or a negative patience.
    """
    open_ended = any(_may_log(callback) for callback in callbacks.values())
    for key, callback in callbacks.items():
        if not is_monitored_by(callback, pruned) and not open_ended:
            metrics = nearest(str(_monitor(callback)), _known(callback, pruned))
            raise MmpError(f"callbacks.{key}.monitor={_monitor(callback)}: the training logs no such metric; {metrics}")
        mode, better = getattr(callback, "mode", None), LOGGED.get(str(_monitor(callback)))
        if better and mode in ("min", "max") and mode != better:
            worst = f"selects the worst {_monitor(callback)}"
            raise MmpError(f"callbacks.{key}.mode={mode}: {worst}; set callbacks.{key}.mode={better}")
        patience = getattr(callback, "patience", 0)
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 0:
            raise MmpError(
                f"callbacks.{key}.patience={patience}: must be a whole number of epochs, at least 0; to train all "
                f"epochs, set callbacks.{key}=null"
            )


def is_monitored_by(callback: pl.Callback, pruned: bool) -> bool:
    """Return whether a callback watches no metric, or one that the training logs."""
    return not _monitor(callback) or _monitor(callback) in _known(callback, pruned)


def _monitor(callback: pl.Callback) -> object:
    return getattr(callback, "monitor", None)


def _known(callback: pl.Callback, pruned: bool) -> list[str]:
    of_checkpoints = _OF_CHECKPOINTS if isinstance(callback, Checkpoint) else ()
    return [*LOGGED, *([LOGGED_BY_MASKS] if pruned else []), *of_checkpoints]


def _may_log(callback: pl.Callback) -> bool:
    """Return whether the code of a callback logs metrics; if the code cannot be read, it may."""
    if isinstance(callback, LearningRateMonitor):
        return True
    if isinstance(callback, Checkpoint | EarlyStopping | ProgressBar):
        return False
    try:
        source = inspect.getsource(type(callback))
    except (OSError, TypeError):
        return True
    return any(call in source for call in (".log(", ".log_dict(", "callback_metrics["))
