"""From configuration to objects: the one place where names in YAML become instances."""

from __future__ import annotations

import inspect
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra.utils
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from mmp.checkpoints import AtomicCheckpoints, SaveInTime, loader_state
from mmp.config import PruneConfig, TrainConfig, is_wandb
from mmp.data import ImageData
from mmp.display import is_shown
from mmp.errors import MmpError, nearest
from mmp.identity import identity
from mmp.loggers import Recorder, SafeLogger, finishing
from mmp.slurm import job_id
from mmp.store import LOGGERS, RunFolder, Stopwatch
from mmp.training import check_recipe

log = logging.getLogger(__name__)


def instantiate(node: Mapping[str, Any], key: str) -> Any:
    """Create the object that ``node['_target_']`` names, with the other entries as arguments.

    Args:
        node: Configuration of the object.
        key: Where it stands, for messages.

    Raises:
        MmpError: if there is no such class, it does not take an argument, or it refuses a value.
    """
    if "_target_" not in node:
        raise MmpError(f"{key} has no _target_; it must name a class, or be null")
    try:
        target = hydra.utils.get_object(node["_target_"])
    except (ImportError, AttributeError, ValueError) as error:
        raise MmpError(f"{key}._target_={node['_target_']}: there is no such class ({error})") from error
    arguments = {name: value for name, value in node.items() if name != "_target_"}
    accepted = inspect.signature(target).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        for name in arguments:
            if name not in accepted:
                raise MmpError(f"{key}.{name}: {node['_target_']} takes no such key; {nearest(name, accepted)}")
    try:
        return target(**arguments)
    except (TypeError, ValueError) as error:
        raise MmpError(f"{key}: {node['_target_']} refuses {arguments} ({error})") from error


def build_loggers(
    config: TrainConfig, folder: Path, run_id: str, job_type: str, tags: Sequence[str] = ()
) -> list[SafeLogger]:
    """Return the loggers of a run, each guarded, so that training never fails because of one.

    Args:
        config: The run's configuration.
        folder: Where loggers write unless they are configured otherwise.
        run_id: Stable identifier of the run, so that the same run is the same run in W&B.
        job_type: What kind of run it is to W&B.
        tags: What W&B shall be able to filter by.
    """
    loggers = []
    for key, node in config.logger.items():
        if not node:
            continue
        arguments = {"save_dir": str(folder), **node}
        if is_wandb(node):
            arguments = {"id": run_id, "job_type": job_type, "tags": list(tags), **arguments}
        loggers.append(SafeLogger(partial(instantiate, arguments, f"logger.{key}"), key))
    return loggers


@contextmanager
def opened_loggers(
    config: TrainConfig, run: RunFolder, job_type: str, tags: Sequence[str], watch: Stopwatch
) -> Iterator[list[SafeLogger]]:
    """Open the loggers of a run, told of its settings, for a ``with`` block; they are closed however that ends.

    Args:
        config: The run's configuration.
        run: Where they write, and the run's name.
        job_type: ``prune`` or ``dense``.
        tags: What W&B shall be able to filter by.
        watch: Counts what opening takes apart from the run's own phases.
    """
    with watch(LOGGERS):
        loggers = build_loggers(config, run.path, run.head["run_name"], job_type, tags)
    with finishing(loggers):
        with watch(LOGGERS):
            for logger in loggers:
                logger.log_hyperparams(identity(config))
        yield loggers


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


def check(config: TrainConfig, folder: Path) -> None:
    """Build what a configuration names and throw it away, so that a mistake is told before anything is trained.

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


class Terminable(pl.Callback):
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
    return sys.stderr.isatty() if configured is None else configured and not is_shown()


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
    first, in_time = [Terminable()] if alone else [], [SaveInTime(folder)] if alone and job_id() else []
    try:
        return pl.Trainer(
            **options,
            strategy="auto" if alone else "ddp_spawn",
            use_distributed_sampler=False,
            plugins=[AtomicCheckpoints(), LightningEnvironment()],
            max_epochs=epochs,
            callbacks=[*first, *callbacks, *in_time],
            logger=heard,
            default_root_dir=str(folder),
            enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise MmpError(f"trainer: Lightning refuses {options} ({error})") from error
