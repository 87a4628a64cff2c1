"""Weight averaging under masks: an exponential moving average that is exactly zero wherever a weight is pruned."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

from callbacks.selection import at_target


class AverageAtTarget(WeightAveraging):
    """Lightning's average of weights and buffers, a moving one, begun when the final masks are in force.

    An average that began before would hold what has been pruned since. Until then, validation sees the weights as they
    are; from then on, validation, the checkpoint that is kept and the finished model are the average.

    Args:
        decay: What is kept of the average at every step, in (0, 1); after n steps no more than (1 + n) / (10 + n), so
            that a short training forgets what it began with (as timm's ModelEmaV3 does).
    """

    def __init__(self, decay: float) -> None:
        super().__init__(avg_fn=partial(_move, decay))
        self._at_target = False

    @property
    def _begun(self) -> bool:
        return self._average_model is not None and int(self._average_model.n_averaged) > 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look for masks that a run brought along which goes on in the middle of an epoch."""
        super().on_train_start(trainer, pl_module)
        self._at_target = at_target(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look whether this epoch's masks are the final ones; the masking callback comes first in the list."""
        self._at_target = at_target(trainer)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Average after every step under the final masks."""
        return self._at_target and step_idx is not None

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the average in place, if there is one."""
        if self._begun:
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go back to the weights that are trained."""
        if self._begun:
            super().on_validation_epoch_end(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average as the model, and what is trained beside it."""
        if not self._begun and self._average_model is not None:
            self._average_model.module.load_state_dict(pl_module.state_dict())
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave everything to `on_fit_end`."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the average as the model; of a resumed training that had nothing left to do, too."""
        if self._begun:
            super().on_train_end(trainer, pl_module)


def _move(decay: float, average: Tensor, current: Tensor, count: Tensor) -> Tensor:
    if not average.is_floating_point():
        return current  # indices and counts
    n = int(count)
    return average.lerp(current, 1 - min(decay, (1 + n) / (10 + n)))
