"""A pruned model, from its configuration to its folder: what ``prune.py`` runs, once or for every job of a sweep."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from torch import Tensor

from callbacks.averaging import AverageAtTarget
from callbacks.progress import NoteProgress
from callbacks.pruning import MaskPruning
from callbacks.requeue import saving_in_time
from mmp.config.objects import build_strategy, instantiate
from mmp.config.schema import PruneConfig
from mmp.data.module import ImageData
from mmp.errors import MmpError
from mmp.models.timm_models import build_skeleton, fill_input
from mmp.pruning.criteria import criterion
from mmp.pruning.layers.layer import Layer
from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters
from mmp.pruning.masks import MaskEnforcer, Masks, make_masks
from mmp.pruning.patterns import UNSTRUCTURED, Pattern
from mmp.pruning.reconstruction.reconstruct import summary_of
from mmp.pruning.schedules import Schedule
from mmp.pruning.signals import Scorer
from mmp.pruning.sizes import Sizes
from mmp.pruning.topk import satisfies
from mmp.runs.allocation import Allocator
from mmp.runs.calibration import Calibration, Solver
from mmp.runs.lifecycle import introduce
from mmp.runs.loggers import Artifact, opened_loggers
from mmp.runs.measure import measure, save_model, validated
from mmp.runs.memory import peak_memory, reset_peak_memory
from mmp.runs.result import describe, head_of, summarise
from mmp.runs.slurm import restarts
from mmp.runs.store import LOGGERS, MASKS, WEIGHTS, RunFolder, Stopwatch, versions
from mmp.training.checkpoints import open_checkpoints
from mmp.training.dense import dense_file, dense_model
from mmp.training.evaluation import device_of
from mmp.training.finetune import finetune_best
from mmp.training.trainer import check

log = logging.getLogger(__name__)


@dataclass
class Job:
    """What a configuration says before any data is read; building it finds every mistake in it.

    Attributes:
        config: The validated configuration.
        signal: How weights are scored, unless the run is a baseline.
        allocator: What decides each layer's sparsity.
        schedule: When masks come.
    """

    config: PruneConfig
    signal: Scorer
    allocator: Allocator
    schedule: Schedule

    @classmethod
    def of(cls, config: PruneConfig, folder: Path) -> Job:
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
        strategy = build_strategy(config.strategy)
        allocator = Allocator.of(config, strategy)
        allocator.check(build_skeleton(config.model))
        for name in config.ranges.criteria:
            criterion(name)
        if config.reconstruct.name != "none" and schedule.last_epoch > 0:
            raise MmpError(
                f"reconstruct={config.reconstruct.name} needs all masks at once, but the schedule ends in epoch "
                f"{schedule.last_epoch}; use schedule=one_shot"
            )
        if 0 < config.finetune.epochs <= schedule.last_epoch:
            raise MmpError(
                f"schedule reaches its final sparsity in epoch {schedule.last_epoch}, but finetune.epochs="
                f"{config.finetune.epochs}; raise finetune.epochs or shorten the schedule"
            )
        return cls(config, signal, allocator, schedule)

    def scores(self, calibration: Calibration) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the score tensor of every layer, and where it came from."""
        if self.allocator.baseline is None:
            return calibration.scores(self.signal)
        return calibration.criterion_scores(self.allocator.baseline, self.config.ranges.grasp_temperature)

    def masking(
        self, layers: tuple[Layer, ...], scores: Mapping[str, Tensor], sparsities: Mapping[str, float]
    ) -> list[pl.Callback]:
        """Return the callbacks that bring the masks and, where the recipe says so, average the weights under them."""
        decay = self.config.finetune.averaging
        averaging = [AverageAtTarget(decay)] if decay else []
        return [MaskPruning(layers, scores, sparsities, self.schedule, self.allocator.pattern), *averaging]


def prune(job: Job, data: ImageData, run: RunFolder, watch: Stopwatch) -> dict[str, Any]:
    """Prune, fine-tune and measure one configuration.

    Args:
        job: What to do.
        data: The data set.
        run: Where masks, weights and ``result.json`` go.
        watch: Counts the seconds of each phase.

    Returns:
        What ``result.json`` holds besides its head.

    Raises:
        MmpError: on bad data, weights, checkpoints or folders, or diverged training.
    """
    config = job.config
    reset_peak_memory()
    head = head_of(config)
    tags = [
        config.model.label or config.model.name,
        config.data.name,
        head["signal"] or head["criterion"],
        head["strategy"],
    ]
    with opened_loggers(config, run, "prune", tags, watch) as loggers:
        with watch("dense"):
            dense, dense_cached = dense_model(config, data, watchers=[NoteProgress(run.notes), *saving_in_time(config)])
        with watch("scores"):
            layers = prunable_layers(dense)
            calibration = Calibration.of(config, dense, layers, data, device_of(config))
            scores, source = job.scores(calibration)
        with watch(LOGGERS):
            for logger in loggers:
                logger.log_artifacts(made_from(job, data, calibration.cache, source))
        with watch("ranges"):
            sizes = Sizes.of(dense, layers)
            solver, pattern = Solver(config, dense, calibration), job.allocator.pattern
            groups = {layer.name: layer.groups for layer in layers}

            def reach(sparsities: Mapping[str, float]) -> float:
                masks = make_masks(scores, sparsities, pattern, groups=groups)
                return validated(solver.solve(masks)[0], config, data)

            allocation = job.allocator.allocate(
                calibration, scores, sizes, reach, lambda: validated(dense, config, data)
            )
            ranges, sparsities = allocation.ranges, allocation.sparsities
        with watch("masks"):
            masks = make_masks(scores, sparsities, pattern, groups=groups)
            pruned = copy.deepcopy(dense)
            MaskEnforcer(prunable_parameters(pruned, layers)).set(masks)
            tell_pattern(masks, pattern, groups)
        models = {"dense": dense, "pruned": pruned}
        masked, reconstruction = pruned, None
        with watch("reconstruct"):
            if config.reconstruct.name != "none":
                masked, reports = solver.solve(masks)
                models["reconstructed"] = masked
                reconstruction = {**summary_of(reports), "layers": [report.to_dict() for report in reports]}
        with watch("finetune"):

            def callbacks() -> list[pl.Callback]:
                return [*job.masking(layers, scores, sparsities), NoteProgress(run.notes), *saving_in_time(config)]

            start = dense if job.schedule.last_epoch > 0 else masked
            finetuned, training = finetune_best(config, dense, start, masked, callbacks, data, loggers, run.path)
        models["finetuned"] = finetuned
        run.discard()
        save_model(finetuned, masks, run.path)
        with watch("evaluate"):
            measured = measure(models, config, data)
        result = {
            **describe(dense, layers, ranges, sparsities, masks, sizes, pattern),
            **measured,
            **training,
            "reconstruction": reconstruction,
            "search": allocation.search,
            "dense_cached": dense_cached,
            "scores": source,
            "seconds": watch.summary(),
            "peak_memory_bytes": peak_memory(),
            "versions": versions(),
        }
        run.complete([MASKS, WEIGHTS], **result)
        for logger in loggers:
            logger.log_summary(summarise({**run.head, **result}), result["layers"])
            logger.log_artifacts(made(run))
    shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
    return result


def tell_pattern(masks: Masks, pattern: Pattern, groups: Mapping[str, int]) -> None:
    """Log where masks satisfy a pattern; layers whose shape or range it does not fit go without."""
    if pattern != UNSTRUCTURED:
        under = [mask.numel() for name, mask in masks.items() if satisfies(mask, pattern, groups[name])]
        share = 100 * sum(under) / masks.total
        log.info("pattern %s: in %d of %d layers, %.1f %% of weights", pattern, len(under), len(masks), share)


def made_from(job: Job, data: ImageData, cache: Path, scores: Mapping[str, Any]) -> list[Artifact]:
    """Return the files that a pruned model comes from: the dense one, and scores that this run may have computed."""
    name, path = dense_file(job.config, data)
    _, *parts = Path(scores["file"]).with_suffix("").parts
    return [
        Artifact(f"dense-{name}", "model", path, made=False),
        Artifact(f"scores-{'-'.join(parts)}", "scores", cache / scores["file"], made=not scores["cached"]),
    ]


def made(run: RunFolder) -> list[Artifact]:
    """Return the files of a pruned model."""
    name, head = run.head["run_name"], {key: run.head[key] for key in ("model", "data", "strategy", "seed")}
    return [
        Artifact(f"pruned-{name}", "model", run.path / WEIGHTS, metadata=head),
        Artifact(f"masks-{name}", "masks", run.path / MASKS, metadata=head),
    ]


def keep_metrics(folder: Path) -> None:
    """Move the metrics of an interrupted attempt aside; the CSV logger begins with an empty file."""
    metrics = folder / "metrics.csv"
    if metrics.is_file():
        metrics.rename(folder / f"metrics-{len(list(folder.glob('metrics-*.csv'))) + 1}.csv")


def run_job(run: RunFolder, config: PruneConfig, cfg: DictConfig) -> dict[str, Any]:
    """Run one configuration, unless its result is there already.

    Args:
        run: The run.
        config: Its configuration, validated.
        cfg: The same, as Hydra composed it.

    Returns:
        Its status; a plain value that any launcher can send home.
    """
    watch = Stopwatch()
    watch.begun = run.notes.begin
    fill_input(config)
    introduce(run, cfg, config, **head_of(config))
    job = Job.of(config, run.path)
    with watch("data"):
        data = ImageData(config.data, config.seed)
    run.head["data_fingerprint"] = data.fingerprint
    if not config.force and run.completed():
        shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
        run.say("skipped")
        log.info("%s: already completed, skipped (force=true runs it again)", run.head["run_name"])
        return {"status": "skipped", "run": run.head["run_name"]}
    if config.force and not restarts():
        shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
    open_checkpoints(run.path / "checkpoints", run.origin)
    keep_metrics(run.path / "csv")
    result = prune(job, data, run, watch)
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
