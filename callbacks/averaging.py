"""Weight averaging under masks: a moving average of the weights in which pruned weights are exactly zero."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

from callbacks.selection import at_target


class AverageAtTarget(WeightAveraging):
    """Lightning's WeightAveraging as an exponential moving average that starts when the final masks are applied.

    An average that started earlier would be nonzero where weights were pruned later. Before the start, validation uses
    the trained weights. From then on, validation, checkpoints and the final model use the average.

    Args:
        decay: The decay of the average per step, in (0, 1). After n steps it is at most (1 + n) / (10 + n), so that
            the first weights do not dominate a short training (as in timm's ModelEmaV3).
    """

    def __init__(self, decay: float) -> None:
        super().__init__(avg_fn=partial(_move, decay))
        self._at_target = False

    @property
    def _started(self) -> bool:
        return self._average_model is not None and int(self._average_model.n_averaged) > 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run resumed in mid-epoch may already have its final masks; check."""
        super().on_train_start(trainer, pl_module)
        self._at_target = at_target(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check whether the masks of this epoch are the final ones; the masking callback runs before this one."""
        before, self._at_target = self._at_target, at_target(trainer)
        if self._at_target and not before:
            self._latest_update_step = trainer.global_step  # the next step is the first under the final masks

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether to update the average: after every step under the final masks."""
        return self._at_target and step_idx is not None

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Swap in the average for the validation, if it has started."""
        if self._started:
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Swap the trained weights back in."""
        if self._started:
            super().on_validation_epoch_end(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average as the model, and the trained weights separately."""
        if not self._started and self._average_model is not None:
            self._average_model.module.load_state_dict(pl_module.state_dict())
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do nothing: `on_fit_end` copies the average into the model."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the average into the model, also if a resumed training had no step left to do."""
        if self._started:
            super().on_train_end(trainer, pl_module)


def _move(decay: float, average: Tensor, current: Tensor, count: Tensor) -> Tensor:
    if not average.is_floating_point():
        return current  # indices and counters are not averaged
    n = int(count)
    return average.lerp(current, 1 - min(decay, (1 + n) / (10 + n)))
