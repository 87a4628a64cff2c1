"""The survey: the plan of every timm model whose name matches a pattern, checked for defects.

``mmp-plan model=timm model.name='*' format=csv > docs/timm_models.csv``
"""

from __future__ import annotations

import csv
import json
import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise

import timm
from torch import nn

from mmp.config.objects import build_budget, build_range_table
from mmp.config.schema import PlanConfig
from mmp.errors import MmpError, first_line
from mmp.markdown import table_of
from mmp.models.networks import build_skeleton
from mmp.pruning.counts import pruned_count
from mmp.pruning.layers.graph import Graph
from mmp.pruning.layers.layer import Layer, count_weights
from mmp.pruning.patterns import Pattern
from mmp.pruning.plan import Plan, plan_model
from mmp.pruning.strategies import Strategy

OTHER_SHARE = 0.02  # a layer of role `other` with more than this share of the prunable weights needs a reason
_RISING = ("conservative", "p30", "p50", "p70", "p90", "aggressive")
_NORM = re.compile(r"\w*Norm\w*")

# Layers of role `other` that may exceed OTHER_SHARE: patterns of their names, and the reason.
_GATE = "a channel gate: its output scales whole channels, so it must not take the range of a late stage"
REASONS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r".*\.(?:se|attn|attention)\.(?:fc\d?|conv_reduce|conv_expand)\.weight"), _GATE),
    (re.compile(r".*\.conv\d\.fc\d\.weight"), _GATE),  # ResNeSt's split attention
    (re.compile(r".*\.aggregation\.\d+\.conv\.weight"), _GATE),  # HGNet's effective squeeze-excite
    (re.compile(r".*\.downsample\.conv\.\d+\.fc\d\.weight"), _GATE),  # EfficientViM's squeeze-excite
)


@dataclass(frozen=True)
class Finding:
    """The plan of one model in numbers, and its first defect.

    Attributes:
        model: timm's name of the model.
        module: timm's module that defines the architecture.
        parameters: Number of all parameters.
        prunable: Number of prunable weights.
        layers: Number of prunable layers.
        classifier: Name of the last classifier layer; empty if there is none.
        stem: Name of the first layer.
        other: Share of the prunable weights in layers of role `other`.
        largest_other: Share of the prunable weights in the largest layer of role `other`.
        largest_other_layer: Name of that layer.
        reason: The reason why that layer may be large; empty if it is not large.
        conservative: Global sparsity of the strategy `conservative`.
        aggressive: Global sparsity of the strategy `aggressive`.
        problem: The first defect; empty if there is none.
    """

    model: str
    module: str
    parameters: int = 0
    prunable: int = 0
    layers: int = 0
    classifier: str = ""
    stem: str = ""
    other: float = 0.0
    largest_other: float = 0.0
    largest_other_layer: str = ""
    reason: str = ""
    conservative: float = 0.0
    aggressive: float = 0.0
    problem: str = ""


def survey(config: PlanConfig, strategies: Sequence[Strategy]) -> Iterator[Finding]:
    """Yield the finding of every model that matches; a model that cannot be built is a finding, too.

    Args:
        config: The configuration of a plan, with a shell-style pattern in ``model.name``.
        strategies: The strategies of every plan.

    Raises:
        MmpError: if no model matches.
    """
    names = [name for name in timm.list_models(config.model.name) if is_of_timm(name)]
    if not names:
        raise MmpError(f"model.name={config.model.name}: no model of timm matches this pattern; try model.name='*'")
    for name in names:
        yield examine(name, config, strategies)


def is_of_timm(name: str) -> bool:
    """Return whether timm itself defines a registered model, not this project."""
    return timm.model_entrypoint(name).__module__.startswith("timm.")


def examine(name: str, config: PlanConfig, strategies: Sequence[Strategy]) -> Finding:
    """Return the finding of one model."""
    module = timm.model_entrypoint(name).__module__.rpartition(".")[2]
    try:
        model = build_skeleton(replace(config.model, name=name))
        table, budget = build_range_table(config.ranges), build_budget(config.budget)
        plan = plan_model(model, table, strategies, budget, name=name, pattern=Pattern.parse(config.pattern))
        return _found(plan, model, module)
    except Exception as error:  # any exception is a finding, so that the survey goes on with the other models
        return Finding(name, module, problem=f"{type(error).__name__}: {first_line(error)}")


def _found(plan: Plan, model: nn.Module, module: str) -> Finding:
    classifiers = [layer.name for layer in plan.layers if layer.role == "classifier"]
    others = [layer for layer in plan.layers if layer.role == "other"]
    largest = max(others, key=lambda layer: layer.size, default=None)
    share = largest.size / plan.sizes.weights if largest else 0.0
    large = largest is not None and share > OTHER_SHARE
    reason = _reason(largest) if largest is not None and large else ""
    problem = next(problems_of(plan, model), "") or ("a large layer of role other" if large and not reason else "")
    return Finding(
        model=plan.model,
        module=module,
        parameters=plan.parameters,
        prunable=plan.sizes.weights,
        layers=len(plan.layers),
        classifier=classifiers[-1] if classifiers else "",
        stem=plan.layers[0].name,
        other=count_weights(others) / plan.sizes.weights,
        largest_other=share,
        largest_other_layer=largest.name if largest else "",
        reason=reason,
        conservative=plan.summary("conservative")["sparsity"],
        aggressive=plan.summary("aggressive")["sparsity"],
        problem=problem,
    )


def problems_of(plan: Plan, model: nn.Module) -> Iterator[str]:
    """Yield every defect in the plan of a timm model."""
    if plan.coverage.misses_much:
        yield plan.coverage.describe(plan.coverage.missed)
    yield from _wrong_layers(plan, model)
    for lower, higher in pairwise(s for s in _RISING if s in plan.sparsities):
        for layer in plan.layers:
            if plan.sparsities[lower][layer.name] > plan.sparsities[higher][layer.name]:
                yield f"{layer.name} is sparser under {lower} than under {higher}"
    for strategy, sparsities in plan.sparsities.items():
        for layer in plan.layers:
            if pruned_count(sparsities[layer.name], layer.size) >= layer.size:
                yield f"{strategy} empties {layer.name}"


def _wrong_layers(plan: Plan, model: nn.Module) -> Iterator[str]:
    names, graph = {layer.name for layer in plan.layers}, Graph(model)
    first_name = {id(parameter): name for name, parameter in model.named_parameters()}
    for path, module in model.named_modules():
        kind, weight = type(module).__name__, getattr(module, "weight", None)
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) and first_name[id(weight)] not in names:
            yield f"{path} is a {kind}, but not a prunable layer"
        if _NORM.fullmatch(kind) and f"{path}.weight" in names:
            yield f"{path} is a {kind}, but a prunable layer"
    for key, roles in (("classifier", {"classifier"}), ("first_conv", {"stem", "patch_embed", "depthwise"})):
        for path in graph.stated(key) or ():
            for layer in plan.layers:
                if layer.name.startswith(f"{path}.") and layer.role not in roles:
                    yield f"timm's {key} {path} has the role {layer.role}"


def _reason(layer: Layer) -> str:
    return next((reason for pattern, reason in REASONS if pattern.fullmatch(layer.name)), "")


def by_module(findings: Iterable[Finding]) -> str:
    """Return a Markdown table with one line for every timm module of the findings."""
    headings = ("module", "models", "layers", "parameters (M)", "conservative (%)", "aggressive (%)", "largest `other`")
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.module, []).append(finding)

    def span(values: list[float], digits: int = 0) -> str:
        low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
        return low if low == high else f"{low} - {high}"

    rows = []
    for module, group in sorted(groups.items()):
        worst = max(group, key=lambda finding: finding.largest_other)
        named = f" (`{worst.largest_other_layer}` of {worst.model})" if worst.largest_other > OTHER_SHARE else ""
        rows.append(
            [
                module,
                str(len(group)),
                span([f.layers for f in group]),
                span([f.parameters / 1e6 for f in group], 1),
                span([100 * f.conservative for f in group]),
                span([100 * f.aggressive for f in group]),
                f"{100 * worst.largest_other:.1f} %{named}",
            ]
        )
    return table_of(headings, rows) + "\n"


def print_survey(config: PlanConfig, strategies: Sequence[Strategy]) -> None:
    """Print the findings: one line per model, or with ``format=md`` one line per timm module.

    Raises:
        MmpError: after printing, if a model has a problem.
    """
    with _without_warnings("mmp.pruning.strategies"):  # they would interrupt the table
        _print_findings(config, strategies)


def _print_findings(config: PlanConfig, strategies: Sequence[Strategy]) -> None:
    start = time.perf_counter()
    write, lines = sys.stdout.write, csv.writer(sys.stdout, lineterminator="\n")
    if config.format == "csv":
        lines.writerow([field.name for field in fields(Finding)])
    found = []
    for finding in survey(config, strategies):
        found.append(finding)
        if config.format == "csv":
            lines.writerow([f"{v:.4f}" if isinstance(v, float) else v for v in asdict(finding).values()])
        if config.format == "table":
            summary = finding.problem or f"{100 * finding.conservative:.1f} - {100 * finding.aggressive:.1f} %"
            write(f"{finding.model:<45} {finding.layers:>4} layers {finding.parameters:>13,}  {summary}\n")
    if config.format == "json":
        write(json.dumps([asdict(finding) for finding in found], indent=1) + "\n")
    if config.format == "md":
        write(by_module(found))
    failed = [finding for finding in found if finding.problem]
    large = sum(finding.largest_other > OTHER_SHARE for finding in found)
    sys.stderr.write(
        f"{len(found)} models of {len({f.module for f in found})} modules in {time.perf_counter() - start:.0f} s: "
        f"{len(failed)} with a problem, {large} with a large layer of role other and the reason for it\n"
    )
    if failed:
        raise MmpError(f"{len(failed)} models have a problem; the first is {failed[0].model}: {failed[0].problem}")


@contextmanager
def _without_warnings(name: str) -> Iterator[None]:
    """Silence the warnings of a logger in a ``with`` block."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
