"""Results: every ``result.json`` below a folder, as the report reads them. They are its only source."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmp.errors import MmpError
from mmp.pruning.reconstruction.layer_report import LayerReport
from mmp.pruning.sizes import MEGABYTE
from mmp.runs.store import RESULT, STATUS, RunFolder

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
REPORT = "report"  # the folder, in a sweep's, that reports go to
_HEAD = ("model", "data", "signal", "strategy", "ranges", "schedule", "reconstruct", "finetune", "seed")
# What may differ between the runs of a sweep besides signal and strategy; shown where it does.
SETTINGS = ("ranges", "schedule", "pattern", "reconstruct", "finetune", "budget")


@dataclass(frozen=True)
class LayerSparsity:
    """What one layer of a run was pruned to, and what it was allowed: fractions, and its number of weights."""

    name: str
    role: str
    lo: float
    hi: float
    sparsity: float
    total: int


@dataclass(frozen=True)
class Run:
    """One pruned model as its ``result.json`` tells it. Accuracies and sparsities are fractions, drop is in points.

    A baseline has its criterion's name as ``signal``, too, and as ``strategy`` whose sparsity it was pruned to.
    ``protocol`` and ``settings`` are hashes: of how a run was trained, and of everything but its seed. ``history`` has
    the metrics of each epoch under Lightning's names, ``megabytes`` what kept weights and masks need on disk.
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

    @property
    def configuration(self) -> str:
        """Signal and strategy, or criterion and the strategy whose sparsity it was pruned to."""
        return f"{self.signal}/{self.strategy}"

    @property
    def command(self) -> str:
        """The command line that runs this configuration alone."""
        return shlex.join(["python", "prune.py", *self.overrides])


def load_runs(folder: Path) -> list[Run]:
    """Read every ``result.json`` below a folder; one that cannot be read counts as a failed run.

    Raises:
        MmpError: if the folder is missing or holds no result.
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
        raise MmpError(f"{folder}: holds no result.json; has any job of this sweep begun?")
    runs = []
    for place in sorted(places):
        result = _read(place / RESULT, folder) if (place / RESULT).is_file() else None
        attempt = _read(place / STATUS, folder) if (place / STATUS).is_file() else None
        # How the last attempt ended is news only where it left no result; a result of an earlier one counts beside it.
        ended = attempt is None or attempt.status in ("completed", "skipped")
        if ended and attempt is not None and not (place / RESULT).is_file():
            attempt, ended = replace(attempt, status="failed", reason=f"{RESULT} is gone; run it again"), False
        runs += [run for run in (result, None if ended else attempt) if run is not None]
    return runs


def _reason(content: dict[str, Any], folder: Path) -> str:
    """Return why a run has no result: what an attempt raised, or where it is, if its process is still alive."""
    if error := content.get("error"):
        return f"{error['type']}: {error['message']}"
    process = content.get("process") or {}
    where = f"process {process.get('pid')} on {process.get('host')}"
    where += f", Slurm job {process['slurm']}" if process.get("slurm") else ""
    if RunFolder(folder).alive():
        return f"running ({where})"
    again = "Slurm runs it again if it was requeued; else " if process.get("slurm") else ""
    return f"interrupted ({where} is gone); {again}the same command goes on with it"


def _layers(content: dict[str, Any]) -> tuple[LayerSparsity, ...]:
    """Return a run's layers; none if its file does not tell them as files do now, which takes nothing from the rest."""
    keys = ("name", "role", "lo", "hi", "total")
    try:
        return tuple(
            LayerSparsity(**{key: layer[key] for key in keys}, sparsity=layer["pruned"] / layer["total"])
            for layer in content.get("layers", ())
        )
    except (KeyError, TypeError, ArithmeticError):
        return ()


def _cleaned(content: Any) -> Any:
    """Return content whose texts any file and terminal can take: no control characters, no halves of characters."""
    if isinstance(content, str):
        return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", content)
    if isinstance(content, list):
        return [_cleaned(value) for value in content]
    if isinstance(content, dict):
        return {_cleaned(key): _cleaned(value) for key, value in content.items()}
    return content


def _budget(content: dict[str, Any]) -> str:
    if content.get("budget") is not None:
        return f"{content['budget']:g}"
    return f"{content['budget_megabytes']:g} MB" if content.get("budget_megabytes") is not None else ""


def _read(path: Path, root: Path) -> Run | None:
    name = str(path.parent.relative_to(root))
    try:
        content = _cleaned(json.loads(path.read_text(encoding="utf-8")))
        if content.get("kind") == "dense":
            return None
        known = {key: content[key] for key in _HEAD if key in content}
        known |= {"budget": _budget(content), "pattern": content.get("pattern") or ""}
        known |= {"protocol": content.get("protocol", ""), "settings": content.get("configuration", "")}
        known |= {"data_fingerprint": content.get("data_fingerprint", "")}
        known |= {"overrides": tuple(content.get("overrides", ()))}
        if content.get("criterion"):  # a baseline: its criterion scores, and decides where the weights go
            at = "baseline" if known["budget"] else f"at {content['strategy']}"
            known |= {"criterion": content["criterion"], "signal": content["criterion"], "strategy": at}
        if path.name == STATUS or content["status"] != "completed":
            return Run(name, content["status"], _reason(content, path.parent), **known)
        accuracy, samples = content["accuracy"], content["samples"]
        resolved = (content.get("reconstruction") or {}).get("layers", ())
        sizes = content.get("bytes", {})
        return Run(
            folder=name,
            status="completed",
            **known,
            parameters=content["parameters"],
            sparsity=content["sparsity"],
            sparsity_all=content["sparsity_all"],
            validation=accuracy["finetuned"]["validation"],
            test=accuracy["finetuned"]["test"],
            pruned_test=accuracy["pruned"]["test"],
            reconstructed_test=accuracy.get("reconstructed", {}).get("test"),
            layer_reports=tuple(LayerReport(**layer) for layer in resolved),
            dense_validation=accuracy["dense"]["validation"],
            dense_test=accuracy["dense"]["test"],
            drop=content["drop"],
            validation_samples=samples["validation"],
            test_samples=samples["test"],
            epochs=content["epochs"],
            choice=content.get("finetune_choice", ""),
            seconds=content["seconds"]["total"],
            masks_hash=content["masks_hash"],
            megabytes=sizes.get("pruned", 0) / MEGABYTE,
            dense_megabytes=sizes.get("dense", 0) / MEGABYTE,
            layers=_layers(content),
            history=tuple(content.get("history", ())),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Run(name, "failed", f"{path.name} cannot be read ({type(error).__name__}: {error})")
