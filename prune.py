"""One pruned model from a configuration; with ``-m``, a grid of them.

``python prune.py signal=product strategy=balanced``
``python prune.py -m signal=magnitude,gradient,product 'strategy=glob(*)'``
"""

from __future__ import annotations

import copy
import logging
import shutil
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger
from torch import nn

from callbacks.pruning import MaskPruning
from mmp.build import (
    build_callbacks,
    build_constraints,
    build_groups,
    build_loggers,
    build_rule_table,
    build_strategy,
    build_trainer,
    check,
    instantiate,
)
from mmp.calibration import Calibration
from mmp.cli import command, explain
from mmp.config import PruneConfig, identity, register, validate
from mmp.criteria import criterion
from mmp.data import ImageData
from mmp.errors import MmpError
from mmp.files import save_tensors
from mmp.layers import Layer, prunable_layers, prunable_parameters
from mmp.masks import MaskEnforcer, check_zeros, make_masks, save_masks
from mmp.models import Classifier, accuracy, require_finite
from mmp.ranges import Range, constrain, observed_ranges, resolve_groups, rule_ranges
from mmp.schedules import Schedule
from mmp.signals import Scorer
from mmp.store import (
    MASKS,
    WEIGHTS,
    RunFolder,
    Stopwatch,
    describe,
    peak_memory,
    reset_peak_memory,
    summarise,
    versions,
)
from mmp.strategies import layer_sparsities, meet_budget
from train import dense_model, device_of, open_run

log = logging.getLogger(__name__)
register()


@dataclass
class Plan:
    """What a configuration says before any data is read; building it finds every mistake in it.

    Attributes:
        config: The validated configuration.
        signal: How weights are scored.
        schedule: When masks come.
    """

    config: PruneConfig
    signal: Scorer
    schedule: Schedule

    @classmethod
    def of(cls, config: PruneConfig, folder: Path) -> Plan:
        """Build the parts of a configuration.

        Args:
            config: The validated configuration.
            folder: The run's folder.

        Raises:
            MmpError: on the first part that is wrong.
        """
        check(config, folder)
        signal = instantiate({"_target_": config.signal._target_}, "signal")
        schedule = instantiate(config.schedule, "schedule")
        build_strategy(config.strategy)
        build_rule_table(config.ranges)
        for name in config.ranges.criteria:
            criterion(name)
        if 0 < config.finetune.epochs <= schedule.last_epoch:
            raise MmpError(
                f"schedule reaches its final sparsity in epoch {schedule.last_epoch}, but finetune.epochs="
                f"{config.finetune.epochs}; raise finetune.epochs or shorten the schedule"
            )
        return cls(config, signal, schedule)


def layer_ranges(config: PruneConfig, calibration: Calibration) -> dict[str, Range]:
    """Return the constrained range of every layer, from rules or from observation."""
    layers, ranges = calibration.layers, config.ranges
    if ranges.source == "rules":
        source = rule_ranges(layers, build_rule_table(ranges))
    else:
        source = observed_ranges(layers, calibration.observe(ranges.criteria, ranges.targets, ranges.grasp_temperature))
    return constrain(layers, source, build_constraints(ranges))


def choose_sparsities(config: PruneConfig, layers: Sequence[Layer], ranges: Mapping[str, Range]) -> dict[str, float]:
    """Return the strategy's sparsity of every layer, shifted to the budget if there is one."""
    groups = resolve_groups(layers, build_groups(config.ranges))
    sparsities = layer_sparsities(build_strategy(config.strategy), layers, ranges, groups)
    if config.budget is None:
        return sparsities
    small = frozenset(layer.name for layer in layers if layer.size < config.ranges.constraints.small_below)
    return meet_budget(layers, sparsities, config.budget, fixed=small)


def finetune(
    plan: Plan,
    model: nn.Module,
    pruning: MaskPruning,
    data: ImageData,
    loggers: Sequence[Logger],
    run: RunFolder,
) -> int:
    """Train a model while its masks come and hold; leave it at the best validated epoch.

    Args:
        plan: Recipe and trainer.
        model: The dense model, changed in place.
        pruning: The masking callback.
        data: Train and validation splits.
        loggers: Where epochs are logged.
        run: The run, whose last checkpoint is resumed from if a run of the same settings was interrupted.

    Returns:
        Number of epochs trained.
    """
    config = plan.config
    pl.seed_everything(config.seed, workers=True, verbose=False)
    configured = build_callbacks(config, run.path)
    module = Classifier(model, config.finetune, config.model.num_classes)
    trainer = build_trainer(config, config.finetune.epochs, [pruning, *configured.values()], loggers, run.path)
    last = run.path / "checkpoints" / "last.ckpt"
    trainer.fit(
        module,
        train_dataloaders=data.train_dataloader(),
        val_dataloaders=data.val_dataloader(),
        ckpt_path=str(last) if last.is_file() else None,
        weights_only=True,
    )
    best = configured.get("best")
    if isinstance(best, ModelCheckpoint) and best.best_model_path:
        module.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    return trainer.current_epoch


def prune(plan: Plan, run: RunFolder) -> dict[str, Any]:
    """Prune, fine-tune and measure one configuration.

    Args:
        plan: What to do.
        run: Where masks, weights and ``result.json`` go.

    Returns:
        What ``result.json`` holds besides its head.

    Raises:
        MmpError: on bad data, weights, checkpoints or folders, or diverged training.
    """
    config, watch = plan.config, Stopwatch()
    reset_peak_memory()
    tags = [
        config.model.label or config.model.name,
        config.data.name,
        config.signal.name,
        config.strategy.name,
    ]
    loggers = build_loggers(config, run.path, run.head["run_name"], tags)
    exit_code = 1
    try:
        for logger in loggers:
            logger.log_hyperparams(identity(config))
        with watch("data"):
            data = ImageData(config.data, config.seed)
        with watch("dense"):
            dense, dense_cached = dense_model(config, data)
        with watch("scores"):
            layers = prunable_layers(dense)
            calibration = Calibration.of(config, dense, layers, data, device_of(config))
            scores, source = calibration.scores(plan.signal)
        with watch("ranges"):
            ranges = layer_ranges(config, calibration)
            sparsities = choose_sparsities(config, layers, ranges)
        with watch("masks"):
            masks = make_masks(scores, sparsities)
            pruned = copy.deepcopy(dense)
            MaskEnforcer(prunable_parameters(pruned, layers)).set(masks)
        epochs = 0
        with watch("finetune"):
            finetuned = copy.deepcopy(dense if config.finetune.epochs else pruned)
            if config.finetune.epochs:
                pruning = MaskPruning(layers, scores, sparsities, plan.schedule)
                epochs = finetune(plan, finetuned, pruning, data, loggers, run)
        weights = {name: value.cpu() for name, value in finetuned.state_dict().items()}
        require_finite(finetuned, "fine-tuning")
        check_zeros(weights, masks)
        save_masks(masks, run.path / MASKS)
        save_tensors(run.path / WEIGHTS, weights)
        with watch("evaluate"):
            measured = measure({"dense": dense, "pruned": pruned, "finetuned": finetuned}, config, data)
        result = {
            **describe(dense, layers, ranges, sparsities, masks),
            **measured,
            "epochs": epochs,
            "dense_cached": dense_cached,
            "scores": source,
            "seconds": watch.summary(),
            "peak_memory_bytes": peak_memory(),
            "versions": versions(),
            "error": None,
        }
        run.write("completed", **result)
        for logger in loggers:
            logger.log_summary(summarise(result))
        exit_code = 0
    finally:
        for logger in loggers:
            logger.finish(exit_code)
    shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
    return result


def measure(models: Mapping[str, nn.Module], config: PruneConfig, data: ImageData) -> dict[str, Any]:
    """Measure models on validation and, once everything is chosen, on test data: one pass over each."""
    device, classes = device_of(config), config.model.num_classes
    validation, _ = accuracy(models, data.val_dataloader(), classes, device)
    test, samples = accuracy(models, data.test_dataloader(), classes, device)
    return {
        "accuracy": {name: {"validation": validation[name], "test": test[name]} for name in models},
        "drop": 100 * (test["dense"] - test["finetuned"]),
        "samples": {**data.samples, "test": samples},
    }


def head_of(config: PruneConfig) -> dict[str, Any]:
    """Return the names that open ``result.json``."""
    return {
        "signal": config.signal.name,
        "strategy": config.strategy.name,
        "ranges": config.ranges.name,
        "schedule": str(config.schedule.get("_target_", "")).rpartition(".")[2],
        "finetune": config.finetune.name,
        "budget": config.budget,
    }


def run_job(cfg: DictConfig) -> dict[str, Any]:
    """Run one configuration from the command line to its folder, whatever happens to it.

    Returns:
        Its status; a plain value that any launcher can send home.
    """
    config = validate(cfg)
    run = open_run(cfg, config, **head_of(config))
    if not config.force and run.completed():
        log.info("%s: already completed, skipped (force=true runs it again)", run.head["run_name"])
        return {"status": "completed", "run": run.head["run_name"]}
    if config.force or not run.resumable():
        shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
    run.write("running", error=None)
    try:
        result = prune(Plan.of(config, run.path), run)
    except BaseException as error:
        told = explain(error) if isinstance(error, MmpError | OSError) else traceback.format_exc()
        run.write("failed", error={"type": type(error).__name__, "message": str(error), "detail": told})
        raise
    final, dense = result["accuracy"]["finetuned"]["test"], result["accuracy"]["dense"]["test"]
    log.info(
        "%s: sparsity %.1f %%, test accuracy %.2f %% (dense %.2f %%, drop %.2f points), %.1f s",
        run.head["run_name"],
        100 * result["sparsity"],
        100 * final,
        100 * dense,
        result["drop"],
        result["seconds"]["total"],
    )
    return {"status": "completed", "run": run.head["run_name"]}


@hydra.main(version_base="1.3", config_path="conf", config_name="prune")
def main(cfg: DictConfig) -> dict[str, Any]:
    """Run one job. In a multirun a failed job leaves its status and lets the others go on."""
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        return run_job(cfg)
    try:
        return run_job(cfg)
    except Exception as error:
        log.exception("this run failed; the sweep goes on")
        run = RunFolder(Path(HydraConfig.get().runtime.output_dir))
        if (run.result or {}).get("status") != "failed":  # it failed before it could say so
            run.write("failed", error={"type": type(error).__name__, "message": str(error)})
        return {"status": "failed", "error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    command(main)
