"""Latency of networks without whole channels, beside the dense network and beside Torch-Pruning.

``python -m benchmarks.channels_latency measure`` removes half and 70 % of the parameters of timm models with random
weights, and appends a row for each engine to ``benchmarks/results/channels_latency.jsonl``; measured rows are skipped.
``models=resnet18,resnet50`` measures only these, ``seconds=10`` times each pair of networks for so long, and
``force=true`` measures again.
``python -m benchmarks.channels_latency report`` prints the tables and writes them into docs/channels.md, with those of
:mod:`benchmarks.channel_families`.

The two networks of a row are timed in turns, one image and one thread, by the processor time of the process, so that
other load on the machine hardly matters.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import RESULTS, channel_families, torch_pruning
from benchmarks.channel_networks import (
    CLASSES,
    Shrinker,
    difference_of,
    multiply_adds_of,
    network_of,
    parameters_of,
)
from benchmarks.tables import fill_page
from benchmarks.timing import machine
from mmp import Masks, MmpError, channel_groups
from mmp.config.schema import ModelConfig
from mmp.export.latency import compare_latency
from mmp.export.targets import Engine, Exportable, load_target
from mmp.markdown import table_of

ROWS = RESULTS / "channels_latency.jsonl"
OURS, THEIRS = "mmp", "Torch-Pruning"
FLOAT = ("onnx", "openvino")
TARGETS = {"onnx": "onnxruntime", "openvino": "OpenVINO", "onnx_int8": "onnxruntime, int8", "executorch": "ExecuTorch"}
DENSE = {"onnx_int8": "onnx"}  # the target of the dense network, where it is another one
ANY_WIDTHS = ("mobilenetv3_large_100", 0.5, OURS)  # is measured with multiples of 1, too
PAGE = Path("docs/channels.md")
SECONDS = 5.0
CHECKED = 4  # images of the check

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A network without a share of its parameters, in several engines.

    Attributes:
        model: The timm model.
        asked: The share of the parameters to remove.
        tool: `OURS` or `THEIRS`.
        multiple: Layers keep multiples of this number of channels.
        most: The largest ratio that reaches the target, by engine.
    """

    model: str
    asked: float
    tool: str
    multiple: int
    most: dict[str, float | None]

    def key(self, target: str) -> tuple[Any, ...]:
        """Return what identifies a row."""
        return self.model, self.asked, self.tool, self.multiple, target


def cases() -> list[Case]:
    """Return all cases."""
    found = []
    int8 = {"deit_small_patch16_224": 0.30, "resnet18": 0.22}
    for model in (
        "deit_small_patch16_224", "resnet18", "resnet50", "convnext_tiny", "regnety_008", "mobilenetv3_large_100",
    ):  # fmt: skip
        for asked in (0.5, 0.7):
            most: float | None = {0.5: 0.55, 0.7: 0.36}[asked]
            if model == "mobilenetv3_large_100":
                most = {0.5: 0.74, 0.7: None}[asked]
            limits = dict.fromkeys(FLOAT, most)
            if asked == 0.5 and model in int8:
                limits["onnx_int8"] = int8[model]
            if asked == 0.5 and model == "resnet18":
                limits["executorch"] = None
            found.append(Case(model, asked, OURS, 16, limits))
            found.append(Case(model, asked, THEIRS, 16, dict.fromkeys(limits)))
    found.append(Case(*ANY_WIDTHS, 1, dict.fromkeys(FLOAT)))
    return found


def read_rows() -> dict[tuple[Any, ...], Row]:
    """Return the latest row of each case and target, by its key."""
    lines = ROWS.read_text(encoding="utf-8").splitlines() if ROWS.is_file() else []
    rows = [json.loads(line) for line in lines]
    return {(row["model"], row["asked"], row["tool"], row["multiple"], row["target"]): row for row in rows}


def measure(models: Sequence[str], seconds: float, force: bool) -> None:
    """Measure what is missing, and write a row after each engine."""
    known = set() if force else set(read_rows())
    for model in models or dict.fromkeys(case.model for case in cases()):
        missing = [case for case in cases() if case.model == model and any(case.key(t) not in known for t in case.most)]
        if not torch_pruning.is_installed() and any(case.tool == THEIRS for case in missing):
            say(f"{model}: without Torch-Pruning; pip install torch-pruning")
            missing = [case for case in missing if case.tool == OURS]
        if missing:
            for row in rows_of(model, missing, known, seconds):
                with ROWS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                say(" ".join(f"{key}={value}" for key, value in row.items() if key != "machine"))


def rows_of(model: str, missing: Sequence[Case], known: set[tuple[Any, ...]], seconds: float) -> Iterator[Row]:
    """Yield the missing rows of one model."""
    images = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    dense = network_of(model, images)
    start = time.perf_counter()
    groups = channel_groups(dense, images[:1]) if any(case.tool == OURS for case in missing) else []
    finding = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        opened: dict[str, Engine] = {}
        for number, case in enumerate(missing):
            smaller, masked, facts = _pruned(case, dense, groups, images)
            facts |= {
                "difference": difference_of(smaller, masked, torch.randn(CHECKED, 3, 224, 224)),
                "parameters": 1 - parameters_of(smaller) / parameters_of(dense),
                "multiply_adds": 1 - multiply_adds_of(smaller, images) / multiply_adds_of(dense, images),
            }
            if case.tool == OURS:
                facts |= {"groups": len(groups), "seconds": round(finding, 1)}
            for target in (one for one in case.most if case.key(one) not in known):
                try:
                    engine = engine_of(target, smaller, images, Path(folder) / f"{target}-{number}")
                    reference = DENSE.get(target, target)
                    if reference not in opened:
                        opened[reference] = engine_of(reference, dense, images, Path(folder) / reference)
                except MmpError as error:
                    say(f"{model}: {error}")
                    continue
                found = compare_latency(engine, opened[reference], images[:1], seconds, time.process_time)
                yield {
                    "model": model,
                    "asked": case.asked,
                    "tool": case.tool,
                    "multiple": case.multiple,
                    "target": target,
                    "ratio": found.ratio,
                    "quartiles": found.quartiles,
                    "milliseconds": 1000 * found.seconds,
                    "dense_milliseconds": 1000 * found.dense_seconds,
                    "pairs": found.pairs,
                    **facts,
                    "machine": machine(),
                }


def _pruned(
    case: Case, dense: nn.Module, groups: Sequence[Any], images: Tensor
) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    """Return the smaller network of a case, the same network with zeros, and facts about the removal."""
    if case.tool == THEIRS:
        return *torch_pruning.without(dense, images, case.asked), {}
    masked, smaller, removal = Shrinker(dense, groups, images[:2], case.multiple).without(case.asked)
    return smaller, masked, {"kept": len(removal.kept)}


def engine_of(name: str, network: nn.Module, images: Tensor, scratch: Path) -> Engine:
    """Return a network in an engine."""
    scratch.mkdir()
    source = Exportable(ModelConfig(name="network", num_classes=CLASSES), network, Masks({}), [images], scratch)
    target = load_target(name)
    path = scratch / target.files[0]
    target.write(source, path)
    return target.open(path, source)


def tables() -> dict[str, str]:
    """Return the tables of all measured rows, by their place in docs/channels.md."""
    rows = read_rows()
    slowest = f"The slowest file takes {_slowest(rows)} of its dense network's time."
    machines = "; ".join(sorted({row["machine"] for row in rows.values()}))
    return {
        "latency": f"{_float_table(rows)}\n\n{slowest} {machines}",
        "latency in eight bits": _other_table(rows),
        "latency of any widths": _widths_table(rows),
    }


def write_page() -> None:
    """Write all tables into their places in docs/channels.md."""
    found = {**tables(), "families": channel_families.report()}
    fill_page(PAGE, {f"channels: {name}": table for name, table in found.items()})


def _float_table(rows: dict[tuple[Any, ...], Row]) -> str:
    lines = []
    for case in (case for case in cases() if case.multiple > 1):
        found = [rows.get(case.key(target)) for target in FLOAT]
        first = next((row for row in found if row), None)
        if first:
            ratios = [row["ratio"] if row else None for row in found]
            lines.append(
                [
                    case.model,
                    case.tool,
                    f"{100 * first['parameters']:.1f}",
                    f"{100 * first['multiply_adds']:.1f}",
                    *(_cell(row) for row in found),
                    _verdict(case.most[FLOAT[0]], ratios),
                    f"{first['difference']:.0e}",
                ]
            )
    gone = ["parameters gone %", "multiply-adds gone %"]
    return table_of(["model", "by", *gone, *(TARGETS[name] for name in FLOAT), "at most", "difference"], lines)


def _widths_table(rows: dict[tuple[Any, ...], Row]) -> str:
    lines = []
    for multiple in (16, 1):
        found = [rows.get((*ANY_WIDTHS, multiple, target)) for target in FLOAT]
        if first := next((row for row in found if row), None):
            widths = f"multiples of {multiple}" if multiple > 1 else "any"
            lines.append([first["model"], widths, f"{100 * first['parameters']:.1f}", *(_cell(row) for row in found)])
    return table_of(["model", "widths", "parameters gone %", *(TARGETS[name] for name in FLOAT)], lines)


def _other_table(rows: dict[tuple[Any, ...], Row]) -> str:
    lines = []
    for case in cases():
        for target, limit in case.most.items():
            row = rows.get(case.key(target))
            if row and target not in FLOAT:
                share = f"{100 * row['parameters']:.1f}"
                verdict = _verdict(limit, [row["ratio"]])
                lines.append([case.model, case.tool, share, TARGETS[target], _cell(row), verdict])
    return table_of(["model", "by", "parameters gone %", "engine", "over dense float32", "at most"], lines)


def _verdict(limit: float | None, ratios: Sequence[float | None]) -> str:
    if limit is None:
        return ""
    known = [ratio for ratio in ratios if ratio is not None]
    if any(ratio > limit for ratio in known):
        return f"{limit:.2f}: **miss**"
    return f"{limit:.2f}: " + ("pass" if len(known) == len(ratios) else "not measured")


def _cell(row: Row | None) -> str:
    return "" if row is None else f"{row['ratio']:.2f} ({row['quartiles'][0]:.2f} to {row['quartiles'][1]:.2f})"


def _slowest(rows: dict[tuple[Any, ...], Row]) -> str:
    row = max(
        (row for row in rows.values() if row["tool"] == OURS and row["multiple"] > 1), key=lambda row: row["ratio"]
    )
    gone = f"{100 * row['parameters']:.0f} % of the parameters gone"
    return f"{row['ratio']:.2f} ({row['model']}, {TARGETS[row['target']]}, {gone})"


def say(line: str) -> None:
    """Write a line to the terminal, beside the output."""
    sys.stderr.write(line + "\n")


def main(words: Sequence[str]) -> str:
    """Run the command on the command line and return what it prints."""
    command, *settings = words or [""]
    chosen = dict(one.split("=", 1) for one in settings if "=" in one)
    if command == "report" and not settings and ROWS.is_file():
        write_page()
        return "\n\n".join(tables().values())
    if command != "measure" or len(chosen) != len(settings) or chosen.keys() - {"models", "seconds", "force"}:
        raise MmpError("python -m benchmarks.channels_latency measure [models=A,B seconds=5 force=true], then report")
    known = {case.model for case in cases()}
    models = [name for name in chosen.get("models", "").split(",") if name]
    if other := set(models) - known:
        raise MmpError(f"models={min(other)}: no model of this benchmark; choose from: {', '.join(sorted(known))}")
    measure(models, float(chosen.get("seconds", SECONDS)), chosen.get("force") == "true")
    return "\n\n".join(tables().values())


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(main(sys.argv[1:]) + "\n")
