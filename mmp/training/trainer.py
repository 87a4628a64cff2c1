"""The Lightning trainer of a run, its callbacks, and one training with them."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from mmp.config.objects import instantiate
from mmp.config.schema import PruneConfig, TrainConfig
from mmp.data.loader import EpochLoader
from mmp.errors import MmpError, one_line
from mmp.machine import cores
from mmp.training.checkpoints import AtomicCheckpoints, loader_state
from mmp.training.classifier import check_recipe
from mmp.training.evaluation import device_of
from mmp.training.monitors import check_monitors
from mmp.training.recorder import Recorder

log = logging.getLogger(__name__)


class TrainingData(Protocol):
    """The batches of a training, as :class:`mmp.data.module.ImageData` has them."""

    def train_dataloader(self, ranks: int, device: torch.device) -> EpochLoader:
        """Return shuffled training batches for a number of processes. The device may prepare them itself."""
        ...

    def val_dataloader(self, device: torch.device) -> DataLoader[Any]:
        """Return validation batches, in order. The device may prepare them itself."""
        ...


def build_callbacks(config: TrainConfig, folder: Path) -> dict[str, pl.Callback]:
    """Return the configured callbacks that are not null.

    Checkpoints go to ``checkpoints`` in ``folder``, unless the configuration sets ``dirpath``.
    """
    built: dict[str, pl.Callback] = {}
    for key, node in config.callbacks.items():
        if not node or (key == "progress" and not shows_progress(config)):
            continue
        built[key] = instantiate(node, f"callbacks.{key}")
        if not isinstance(built[key], pl.Callback):
            raise MmpError(f"callbacks.{key}._target_={node['_target_']}: is no Lightning callback; correct the class")
        if isinstance(built[key], ModelCheckpoint) and "dirpath" not in node:
            built[key] = instantiate({**node, "dirpath": str(folder / "checkpoints")}, f"callbacks.{key}")
    return built


def check_config(config: TrainConfig, folder: Path) -> None:
    """Check the loggers, the recipes and the callbacks of a configuration before anything is trained.

    Raises:
        MmpError: on the first part that is wrong.
    """
    for key, node in config.logger.items():
        writes_events = node and str(node.get("_target_")).endswith("TensorBoardLogger")
        if writes_events and not (find_spec("tensorboard") or find_spec("tensorboardX")):
            raise MmpError(
                f"logger.{key} needs a package that is not installed: pip install tensorboard, or remove that logger: "
                f"logger=csv, or logger.{key}=null"
            )
    available = cores()
    if device_of(config).type == "cpu" and config.trainer.devices > available.whole:
        raise MmpError(
            f"trainer.devices={config.trainer.devices}: on the CPU, every device is a process, and "
            f"{available.describe()}; set trainer.devices=1"
        )
    check_recipe(config.dense, "dense")
    if isinstance(config, PruneConfig):
        check_recipe(config.finetune, "finetune")
    check_monitors(build_callbacks(config, folder), pruned=isinstance(config, PruneConfig))


def fit(trainer: pl.Trainer, module: pl.LightningModule, data: TrainingData, checkpoint: Path | None = None) -> None:
    """Train on the training split of a data set, with validation after each epoch.

    Args:
        trainer: A trainer made by :func:`build_trainer`.
        module: The module to train.
        data: The data set.
        checkpoint: The checkpoint from which the training resumes, if any.

    Raises:
        MmpError: if Lightning refuses the trainer's settings for this data set.
        KeyboardInterrupt: on Ctrl-C.
    """
    device = trainer.strategy.root_device if trainer.world_size == 1 else torch.device("cpu")
    batches = data.train_dataloader(trainer.world_size, device)
    limit = trainer.limit_train_batches
    batches.most = min(len(batches), limit if isinstance(limit, int) else int(limit * len(batches)))
    if checkpoint:  # Lightning restores the position too late for rates that depend on the number of batches
        state = loader_state(checkpoint)
        batches.load_state_dict(state)
        log.info("resuming from %s: epoch %d, batch %d", checkpoint, state["epoch"], state["batches"])
    interrupt = signal.getsignal(signal.SIGINT)
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    try:
        trainer.fit(
            module,
            train_dataloaders=batches,
            val_dataloaders=data.val_dataloader(device),
            ckpt_path=checkpoint and str(checkpoint),
            weights_only=True,
        )
    except MisconfigurationException as error:
        raise MmpError(f"trainer: Lightning refuses to train ({one_line(error)})") from error
    except (Exception, SystemExit) as error:
        # Lightning turns Ctrl-C into SystemExit, and torch into an error while it writes a file. A sweep would go on.
        if pressed := _interrupt_behind(error):
            signal.signal(signal.SIGINT, interrupt)  # Lightning ignores SIGINT from here on; restore the handler
            raise pressed from None
        raise
    if any(p.dtype != dtype for p in module.parameters()):
        module.to(dtype)  # trainer.precision=bf16-true, for instance, trains weights of another type
    recorder_of(trainer).replay()


class RestoreSigterm(pl.Callback):
    """Restores the SIGTERM behaviour from before the training: the process ends, unless a handler was installed.

    Lightning would wait for the end of the batch and exit with code 0, after which a sweep would go on. For trainings
    on one device.
    """

    def on_fit_start(self, *_: Any) -> None:
        """Store the current handler, before Lightning installs its own."""
        self._before = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Restore the handler, and raise the signal again if it arrived in between."""
        if self._before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)
            if trainer.received_sigterm:
                signal.raise_signal(signal.SIGTERM)


def _interrupt_behind(error: BaseException) -> KeyboardInterrupt | None:
    """Return the KeyboardInterrupt in the context of an exception, if there is one."""
    behind: BaseException | None = error
    while behind is not None and not isinstance(behind, KeyboardInterrupt):
        behind = behind.__context__
    return behind


def recorder_of(trainer: pl.Trainer) -> Recorder:
    """Return the recorder of a trainer made by `build_trainer`."""
    return next(logger for logger in trainer.loggers if isinstance(logger, Recorder))


def shows_progress(config: TrainConfig) -> bool:
    """Return whether a run draws progress bars: as configured, otherwise if standard error is a terminal.

    While a sweep has a live display, standard error is a pipe, so there are no bars.
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
    """Return a Lightning trainer.

    With several devices, training runs in one process per device, started and ended by ``Trainer.fit``. Models, masks
    and results stay in this process. Every rank validates on all images, so that all ranks get the same accuracy.

    Args:
        config: The run's configuration; ``config.trainer`` holds arguments of the trainer.
        epochs: Number of epochs.
        callbacks: The callbacks of the training.
        loggers: Loggers for the metrics of each epoch.
        folder: The trainer's root folder, with its checkpoints and metrics.

    Raises:
        MmpError: if Lightning refuses the settings.
    """
    options = {name: value for name, value in vars(config.trainer).items() if value is not None and name != "compile"}
    options["enable_progress_bar"] = shows_progress(config)
    metrics = folder / "metrics.jsonl"
    single = config.trainer.devices == 1
    attached = [*loggers, Recorder(metrics)] if single else [Recorder(metrics, loggers)]
    first = [RestoreSigterm()] if single else []
    try:
        return pl.Trainer(
            **options,
            strategy="auto" if single else "ddp_spawn",
            use_distributed_sampler=False,
            plugins=[AtomicCheckpoints(), LightningEnvironment()],
            max_epochs=epochs,
            callbacks=[*first, *callbacks],
            logger=attached,
            default_root_dir=str(folder),
            enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
    except Exception as error:  # a precision or an accelerator may need a package or a device that is missing
        raise MmpError(f"trainer: Lightning refuses {options} ({one_line(error)})") from error
