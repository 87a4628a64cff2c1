"""One pruning run, from its configuration to its folder. ``prune.py`` runs one; a sweep runs many."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from torch import Tensor, nn

from callbacks.progress import WriteProgress
from callbacks.requeue import saving_in_time
from mmp.config.schema import JOINT, PruneConfig
from mmp.data.module import ImageData
from mmp.errors import MmpError
from mmp.models.networks import fill_input
from mmp.pruning.emptied import warn_of_emptied
from mmp.pruning.layers.coverage import coverage
from mmp.pruning.layers.layer import Layer, groups_of
from mmp.pruning.layers.prunable import find_layers, prunable_parameters
from mmp.pruning.masks import MaskEnforcer, Masks
from mmp.pruning.patterns import UNSTRUCTURED, Channels, Pattern
from mmp.pruning.reconstruction.reconstruct import summary_of
from mmp.pruning.reconstruction.tuning_images import LEAST_IMAGES
from mmp.pruning.structure import Structure, masks_at
from mmp.pruning.topk import satisfies
from mmp.runs.allocation import Allocation
from mmp.runs.calibration import Calibration, Solver
from mmp.runs.job import PruneJob
from mmp.runs.lifecycle import record_start
from mmp.runs.loggers import Artifact, SafeLogger, opened_loggers
from mmp.runs.measure import measure, save_model, validation_accuracy
from mmp.runs.memory import peak_memory, reset_peak_memory
from mmp.runs.result import describe_sparsity, head_of, summarise
from mmp.runs.slurm import restarts
from mmp.runs.store import JOINT_STATE, LOGGERS, MASKS, WEIGHTS, RunFolder, Stopwatch, versions
from mmp.training.checkpoints import open_checkpoints
from mmp.training.dense import dense_file, dense_model
from mmp.training.evaluation import device_of
from mmp.training.finetune import Finetuning, finetune_best
from mmp.training.step_memory import require_memory, steps_left

log = logging.getLogger(__name__)


def prune(job: PruneJob, data: ImageData, run: RunFolder, watch: Stopwatch) -> dict[str, Any]:
    """Prune, fine-tune and measure one configuration.

    Args:
        job: The parts of the configuration.
        data: The data set.
        run: The folder for masks, weights and ``result.json``.
        watch: Measures the seconds of each phase.

    Returns:
        The content of ``result.json``, without its head.

    Raises:
        MmpError: on bad data, weights, checkpoints or folders, or diverged training.
    """
    reset_peak_memory()
    with opened_loggers(job.config, run, "prune", _tags(job.config), watch) as loggers:
        pruning = Pruning(job, data, run, watch, loggers)
        pruning.dense()
        pruning.score()
        pruning.allocate()
        pruning.mask()
        pruning.resolve()
        pruning.finetune()
        pruning.save()
        pruning.measure()
        result = pruning.complete()
    _remove_checkpoints(run)
    return result


class Pruning:
    """The stages of a pruning run, in the order of :func:`prune`. Each stage keeps its outcome for those after it.

    Args:
        job: The parts of the configuration.
        data: The data set.
        run: The run's folder.
        watch: Measures the seconds of each phase.
        loggers: The loggers of the run.

    Attributes:
        models: The models to measure: ``dense``, ``pruned``, with re-solving ``reconstructed``, and ``finetuned``.
    """

    # The outcomes of the stages, in their order.
    dense_cached: bool
    layers: tuple[Layer, ...]
    structure: Structure
    calibration: Calibration
    scores: dict[str, Tensor]
    source: dict[str, Any]
    solver: Solver
    allocation: Allocation
    masks: Masks
    training: dict[str, Any]
    measured: dict[str, Any]

    def __init__(
        self, job: PruneJob, data: ImageData, run: RunFolder, watch: Stopwatch, loggers: Sequence[SafeLogger]
    ) -> None:
        self.job, self.data, self.run, self.watch, self.loggers = job, data, run, watch, loggers
        self.config, self.pattern = job.config, job.allocator.pattern
        self.models: dict[str, nn.Module] = {}
        self.reconstruction: dict[str, Any] | None = None

    def dense(self) -> None:
        """Load the dense model, or train it."""
        with self.watch("dense"):
            self.models["dense"], self.dense_cached = dense_model(self.config, self.data, observers=self._observers())

    def score(self) -> None:
        """Score all prunable weights on the calibration split."""
        with self.watch("scores"):
            dense = self.models["dense"]
            self.layers = find_layers(dense)
            log.info("%s", coverage(dense, self.layers).describe())
            self.calibration = Calibration.of(self.config, dense, self.layers, self.data, device_of(self.config))
            self.structure = self.job.allocator.structure(dense)
            self.scores, self.source = self.job.scores(self.calibration, self.structure)
        with self.watch(LOGGERS):
            for logger in self.loggers:
                logger.log_artifacts(_inputs(self.job, self.data, self.calibration.cache, self.source))

    def allocate(self) -> None:
        """Decide the sparsity of every layer."""
        with self.watch("ranges"):
            self.solver = Solver(self.config.reconstruct, self.calibration)
            allocator = self.job.allocator
            self.allocation = allocator.allocate(self.calibration, self.structure, self.scores, validation=self)

    def mask(self) -> None:
        """Make the masks, and a copy of the dense model pruned by them."""
        with self.watch("masks"):
            self.masks, allocator = self._masks_at(self.allocation.sparsities), self.job.allocator
            warn_of_emptied(self.masks, allocator.strategy.name, allocator.baseline, allocator.ranking)
            pruned = self.models["pruned"] = copy.deepcopy(self.models["dense"])
            MaskEnforcer(prunable_parameters(pruned, self.layers)).set(self.masks)
            _log_pattern(self.masks, self.pattern, groups_of(self.layers))

    def resolve(self) -> None:
        """Re-solve the kept weights, if the configuration says so."""
        with self.watch("reconstruct"):
            if self.config.reconstruct.name == "none":
                return
            self.models["reconstructed"], reports = self.solver.solve(self.masks)
            self.reconstruction = {**summary_of(reports), "layers": [report.to_dict() for report in reports]}
            if self.config.reconstruct.name == JOINT:
                file = self.run.path / "checkpoints" / JOINT_STATE
                report = self.solver.tune(self.models["reconstructed"], self.masks, file)
                self.reconstruction["joint"] = report.to_dict()

    def finetune(self) -> None:
        """Fine-tune under the masks; a gradual schedule begins with the dense model."""
        with self.watch("finetune"):
            dense, masked = self.models["dense"], self.models.get("reconstructed", self.models["pruned"])
            start = dense if self.job.schedule.last_epoch > 0 else masked
            task = Finetuning(self.config, self.data, dense, self._callbacks, self.loggers, self.run.path)
            self.models["finetuned"], self.training = finetune_best(task, start, masked)

    def save(self) -> None:
        """Save the fine-tuned model and the masks, in place of the files of an earlier result."""
        self.run.discard_result()
        save_model(self.models["finetuned"], self.masks, self.run.path)

    def measure(self) -> None:
        """Measure all models. No other stage reads the test split."""
        with self.watch("evaluate"):
            self.measured = measure(self.models, self.config, self.data)

    def complete(self) -> dict[str, Any]:
        """Write ``result.json``, log the summary, and return the result."""
        result = {
            **describe_sparsity(self.models["dense"], self.structure, self.allocation, self.masks),
            **self.measured,
            **self.training,
            "reconstruction": self.reconstruction,
            "search": self.allocation.search,
            "dense_cached": self.dense_cached,
            "scores": self.source,
            "seconds": self.watch.summary(),
            "peak_memory_bytes": peak_memory(),
            "versions": versions(),
        }
        self.run.complete([MASKS, WEIGHTS], **result)
        for logger in self.loggers:
            logger.log_summary(summarise({**self.run.head, **result}), result["layers"])
            logger.log_artifacts(_outputs(self.run))
        return result

    def dense_accuracy(self) -> float:
        """Return the validation accuracy of the dense model."""
        return validation_accuracy(self.models["dense"], self.config, self.data)

    def accuracy_at(self, sparsities: Mapping[str, float]) -> float:
        """Return the validation accuracy of the model pruned to these sparsities and re-solved, without training."""
        resolved, _ = self.solver.solve(self._masks_at(sparsities))
        return validation_accuracy(resolved, self.config, self.data)

    def _masks_at(self, sparsities: Mapping[str, float]) -> Masks:
        return masks_at(self.structure, self.scores, sparsities)

    def _callbacks(self) -> list[pl.Callback]:
        masking = self.job.masking_callbacks(self.layers, self.structure, self.scores, self.allocation.sparsities)
        return [*masking, *self._observers()]

    def _observers(self) -> list[pl.Callback]:
        """Return the callbacks that do not change what a training computes."""
        return [WriteProgress(self.run.progress), *saving_in_time(self.config)]


def _tags(config: PruneConfig) -> list[str]:
    """Return the tags of a run in W&B."""
    head = head_of(config)
    return [config.model.title, config.data.name, head["signal"] or head["criterion"], head["strategy"]]


def _log_pattern(masks: Masks, pattern: Pattern | Channels, groups: Mapping[str, int]) -> None:
    """Log how many masks satisfy a pattern; the others are unstructured, since their shape or range does not fit."""
    if isinstance(pattern, Pattern) and pattern != UNSTRUCTURED:
        under = [mask.numel() for name, mask in masks.items() if satisfies(mask, pattern, groups[name])]
        share = 100 * sum(under) / masks.total
        log.info("pattern %s: in %d of %d layers, %.1f %% of weights", pattern, len(under), len(masks), share)


def _inputs(job: PruneJob, data: ImageData, cache: Path, scores: Mapping[str, Any]) -> list[Artifact]:
    """Return the files that a pruned model is made from: the dense model, and the scores, new or from the cache."""
    name, path = dense_file(job.config, data)
    _, *parts = Path(scores["file"]).with_suffix("").parts
    return [
        Artifact(f"dense-{name}", "model", path, made=False),
        Artifact(f"scores-{'-'.join(parts)}", "scores", cache / scores["file"], made=not scores["cached"]),
    ]


def _outputs(run: RunFolder) -> list[Artifact]:
    """Return the files of a pruned model."""
    name, head = run.head["run_name"], {key: run.head[key] for key in ("model", "data", "strategy", "seed")}
    return [
        Artifact(f"pruned-{name}", "model", run.path / WEIGHTS, metadata=head),
        Artifact(f"masks-{name}", "masks", run.path / MASKS, metadata=head),
    ]


def _check_calibration(config: PruneConfig, data: ImageData) -> None:
    """Check, before anything is trained, that there are enough images for a joint tuning."""
    count = data.samples["calibration"]
    if config.reconstruct.name == JOINT and count < LEAST_IMAGES:
        raise MmpError(
            f"reconstruct={JOINT} needs at least {LEAST_IMAGES} calibration images, but data.calibration="
            f"{config.data.calibration} makes {count}; raise it"
        )


def _keep_metrics(folder: Path) -> None:
    """Rename the metrics of an interrupted attempt, since the CSV logger begins with an empty file."""
    metrics = folder / "metrics.csv"
    if metrics.is_file():
        metrics.rename(folder / f"metrics-{len(list(folder.glob('metrics-*.csv'))) + 1}.csv")


def _remove_checkpoints(run: RunFolder) -> None:
    shutil.rmtree(run.path / "checkpoints", ignore_errors=True)


def run_job(run: RunFolder, config: PruneConfig, cfg: DictConfig) -> dict[str, Any]:
    """Run one configuration, unless its result exists already.

    Args:
        run: The run's folder.
        config: The validated configuration.
        cfg: The same configuration, as Hydra composed it.

    Returns:
        The run's status: plain data, so that every launcher can return it from a worker process.
    """
    watch = Stopwatch()
    watch.on_begin = run.progress.begin
    run.progress.always = {"finetune_epochs": config.finetune.epochs}
    fill_input(config)
    record_start(run, cfg, config, **head_of(config))
    job = PruneJob.of(config, run.path)
    name = run.head["run_name"]
    with watch("data"):
        data = ImageData(config.data, config.seed, Path(config.paths.cache))
    run.head["data_fingerprint"] = data.fingerprint
    _check_calibration(config, data)
    if not config.force and run.completed():
        _remove_checkpoints(run)
        run.write_status("skipped")
        log.info("%s: already completed, skipped (force=true runs it again)", name)
        return {"status": "skipped", "run": name}
    if config.force and not restarts():
        _remove_checkpoints(run)
    require_memory(config, steps_left(job.steps, dense_file(config, data)[1]), data.samples["train"])
    open_checkpoints(run.path / "checkpoints", run.origin)
    _keep_metrics(run.path / "csv")
    _log_result(name, prune(job, data, run, watch))
    return {"status": "completed", "run": name}


def _log_result(name: str, result: Mapping[str, Any]) -> None:
    final, dense = result["accuracy"]["finetuned"]["test"], result["accuracy"]["dense"]["test"]
    pruned = f"sparsity {100 * result['sparsity']:.1f} %"
    if "parameters_left" in result:  # without whole channels
        pruned = f"{100 * result['sparsity_all']:.1f} % of the parameters removed"
    log.info(
        "%s: %s, test accuracy %.2f %% (dense %.2f %%, drop %.2f points), %.1f s",
        name,
        pruned,
        100 * final,
        100 * dense,
        result["drop"],
        result["seconds"]["total"],
    )
