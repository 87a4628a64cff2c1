"""Results: every ``result.json`` below a folder, as the report reads it, with the timings of the run's exports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmp.errors import MmpError
from mmp.pruning.patterns import Channels
from mmp.pruning.reconstruction.layer_report import LayerReport
from mmp.pruning.sizes import MEGABYTE
from mmp.report.fields import number, objects, text, texts, value_at
from mmp.report.json_files import content_of
from mmp.report.timings import Timing, timings_of
from mmp.runs.store import RESULT, STATUS, RunFolder

REPORT = "report"  # the folder in a sweep's folder that reports are written to
# Settings that may differ between the runs of a sweep besides signal and strategy; shown where they do.
SETTINGS = ("ranges", "schedule", "pattern", "reconstruct", "finetune", "budget")


@dataclass(frozen=True)
class LayerSparsity:
    """One layer of a run: its role, allowed range [lo, hi] and sparsity as fractions, and its number of weights.

    With ``pattern=channels``, it is a group of channels, and ``total`` is its number of sets.
    """

    name: str
    role: str
    lo: float
    hi: float
    sparsity: float
    total: int


@dataclass(frozen=True)
class Run:
    """One pruned model, as its ``result.json`` describes it. Accuracies and sparsities are fractions in [0, 1].

    Attributes:
        folder: The run's folder, relative to the sweep's.
        status: ``completed``, ``failed``, ``running`` or ``skipped``; only a completed run has numbers.
        reason: Why there is no result.
        criterion: The criterion of a baseline; empty for a run with a signal and a strategy.
        signal: The signal; the criterion of a baseline.
        strategy: The strategy; of a baseline, the strategy whose sparsity it was pruned to.
        protocol: Hash of the settings of its training.
        settings: Hash of all settings except the seed.
        overrides: The command line's overrides.
        parameters_left: Parameters of the network without the removed channels; None unless whole channels are pruned.
        multiply_adds: Multiply-adds of that network over the dense network's; None unless whole channels are pruned.
        megabytes: Bytes of the kept weights and the masks, or of that network, in units of 10^6.
        sparsity: Pruned weights over prunable weights.
        sparsity_all: Pruned weights, or removed parameters, over all parameters.
        validation: Validation accuracy after fine-tuning.
        test: Test accuracy after fine-tuning.
        pruned_test: Test accuracy of the masked model, before reconstruction and fine-tuning.
        reconstructed_test: Test accuracy after reconstruction, before fine-tuning; None without reconstruction.
        drop: Test accuracy lost against the dense model of the same run, in percentage points.
        choice: How ``finetune=auto`` decided.
        history: The metrics of each epoch, under Lightning's names.
        layer_reports: The reconstruction report on each layer.
        timings: The measured latency of each export.
    """

    folder: str
    status: str
    reason: str = ""
    model: str = "?"
    data: str = "?"
    criterion: str = ""
    signal: str = "?"
    strategy: str = "?"
    ranges: str = ""
    schedule: str = ""
    pattern: str = ""
    reconstruct: str = ""
    finetune: str = ""
    budget: str = ""
    protocol: str = ""
    settings: str = ""
    data_fingerprint: str = ""
    overrides: tuple[str, ...] = ()
    seed: int = 0
    parameters: int = 0
    parameters_left: int | None = None
    multiply_adds: float | None = None
    megabytes: float = 0.0
    dense_megabytes: float = 0.0
    sparsity: float = 0.0
    sparsity_all: float = 0.0
    validation: float = 0.0
    test: float = 0.0
    pruned_test: float = 0.0
    reconstructed_test: float | None = None
    dense_validation: float = 0.0
    dense_test: float = 0.0
    drop: float = 0.0
    validation_samples: int = 0
    test_samples: int = 0
    epochs: int = 0
    choice: str = ""
    seconds: float = 0.0
    masks_hash: str = ""
    layers: tuple[LayerSparsity, ...] = ()
    history: tuple[dict[str, float], ...] = ()
    layer_reports: tuple[LayerReport, ...] = ()
    timings: tuple[Timing, ...] = ()

    @classmethod
    def of(cls, content: Mapping[str, Any], folder: str) -> Run:
        """Return the completed run that a ``result.json`` describes.

        Args:
            content: The content of the file.
            folder: The run's folder, relative to the sweep's.

        Raises:
            MmpError: naming the first key that is missing or has a value of the wrong type.
        """
        return cls(
            folder=folder,
            status="completed",
            **_settings(content),
            parameters=number(content, "parameters"),
            parameters_left=_optional(content, "parameters_left"),
            multiply_adds=_multiply_adds(content),
            sparsity=number(content, "sparsity"),
            sparsity_all=number(content, "sparsity_all"),
            validation=number(content, "accuracy.finetuned.validation"),
            test=number(content, "accuracy.finetuned.test"),
            pruned_test=number(content, "accuracy.pruned.test"),
            reconstructed_test=_optional(content, "accuracy.reconstructed.test"),
            layer_reports=tuple(map(_layer_report, objects(content, "reconstruction.layers"))),
            dense_validation=number(content, "accuracy.dense.validation"),
            dense_test=number(content, "accuracy.dense.test"),
            drop=number(content, "drop"),
            validation_samples=number(content, "samples.validation"),
            test_samples=number(content, "samples.test"),
            epochs=number(content, "epochs"),
            choice=text(content, "finetune_choice", ""),
            seconds=number(content, "seconds.total"),
            masks_hash=text(content, "masks_hash"),
            megabytes=number(content, "bytes.pruned", 0) / MEGABYTE,
            dense_megabytes=number(content, "bytes.dense", 0) / MEGABYTE,
            layers=_layers(content),
            history=tuple(objects(content, "history")),
        )

    @property
    def configuration(self) -> str:
        """Signal and strategy; of a baseline, the criterion and the strategy whose sparsity it was pruned to."""
        return f"{self.signal}/{self.strategy}"

    @property
    def whole_channels(self) -> bool:
        """Whether whole channels are pruned, which are then removed."""
        return self.pattern.partition(":")[0] == str(Channels())

    @property
    def reduction(self) -> float:
        """The fraction by which runs are compared: their sparsity, or with whole channels, ``sparsity_all``."""
        return self.sparsity_all if self.whole_channels else self.sparsity


def load_runs(folder: Path) -> list[Run]:
    """Read every ``result.json`` and ``status.json`` below a folder. A damaged file counts as a failed run.

    Raises:
        MmpError: if the folder is missing or contains no result.
    """
    if not folder.is_dir():
        raise MmpError(f"{folder}: no such folder; give the folder of a sweep, such as results/sweeps/demo")
    places = {
        path.parent
        for name in (RESULT, STATUS)
        for path in folder.rglob(name)
        if not any(part.startswith(".") or part == REPORT for part in path.relative_to(folder).parts[:-1])
    }
    if not places:
        raise MmpError(f"{folder}: contains no result.json; give the folder of a sweep whose jobs have started")
    return [run for place in sorted(places) for run in _runs_in(place, folder)]


def _runs_in(place: Path, root: Path) -> Iterator[Run]:
    """Yield the result in a run's folder, and its last attempt if that one ended without a result."""
    has_result = (place / RESULT).is_file()
    if has_result and (result := _read(place / RESULT, root)):
        yield result
    attempt = _read(place / STATUS, root) if (place / STATUS).is_file() else None
    if attempt is None:
        return
    if attempt.status not in ("completed", "skipped"):
        yield attempt
    elif not has_result:
        yield replace(attempt, status="failed", reason=f"{RESULT} is missing; run the same command again")


def _read(path: Path, root: Path) -> Run | None:
    """Return the run that a result or a status describes; None for a dense model."""
    folder = str(path.parent.relative_to(root))
    try:
        content = content_of(path)
        if content.get("kind") == "dense":
            return None
        status = text(content, "status")
        if path.name == RESULT and status == "completed":
            return replace(Run.of(content, folder), timings=timings_of(path.parent, content.get("digests")))
        return Run(folder, status, _reason(content, path.parent), **_settings(content))
    except MmpError as error:
        return Run(folder, "failed", f"{path.name} cannot be read: {error}")


def _settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run, which its result and its status have in common, as arguments of :class:`Run`."""
    settings: dict[str, Any] = {
        **{key: text(content, key, "?") for key in ("model", "data", "signal", "strategy")},
        **{key: text(content, key, "") for key in (*SETTINGS, "protocol", "data_fingerprint") if key != "budget"},
        "budget": _budget(content),
        "settings": text(content, "configuration", ""),
        "overrides": tuple(texts(content, "overrides")),
        "seed": number(content, "seed", 0),
    }
    if criterion := text(content, "criterion", ""):
        reached = "baseline" if settings["budget"] else f"at {settings['strategy']}"
        settings |= {"criterion": criterion, "signal": criterion, "strategy": reached}
    return settings


def _budget(content: Mapping[str, Any]) -> str:
    if value_at(content, "budget") is not None:
        return f"{number(content, 'budget'):g}"
    if value_at(content, "budget_macs") is not None:
        return f"{number(content, 'budget_macs'):g} of multiply-adds"
    return f"{number(content, 'budget_megabytes'):g} MB" if value_at(content, "budget_megabytes") is not None else ""


def _optional(content: Mapping[str, Any], key: str) -> Any:
    """Return a number; None if there is no such key."""
    return None if value_at(content, key) is None else number(content, key)


def _multiply_adds(content: Mapping[str, Any]) -> float | None:
    """Return the share of the multiply-adds that is left; None if the result does not state them."""
    if value_at(content, "multiply_adds") is None:
        return None
    dense = number(content, "multiply_adds.dense")
    if dense <= 0:
        raise MmpError(f"multiply_adds.dense={dense} must be positive")
    return float(number(content, "multiply_adds.pruned") / dense)


def _layers(content: Mapping[str, Any]) -> tuple[LayerSparsity, ...]:
    """Return a run's layers; none if they cannot be read, because everything else in the file is still useful."""
    try:
        return tuple(map(_layer, objects(content, "layers")))
    except MmpError:
        return ()


def _layer(layer: Mapping[str, Any]) -> LayerSparsity:
    pruned, total = number(layer, "pruned"), number(layer, "total")
    if total <= 0:
        raise MmpError(f"total={total} must be positive")
    lo, hi = number(layer, "lo"), number(layer, "hi")
    return LayerSparsity(text(layer, "name"), text(layer, "role"), lo, hi, pruned / total, total)


def _layer_report(layer: Mapping[str, Any]) -> LayerReport:
    return LayerReport(
        name=text(layer, "name"),
        kept=number(layer, "kept"),
        before=layer.get("before"),
        after=layer.get("after"),
        status=text(layer, "status"),
        seconds=number(layer, "seconds"),
    )


def _reason(content: Mapping[str, Any], folder: Path) -> str:
    """Return why a run has no result: the error of its last attempt, or where the attempt runs or ran."""
    if content.get("error"):
        return f"{text(content, 'error.type')}: {text(content, 'error.message')}"
    job = value_at(content, "process.slurm")
    where = f"process {value_at(content, 'process.pid')} on {value_at(content, 'process.host')}"
    where += f", Slurm job {job}" if job else ""
    if RunFolder(folder).alive():
        return f"running ({where})"
    requeued = "Slurm restarts it if it was requeued; otherwise " if job else ""
    return f"interrupted ({where} has ended); {requeued}run the same command to resume"
