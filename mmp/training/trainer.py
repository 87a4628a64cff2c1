"""The Lightning trainer of a run, its callbacks, and one training with it."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from mmp.config.objects import instantiate
from mmp.config.schema import PruneConfig, TrainConfig
from mmp.data.module import ImageData
from mmp.errors import MmpError
from mmp.training.checkpoints import AtomicCheckpoints, loader_state
from mmp.training.classifier import check_recipe
from mmp.training.recorder import Recorder

log = logging.getLogger(__name__)


def build_callbacks(config: TrainConfig, folder: Path) -> dict[str, pl.Callback]:
    """Return the configured callbacks that are not null; checkpoints go below ``folder`` unless told otherwise."""
    built: dict[str, pl.Callback] = {}
    for key, node in config.callbacks.items():
        if not node or (key == "progress" and not shows_progress(config)):
            continue
        built[key] = instantiate(node, f"callbacks.{key}")
        if isinstance(built[key], ModelCheckpoint) and "dirpath" not in node:
            built[key] = instantiate({**node, "dirpath": str(folder / "checkpoints")}, f"callbacks.{key}")
    return built


def check_config(config: TrainConfig, folder: Path) -> None:
    """Build every part that a configuration names and discard it, to find mistakes before anything is trained.

    Raises:
        MmpError: on the first part that cannot be built.
    """
    for key, node in config.logger.items():
        writes_events = node and str(node.get("_target_")).endswith("TensorBoardLogger")
        if writes_events and not (find_spec("tensorboard") or find_spec("tensorboardX")):
            raise MmpError(
                f"logger.{key} needs a package that is not installed: pip install tensorboard, or leave that logger "
                f"out: logger=csv, or logger.{key}=null"
            )
    check_recipe(config.dense)
    if isinstance(config, PruneConfig):
        check_recipe(config.finetune)
    build_trainer(config, 1, list(build_callbacks(config, folder).values()), [], folder)


def fit(trainer: pl.Trainer, module: pl.LightningModule, data: ImageData, checkpoint: Path | None = None) -> None:
    """Train on a data set's training split, validated on its own; from a checkpoint if there is one.

    Raises:
        MmpError: if Lightning refuses the trainer's settings for these data.
        KeyboardInterrupt: on Ctrl-C.
    """
    batches = data.train_dataloader(trainer.world_size)
    limit = trainer.limit_train_batches
    batches.most = min(len(batches), limit if isinstance(limit, int) else int(limit * len(batches)))
    if checkpoint:  # Lightning does so too late, where the learning rate depends on the number of batches
        state = loader_state(checkpoint)
        batches.load_state_dict(state)
        log.info("going on from %s: epoch %d, batch %d", checkpoint, state["epoch"], state["batches"])
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(
            module,
            train_dataloaders=batches,
            val_dataloaders=data.val_dataloader(),
            ckpt_path=checkpoint and str(checkpoint),
            weights_only=True,
        )
    except MisconfigurationException as error:
        raise MmpError(f"trainer: Lightning refuses to train ({' '.join(str(error).split())})") from error
    except (Exception, SystemExit) as error:
        # Lightning makes an exit of Ctrl-C, torch an error if it was writing a file; a sweep would go on after either.
        if pressed := _interrupt_behind(error):
            signal.signal(signal.SIGINT, interrupt)  # Lightning has made it deaf
            raise pressed from None
        raise
    recorder_of(trainer).replay()


class RestoreSigterm(pl.Callback):
    """Has SIGTERM do in a training, on one device, what it does before it: end the process, unless somebody listens.

    Lightning would wait for the end of the batch and make an exit of it, with code 0, after which a sweep goes on.
    """

    def on_fit_start(self, *_: Any) -> None:
        """Remember who listens; Lightning's handler comes after this."""
        self._before = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Put the handler back, and pass on what came meanwhile."""
        if self._before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)
            if trainer.received_sigterm:
                signal.raise_signal(signal.SIGTERM)


def _interrupt_behind(error: BaseException) -> KeyboardInterrupt | None:
    """Return the Ctrl-C that an exception came from, if it did."""
    behind: BaseException | None = error
    while behind is not None and not isinstance(behind, KeyboardInterrupt):
        behind = behind.__context__
    return behind


def recorder_of(trainer: pl.Trainer) -> Recorder:
    """Return what has kept the metrics of a trainer that `build_trainer` has made."""
    return next(logger for logger in trainer.loggers if isinstance(logger, Recorder))


def shows_progress(config: TrainConfig) -> bool:
    """Return whether a job draws progress bars: as configured, else where a terminal is attached.

    Not where a sweep has a live display, which draws for all of its jobs.
    """
    configured = config.trainer.enable_progress_bar
    return sys.stderr.isatty() if configured is None else configured


def build_trainer(
    config: TrainConfig,
    epochs: int,
    callbacks: Sequence[pl.Callback],
    loggers: Sequence[Logger],
    folder: Path,
) -> pl.Trainer:
    """Return a Lightning trainer that keeps everything below ``folder``.

    Several devices train in processes of their own, which end with the training: this one has the models, the masks
    and the results, and measures on one device. Every rank validates on all images, so all of them see one number.
    """
    options = {name: value for name, value in vars(config.trainer).items() if value is not None}
    options["enable_progress_bar"] = shows_progress(config)
    metrics = folder / "metrics.jsonl"
    alone = config.trainer.devices == 1
    heard = [*loggers, Recorder(metrics)] if alone else [Recorder(metrics, loggers)]
    first = [RestoreSigterm()] if alone else []
    try:
        return pl.Trainer(
            **options,
            strategy="auto" if alone else "ddp_spawn",
            use_distributed_sampler=False,
            plugins=[AtomicCheckpoints(), LightningEnvironment()],
            max_epochs=epochs,
            callbacks=[*first, *callbacks],
            logger=heard,
            default_root_dir=str(folder),
            enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise MmpError(f"trainer: Lightning refuses {options} ({error})") from error
