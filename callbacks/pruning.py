"""The Lightning callback that applies masks at scheduled epochs and keeps pruned weights at exactly zero."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, optim

from mmp.errors import MmpError
from mmp.pruning.layers.layer import Layer
from mmp.pruning.layers.prunable import prunable_parameters
from mmp.pruning.masks import MaskEnforcer, Masks
from mmp.pruning.patterns import UNSTRUCTURED, Pattern
from mmp.pruning.schedules import Schedule
from mmp.pruning.structure import SingleWeights, Structure, masks_at, require_weights

log = logging.getLogger(__name__)

# Optimizers whose step of a weight depends on its own gradient only, so gradients of pruned weights have no effect.
ELEMENTWISE = frozenset({optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.RMSprop, optim.Adagrad})


class MaskPruning(pl.Callback):
    """Prunes ``module.model`` while it trains.

    At the start of every epoch, the schedule gives the fraction of the final sparsity to apply. The scores are fixed,
    so later masks prune everything that earlier masks prune. Pruned weights are zeroed inside ``optimizer.step()``, so
    every checkpoint has exact zeros. Masks are saved in the Lightning checkpoint; on resume they replace the
    configured ones.

    Args:
        layers: The model's prunable layers.
        scores: One tensor per layer; the lowest-scored weights are pruned first.
        sparsities: Final sparsity per layer, a fraction.
        schedule: Fraction of the final sparsity per epoch.
        pattern: Pattern of the final masks, or the channels of the model, which are pruned as a whole
            (:class:`mmp.pruning.channels.structure.WholeChannels`). Scores and sparsities are then those of its groups.

    Raises:
        MmpError: if the channels are those of another model; at the start of a fit that ends before the schedule does,
            or if a resumed run's masks do not fit the scores.
    """

    def __init__(
        self,
        layers: tuple[Layer, ...],
        scores: Mapping[str, Tensor],
        sparsities: Mapping[str, float],
        schedule: Schedule,
        pattern: Pattern | Structure = UNSTRUCTURED,
    ) -> None:
        self._layers, self._scores, self._schedule = layers, scores, schedule
        self._structure = SingleWeights(layers, pattern) if isinstance(pattern, Pattern) else pattern
        require_weights(self._structure, layers)
        self._configured = dict(sparsities)
        self._sparsities = dict(sparsities)
        self._fraction = 0.0
        self._restored: Masks | None = None
        self._enforcer: MaskEnforcer | None = None

    @property
    def masks(self) -> Masks | None:
        """The masks that are applied now; None outside of a fit or before the first pruning epoch."""
        return self._enforcer.masks if self._enforcer else None

    @property
    def at_target(self) -> bool:
        """Whether the final masks are applied."""
        return self._fraction >= 1.0 and self.masks is not None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Attach to the optimizers, and apply the masks of a resumed run."""
        if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= self._schedule.last_epoch:
            raise MmpError(
                f"the schedule reaches its final sparsity in epoch {self._schedule.last_epoch}, but training ends "
                f"after {trainer.max_epochs} epochs; raise finetune.epochs or shorten the schedule"
            )
        self._enforcer = MaskEnforcer(prunable_parameters(pl_module.model, self._layers))  # type: ignore[arg-type]
        for optimizer in trainer.optimizers:
            self._enforcer.attach(optimizer)
        if self._restored is not None:
            if self._masks_at(self._fraction) != self._restored:
                raise MmpError("the masks of the checkpoint were made from other scores; start again with force=true")
            self._enforcer.set(self._restored, trainer.optimizers)
            self._compare_ranks(trainer, self._restored)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Apply the masks of this epoch, if the schedule changes the fraction."""
        assert self._enforcer is not None
        fraction = self._schedule.fraction(trainer.current_epoch)
        if fraction <= self._fraction:
            return
        masks = self._masks_at(fraction)
        if self._enforcer.masks is not None and not masks.contains(self._enforcer.masks):
            raise MmpError("the masks of the checkpoint do not fit these scores; resume with the run's own scores")
        self._enforcer.set(masks, trainer.optimizers)
        self._fraction = fraction
        self._compare_ranks(trainer, masks)
        log.info("epoch %d: pruned to sparsity %.4f", trainer.current_epoch, masks.sparsity)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Zero the gradients of pruned weights if they would affect others, by clipping or by a norm in the step."""
        if self._enforcer is not None and (trainer.gradient_clip_val or type(optimizer) not in ELEMENTWISE):
            self._enforcer.zero_gradients()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that pruned weights are zero, and log the sparsity of the masks."""
        if self._enforcer is not None and self._enforcer.masks is not None:
            self._enforcer.check()
            pl_module.log("sparsity", self._enforcer.masks.sparsity)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to save a model whose pruned weights are not zero."""
        if self._enforcer is not None:
            self._enforcer.check()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for the checkpoint: current masks, final sparsities, and the fraction reached."""
        masks = {} if self.masks is None else {name: mask.cpu() for name, mask in self.masks.items()}
        return {"masks": masks, "sparsities": self._sparsities, "fraction": self._fraction}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of a checkpoint, which takes precedence over the configuration."""
        self._restored = Masks(state_dict["masks"]) if state_dict["masks"] else None
        self._fraction = state_dict["fraction"]
        if state_dict["sparsities"] != self._sparsities:
            log.warning("the checkpoint was pruned to other sparsities than configured; using the checkpoint's")
        self._sparsities = state_dict["sparsities"]

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove hooks, masks and state, so that the next fit starts without them."""
        if self._enforcer is not None:
            self._enforcer.detach()
        self._enforcer = self._restored = None
        self._fraction = 0.0
        self._sparsities = dict(self._configured)

    def _masks_at(self, fraction: float) -> Masks:
        return masks_at(self._structure, self._scores, self._sparsities, fraction)

    @staticmethod
    def _compare_ranks(trainer: pl.Trainer, masks: Masks) -> None:
        if trainer.world_size == 1:
            return
        digests: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(digests, masks.digest())
        if len(set(digests)) > 1:
            raise MmpError("the ranks of this run have different masks; compute the scores once and share them")
